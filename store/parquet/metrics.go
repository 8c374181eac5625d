package parquet

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	segments      prometheus.Gauge
	bytes         prometheus.Gauge
	openFiles     prometheus.Gauge
	damaged       prometheus.Counter
	writeRows     prometheus.Counter
	writeBytes    prometheus.Counter
	writeSeconds  prometheus.Histogram
	installs      prometheus.Counter
	readSeconds   prometheus.Histogram
	readPages     prometheus.Counter
	readPoints    prometheus.Counter
	readFiles     prometheus.Counter
	writeFailures prometheus.Counter

	compactions, compactRows, compactFailures prometheus.Counter
	compactSeconds                            prometheus.Histogram
	removed, expiredRows, scrubs              prometheus.Counter
}

// newMetrics registers the metrics when reg is not nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_parquet_" + name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_parquet_" + name, Help: help})
	}
	seconds := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_parquet_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14), // to 4 s
		})
	}
	m := &metrics{
		segments:      gauge("segments", "Segment files in the store."),
		bytes:         gauge("size_bytes", "Bytes of all segment files."),
		openFiles:     gauge("open_files", "Segment files open for reading."),
		damaged:       counter("damaged_total", "Segments found damaged."),
		writeRows:     counter("written_rows_total", "Rows written by flushes."),
		writeBytes:    counter("written_bytes_total", "Bytes of files written by flushes."),
		writeSeconds:  seconds("write_seconds", "Time to make one segment durable."),
		writeFailures: counter("write_failures_total", "Segments that could not be written or installed."),
		installs:      counter("installed_total", "Segments taken from other replicas."),
		readSeconds:   seconds("read_seconds", "Time to answer one query."),
		readFiles:     counter("read_files_total", "Segment files that queries looked into."),
		readPages:     counter("read_pages_total", "Pages of rows that queries decoded."),
		readPoints:    counter("read_points_total", "Points that queries returned."),

		compactions:     counter("compactions_total", "Compactions of several segment files into one."),
		compactRows:     counter("compacted_rows_total", "Rows written by compactions."),
		compactFailures: counter("compaction_failures_total", "Compactions that failed; they are tried again."),
		compactSeconds:  seconds("compaction_seconds", "Time of one compaction, waits for its share of the disk included."),
		removed:         counter("removed_total", "Segment files removed after compaction or retention replaced them."),
		expiredRows:     counter("expired_rows_total", "Rows removed by retention."),
		scrubs:          counter("scrubbed_total", "Segment files read whole in search of damage."),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.segments, m.bytes, m.openFiles, m.damaged, m.writeRows, m.writeBytes, m.writeSeconds,
		m.writeFailures, m.installs, m.readSeconds, m.readFiles, m.readPages, m.readPoints,
		m.compactions, m.compactRows, m.compactFailures, m.compactSeconds, m.removed, m.expiredRows, m.scrubs} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}
