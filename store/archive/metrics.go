package archive

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	objects, bytes, failures, expired prometheus.Counter
	complete                          prometheus.Gauge
}

type holdMetrics struct {
	heldBytes, heldSeconds prometheus.Gauge
	lostRows               prometheus.Counter
}

func newHoldMetrics(reg prometheus.Registerer) (*holdMetrics, error) {
	m := &holdMetrics{
		heldBytes:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_archive_held_bytes", Help: "Files of this node that stay beyond their retention until the archive has them."}),
		heldSeconds: prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_archive_held_seconds", Help: "For how long the oldest of them has stayed."}),
		lostRows:    prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_archive_lost_rows_total", Help: "Rows of this node that were removed although the archive did not have them, because time or room was over."}),
	}
	if reg == nil {
		return m, nil
	}
	if err := errors.Join(reg.Register(m.heldBytes), reg.Register(m.heldSeconds), reg.Register(m.lostRows)); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_archive_" + name, Help: help})
	}
	m := &metrics{
		objects:  counter("objects_total", "Segment files copied to the archive."),
		bytes:    counter("written_bytes_total", "Bytes of the files copied to the archive."),
		failures: counter("failures_total", "Rounds of the archive that ended with an error; the next one continues."),
		expired:  counter("expired_ranges_total", "Ranges of shards led here whose rows expired before they were copied, each counted once per start of the node."),
		complete: prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_archive_complete_timestamp_seconds", Help: "When the last round began that left nothing to copy of the shards led here; 0: none since the start."}),
	}
	if reg == nil {
		return m, nil
	}
	if err := errors.Join(reg.Register(m.objects), reg.Register(m.bytes), reg.Register(m.failures), reg.Register(m.expired), reg.Register(m.complete)); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}
