package archive

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct{ objects, bytes, failures prometheus.Counter }

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_archive_" + name, Help: help})
	}
	m := &metrics{
		objects:  counter("objects_total", "Segment files copied to the archive."),
		bytes:    counter("written_bytes_total", "Bytes of the files copied to the archive."),
		failures: counter("failures_total", "Rounds of the archive that ended with an error; the next one continues."),
	}
	if reg == nil {
		return m, nil
	}
	if err := errors.Join(reg.Register(m.objects), reg.Register(m.bytes), reg.Register(m.failures)); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}
