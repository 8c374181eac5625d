package api

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/sluice-iot/sluice/telemetry"
)

type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	open     prometheus.Gauge
	messages *prometheus.CounterVec
	received prometheus.Counter
	sent     prometheus.Counter
	replayed prometheus.Counter
	streams  prometheus.Gauge
	cut      prometheus.Counter
}

// newMetrics registers with reg; nil registers nowhere. route is a pattern of
// the mux and code an HTTP status, so that the labels are bounded.
func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{Name: "sluice_api_requests_total", Help: "HTTP requests answered."}, []string{"route", "code"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_api_request_duration_seconds", Help: "Time from the header of a request to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"route"}),
		open:     f.NewGauge(prometheus.GaugeOpts{Name: "sluice_api_requests_open", Help: "HTTP requests being answered."}),
		messages: f.NewCounterVec(prometheus.CounterOpts{Name: "sluice_api_messages_total", Help: "Messages of POST /api/v1/telemetry by outcome."}, []string{"outcome"}),
		received: f.NewCounter(prometheus.CounterOpts{Name: "sluice_api_received_bytes_total", Help: "Bytes of telemetry bodies after decompression."}),
		sent:     f.NewCounter(prometheus.CounterOpts{Name: "sluice_api_sent_bytes_total", Help: "Bytes of answers."}),
		replayed: f.NewCounter(prometheus.CounterOpts{Name: "sluice_api_replayed_answers_total", Help: "Requests answered from an earlier one with the same Idempotency-Key."}),
		streams:  f.NewGauge(prometheus.GaugeOpts{Name: "sluice_api_streams", Help: "Event streams open."}),
		cut:      f.NewCounter(prometheus.CounterOpts{Name: "sluice_api_streams_cut_total", Help: "Event streams ended because their reader was too slow."}),
	}
}

func (m *metrics) request(route string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	m.duration.WithLabelValues(route).Observe(took.Seconds())
}

func (m *metrics) outcomes(c *Counts) {
	for _, o := range []struct {
		outcome telemetry.Outcome
		n       int
	}{
		{telemetry.Applied, c.Applied}, {telemetry.Duplicate, c.Duplicate}, {telemetry.Quarantined, c.Quarantined},
		{telemetry.Refused, c.Refused}, {telemetry.Unknown, c.Unknown},
	} {
		if o.n > 0 {
			m.messages.WithLabelValues(o.outcome.String()).Add(float64(o.n))
		}
	}
}
