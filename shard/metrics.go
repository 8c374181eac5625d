package shard

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/sluice-iot/sluice/anomaly"
)

// metrics of all shards of a node; none carries a device, the number of shards
// per node is bounded.
type metrics struct {
	snapshots        prometheus.Counter
	snapshotBytes    prometheus.Counter
	flushRows        prometheus.Counter
	flushSeconds     prometheus.Histogram
	flushErrors      prometheus.Counter
	flushLate        prometheus.Counter
	flushBacklog     prometheus.Counter
	gaps             prometheus.Counter
	fallbacks        prometheus.Counter
	digestMismatches prometheus.Counter
	fetched          prometheus.Counter
	anomalies        prometheus.Counter
	stands           prometheus.Counter
	handOvers        prometheus.Counter
	members          *prometheus.CounterVec
	building         prometheus.Gauge
	damaged          prometheus.Counter
	abstentions      prometheus.Counter
	abstaining       prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		snapshots:        f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_snapshots_total", Help: "Snapshots taken by this node's replicas."}),
		snapshotBytes:    f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_snapshot_written_bytes_total", Help: "Bytes of the snapshots taken by this node's replicas."}),
		flushRows:        f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_flush_rows_total", Help: "Rows written to the store by this node."}),
		flushSeconds:     f.NewHistogram(prometheus.HistogramOpts{Name: "sluice_shard_flush_duration_seconds", Help: "Time from the first row gathered to the batch durable in the store.", Buckets: prometheus.ExponentialBuckets(0.002, 2, 14)}),
		flushErrors:      f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_flush_errors_total", Help: "Flushes that failed and are tried again."}),
		flushLate:        f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_flush_late_rows_total", Help: "Of the rows written, those of the late lane."}),
		flushBacklog:     f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_flush_backlog_rows_total", Help: "Of the rows written, those of the backlog lane."}),
		gaps:             f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_flush_gaps_total", Help: "Times that a live lane left what waited to the backlog lane."}),
		fallbacks:        f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_database_fallbacks_total", Help: "Times that the database was found without rows it had committed."}),
		digestMismatches: f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_digest_mismatches_total", Help: "Ranges whose rows differ from the leader's. Anything above 0 is a defect."}),
		fetched:          f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_segments_fetched_total", Help: "Store segments fetched from peers because this replica lacked them."}),
		anomalies:        f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_anomalies_opened_total", Help: "Anomalies opened in shards while this node led them."}),
		stands:           f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_stands_total", Help: "Elections this node stood for at once, without waiting for a timer."}),
		handOvers:        f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_hand_overs_total", Help: "Leaderships handed to another replica."}),
		members:          f.NewCounterVec(prometheus.CounterOpts{Name: "sluice_shard_member_changes_total", Help: "Changes of the members of groups led by this node: add, promote, remove."}, []string{"change"}),
		building:         f.NewGauge(prometheus.GaugeOpts{Name: "sluice_shard_replicas_building_count", Help: "Replicas on this node that do not vote yet."}),
		damaged:          f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_damaged_total", Help: "Snapshots of shards on this node that were found damaged."}),
		abstentions:      f.NewCounter(prometheus.CounterOpts{Name: "sluice_shard_abstentions_total", Help: "Votes not given and not asked for because something of the replica is damaged and not repaired."}),
		abstaining:       f.NewGauge(prometheus.GaugeOpts{Name: "sluice_shard_replicas_abstaining_count", Help: "Replicas on this node that stay out of elections until they are repaired."}),
	}
}

func (m *metrics) flushed(rows int, took time.Duration) {
	m.flushRows.Add(float64(rows))
	m.flushSeconds.Observe(took.Seconds())
}

func (m *metrics) emitted(events []Event) {
	for i := range events {
		if events[i].Transition == anomaly.Opened {
			m.anomalies.Inc()
		}
	}
}
