package mux

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one Mux. The label peer is bounded: it goes when a peer is
// forgotten.
type metrics struct {
	framesIn, framesOut prometheus.Counter
	bytesIn, bytesOut   prometheus.Counter
	writes              prometheus.Counter
	dialFailures        prometheus.Counter
	connects            *prometheus.CounterVec // peer
	rtt                 *prometheus.GaugeVec   // peer
	refused             prometheus.Counter
	busy                *prometheus.CounterVec // where
	dropped             *prometheus.CounterVec // why
	events              *prometheus.CounterVec // kind
	snapshots           *prometheus.CounterVec // direction, result
	snapshotBytes       *prometheus.CounterVec // direction
	connections         prometheus.Gauge
	streams             prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var all []prometheus.Collector
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_mux_" + name, Help: help})
		all = append(all, c)
		return c
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_mux_" + name, Help: help}, labels)
		all = append(all, c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_mux_" + name, Help: help})
		all = append(all, g)
		return g
	}
	m := &metrics{
		framesIn:      counter("frames_received_total", "Frames received on all connections."),
		framesOut:     counter("frames_sent_total", "Frames written to all connections."),
		bytesIn:       counter("received_bytes_total", "Bytes read from all connections, streams excluded."),
		bytesOut:      counter("sent_bytes_total", "Bytes written to all connections, streams excluded."),
		writes:        counter("writes_total", "Write system calls; frames sent per write is how well they gather."),
		dialFailures:  counter("dial_failures_total", "Attempts to connect that failed."),
		connects:      counters("connects_total", "Connections made to a peer; all but the first are reconnects.", "peer"),
		refused:       counter("refused_total", "Connections of others that our handshake refused."),
		busy:          counters("busy_total", "Requests refused because something is full.", "where"),
		dropped:       counters("dropped_total", "Frames and events dropped.", "why"),
		events:        counters("events_total", "Events about peers.", "kind"),
		snapshots:     counters("snapshots_total", "Raft snapshots sent and received, by result.", "direction", "result"),
		snapshotBytes: counters("snapshot_bytes_total", "Bytes of raft snapshots sent and received.", "direction"),
		connections:   gauge("connections", "Connections that are up, both directions, streams excluded."),
		streams:       gauge("streams", "Streams that are open, both directions."),
		rtt: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_mux_round_trip_seconds",
			Help: "Smoothed round trip of pings."}, []string{"peer"}),
	}
	all = append(all, m.rtt)
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range all {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

// forget drops the series of a peer.
func (m *metrics) forget(peer string) {
	m.connects.DeleteLabelValues(peer)
	m.rtt.DeleteLabelValues(peer)
}
