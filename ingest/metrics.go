package ingest

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/sluice-iot/sluice/telemetry"
)

type metrics struct {
	outcomes      [telemetry.Refused + 1]prometheus.Counter
	blocks        prometheus.Counter
	blockBytes    prometheus.Counter
	blockMessages prometheus.Histogram
	gatherSeconds prometheus.Histogram
	commitSeconds prometheus.Histogram
	resends       prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		blocks:        f.NewCounter(prometheus.CounterOpts{Name: "sluice_ingest_blocks_total", Help: "Blocks sealed."}),
		blockBytes:    f.NewCounter(prometheus.CounterOpts{Name: "sluice_ingest_block_bytes_total", Help: "Compressed bytes of the blocks sealed."}),
		blockMessages: f.NewHistogram(prometheus.HistogramOpts{Name: "sluice_ingest_block_messages", Help: "Messages per block.", Buckets: prometheus.ExponentialBuckets(1, 2, 10)}),
		gatherSeconds: f.NewHistogram(prometheus.HistogramOpts{Name: "sluice_ingest_gather_seconds", Help: "Time from a block's first message to its sealing.", Buckets: prometheus.ExponentialBuckets(1e-5, 2, 14)}),
		commitSeconds: f.NewHistogram(prometheus.HistogramOpts{Name: "sluice_ingest_commit_seconds", Help: "Time from sealing a block to the shard's answer.", Buckets: prometheus.ExponentialBuckets(5e-4, 2, 16)}),
		resends:       f.NewCounter(prometheus.CounterOpts{Name: "sluice_ingest_resends_total", Help: "Times a shard's open blocks were sent again."}),
	}
	v := f.NewCounterVec(prometheus.CounterOpts{Name: "sluice_ingest_messages_total", Help: "Messages by outcome."}, []string{"outcome"})
	for o := range m.outcomes {
		m.outcomes[o] = v.WithLabelValues(telemetry.Outcome(o).String())
	}
	return m
}

// registerGauges shows the bound of what is in flight.
func (p *Pipeline) registerGauges(reg prometheus.Registerer) {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_ingest_allowance_bytes", Help: "Telemetry that may be in flight on this node, so that commits take about mqtt.commit_target under load."},
		func() float64 { return float64(p.pace.limit.Load()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_ingest_stalled_bytes", Help: "Telemetry in flight that waits for shards that do not answer; it does not count against the allowance."},
		func() float64 { return float64(p.pace.held.Load()) })
}

func (m *metrics) messages(o telemetry.Outcome, n int) {
	if n > 0 {
		m.outcomes[o].Add(float64(n))
	}
}

func (m *metrics) result(r *telemetry.Result) {
	m.messages(telemetry.Applied, r.Applied)
	m.messages(telemetry.Duplicate, r.Duplicate)
	m.messages(telemetry.Quarantined, r.Quarantined)
	m.messages(telemetry.Refused, r.Refused)
	m.messages(telemetry.Unknown, r.Unknown)
}

func (m *metrics) sealed(messages, size int, gathered time.Duration) {
	m.blocks.Inc()
	m.blockBytes.Add(float64(size))
	m.blockMessages.Observe(float64(messages))
	m.gatherSeconds.Observe(gathered.Seconds())
}

func (m *metrics) committed(took time.Duration) { m.commitSeconds.Observe(took.Seconds()) }
