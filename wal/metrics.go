package wal

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	commits        prometheus.Counter
	commitRequests prometheus.Histogram
	written        prometheus.Counter
	fsync          prometheus.Histogram
	entries        prometheus.Counter
	relocated      prometheus.Counter
	recycled       prometheus.Counter
	cacheHits      prometheus.Counter
	cacheMisses    prometheus.Counter
	scrubbed       prometheus.Counter
	corrupt        prometheus.Counter
	segments       prometheus.Gauge
	prepared       prometheus.Gauge
	full           prometheus.Gauge
	failed         prometheus.Gauge
	shelved        prometheus.Gauge
	indexLost      prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_wal_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_wal_" + name, Help: help})
	}
	m := &metrics{
		commits: counter("commits_total", "Group commits, each one write and one fdatasync."),
		commitRequests: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_wal_commit_requests", Help: "Requests of all groups in one group commit.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 9),
		}),
		written: counter("written_bytes_total", "Bytes written to segments, without preparing them."),
		fsync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_wal_fsync_duration_seconds", Help: "Duration of the fdatasync of a group commit.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 15),
		}),
		entries:     counter("entries_total", "Raft entries appended."),
		relocated:   counter("relocated_bytes_total", "Bytes of entries rewritten to free the segment they were in."),
		recycled:    counter("recycled_segments_total", "Segments that became empty and were reused or deleted."),
		cacheHits:   counter("cache_hits_total", "Entries read from memory."),
		cacheMisses: counter("cache_misses_total", "Entries read from disk."),
		scrubbed:    counter("scrubbed_bytes_total", "Bytes of sealed segments read back and verified."),
		corrupt:     counter("corrupt_segments_total", "Segments found damaged."),
		segments:    gauge("segments", "Segment files that hold records."),
		prepared:    gauge("prepared_segments", "Empty segment files ready for use, the reserve included."),
		full:        gauge("full", "1 while the disk has no room for another segment and appends are refused."),
		shelved:     gauge("index_shelved_entries", "Entries whose place is not in memory but in a file."),
		indexLost:   counter("index_rebuilt_total", "Parts of the index that could not be read back and were made again from the segments."),
		failed:      gauge("failed", "1 after a write or sync error; the process must exit."),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.commits, m.commitRequests, m.written, m.fsync, m.entries, m.relocated, m.recycled, m.cacheHits,
		m.cacheMisses, m.scrubbed, m.corrupt, m.segments, m.prepared, m.full, m.failed, m.shelved, m.indexLost,
	} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register metrics of the log (one log per registry): %w", err)
	}
	return m, nil
}
