package postgres

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	up                prometheus.Gauge
	connections       prometheus.Gauge
	connects          prometheus.Counter
	connectErrors     prometheus.Counter
	writes            prometheus.Counter
	writeRows         prometheus.Counter
	writeBatches      prometheus.Histogram
	copyRows          prometheus.Histogram
	writeErrors       prometheus.Counter
	writeRetries      prometheus.Counter
	writeSeconds      prometheus.Histogram
	conflicts         prometheus.Counter
	deadLetters       *prometheus.CounterVec
	partitions        prometheus.Counter
	unpartitioned     prometheus.Counter
	partitionsDropped prometheus.Counter
	readSeconds       prometheus.Histogram
	readPoints        prometheus.Counter
	readErrors        prometheus.Counter
	migrationsDone    prometheus.Counter
}

// newMetrics registers the metrics when reg is not nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	const prefix = "sluice_postgres_"
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
	}
	seconds := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 16), // to 33 s
		})
	}
	m := &metrics{
		up:            gauge("up", "1 while the database is reachable and its schema is ours."),
		connections:   gauge("connections", "Open connections to the database."),
		connects:      counter("connects_total", "Connections made."),
		connectErrors: counter("connect_failures_total", "Attempts to connect or migrate that failed."),
		writes:        counter("writes_total", "Transactions committed."),
		writeBatches: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "write_batches", Help: "Batches of shards in one transaction.", Buckets: prometheus.ExponentialBuckets(1, 2, 7),
		}),
		copyRows: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "copy_rows", Help: "Rows in one COPY.", Buckets: prometheus.ExponentialBuckets(10, 4, 9), // to 655,360
		}),
		writeRows:    counter("written_rows_total", "Rows committed, without those refused."),
		writeErrors:  counter("write_failures_total", "Attempts to commit a batch that failed."),
		writeRetries: counter("write_retries_total", "Transactions repeated at once: serialization failure, deadlock, refused rows."),
		writeSeconds: seconds("write_seconds", "Time to commit one transaction."),
		conflicts:    counter("watermark_conflicts_total", "Batches refused because the watermark was elsewhere."),
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "dead_letters_total", Help: "Rows that the database refused, by kind.",
		}, []string{"kind"}),
		partitions:        counter("partitions_created_total", "Partitions made (plain PostgreSQL)."),
		unpartitioned:     counter("partitions_refused_total", "Times without a partition of their own: the default one takes their rows."),
		partitionsDropped: counter("partitions_dropped_total", "Partitions dropped because they were beyond the retention (plain PostgreSQL)."),
		readSeconds:       seconds("read_seconds", "Time to answer one query."),
		readPoints:        counter("read_points_total", "Points that queries returned."),
		readErrors:        counter("read_failures_total", "Queries that failed."),
		migrationsDone:    counter("migrations_total", "Schema migrations run."),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.up, m.connections, m.connects, m.connectErrors, m.writes, m.writeRows, m.writeBatches, m.copyRows, m.writeErrors, m.writeRetries,
		m.writeSeconds, m.conflicts, m.deadLetters, m.partitions, m.unpartitioned, m.partitionsDropped, m.readSeconds, m.readPoints, m.readErrors, m.migrationsDone} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}
