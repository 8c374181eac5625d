package broker

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Outcomes of a publish, the label values of publishes_total.
const (
	outcomeApplied = iota
	outcomeDuplicate
	outcomeQuarantined
	outcomeMixed
	outcomeRefused
	outcomeUnknown
	outcomeLocal
	outcomes
)

type metrics struct {
	publishes   [3][outcomes]prometheus.Counter
	ackLatency  prometheus.Histogram
	refused     *prometheus.CounterVec
	disconnects *prometheus.CounterVec
	delivered   prometheus.Counter
	dropped     *prometheus.CounterVec
	writes      prometheus.Counter
	connectWait prometheus.Histogram
	early       prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "sluice", Subsystem: "broker", Name: name, Help: help})
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "sluice", Subsystem: "broker", Name: name, Help: help}, labels)
	}
	m := &metrics{
		ackLatency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "sluice", Subsystem: "broker", Name: "ack_latency_seconds",
			Help:    "From the receipt of a telemetry publish of QoS 1 or 2 to its answer on the socket.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 17), // 0.25 ms to 16 s: beyond the commit deadline
		}),
		refused:     vec("refused_total", "Publishes, subscriptions and connections refused.", "what", "reason"),
		disconnects: vec("disconnects_total", "Connections ended by the broker.", "reason"),
		delivered:   counter("deliveries_total", "Messages sent to subscribers."),
		dropped:     vec("deliveries_dropped_total", "Messages that a subscriber did not get.", "reason"),
		writes:      counter("socket_writes_total", "Write calls on client sockets."),
		early:       counter("connects_early_total", "Clients let in before the shard of their session had a leader."),
		connectWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "sluice", Subsystem: "broker", Name: "connect_wait_seconds",
			Help:    "Time that a CONNECT waited for its turn; those that need not wait are not counted.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8), // 1 ms to 16 s: beyond any sensible wait
		}),
	}
	publishes := vec("publishes_total", "Publishes answered, by quality of service and outcome.", "qos", "outcome")
	names := [outcomes]string{"applied", "duplicate", "quarantined", "mixed", "refused", "unknown", "local"}
	for q := range m.publishes {
		for o := range m.publishes[q] {
			m.publishes[q][o] = publishes.WithLabelValues(string(rune('0'+q)), names[o])
		}
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{publishes, m.ackLatency, m.refused, m.disconnects, m.delivered, m.dropped, m.writes, m.connectWait, m.early} {
		if err := reg.Register(c); err != nil {
			errs = append(errs, fmt.Errorf("register broker metric: %w", err))
		}
	}
	return m, errors.Join(errs...)
}

// registerGauges exports what the broker counts anyway, read when it is scraped.
func (b *Broker) registerGauges(reg prometheus.Registerer) error {
	var errs []error
	for _, g := range []struct {
		name, help string
		value      func() float64
	}{
		{"connections", "Connected MQTT clients.", func() float64 { return float64(b.connected.Load()) }},
		{"half_open_connections", "Connections that have not finished CONNECT.", func() float64 { return float64(b.halfOpen.len()) }},
		{"connects_waiting", "CONNECTs that wait for their turn.", func() float64 { return float64(b.turns.len()) }},
		{"sessions", "Sessions kept on this node, connected or not.", func() float64 { return float64(b.sessions.len()) }},
		{"subscriptions", "Subscriptions held on this node.", func() float64 { return float64(b.subscriptions()) }},
		{"publishes_in_flight", "Publishes handed to the ingest path and not yet decided.", func() float64 { return float64(b.inFlight.Load()) }},
		{"in_flight_bytes", "Bytes handed to the ingest path and not yet decided.", func() float64 { return float64(b.budget.used.Load()) }},
		{"waiting_bytes", "Bytes read and not yet handed over.", func() float64 { return float64(b.waitBytes.Load()) }},
	} {
		opts := prometheus.GaugeOpts{Namespace: "sluice", Subsystem: "broker", Name: g.name, Help: g.help}
		if err := reg.Register(prometheus.NewGaugeFunc(opts, g.value)); err != nil {
			errs = append(errs, fmt.Errorf("register broker metric %s: %w", g.name, err))
		}
	}
	return errors.Join(errs...)
}
