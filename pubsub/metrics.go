package pubsub

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	forwarded prometheus.Counter
	dropped   *prometheus.CounterVec
	lapsed    prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		forwarded: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "sluice", Subsystem: "pubsub", Name: "forwarded_messages_total",
			Help: "Messages sent to other nodes for clients connected there."}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "sluice", Subsystem: "pubsub", Name: "dropped_messages_total",
			Help: "Messages that did not reach another node's connected clients, or (shard_silent) durable sessions."}, []string{"reason"}),
		lapsed: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "sluice", Subsystem: "pubsub", Name: "lapsed_messages_total",
			Help: "Telemetry given to subscribers by what was known of a shard whose leader is out of reach."}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.forwarded, m.dropped, m.lapsed} {
		if err := reg.Register(c); err != nil {
			errs = append(errs, fmt.Errorf("register pubsub metric: %w", err))
		}
	}
	return m, errors.Join(errs...)
}

func (h *Hub) registerGauges(reg prometheus.Registerer) error {
	var errs []error
	for _, g := range []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "sluice", Subsystem: "pubsub", Name: "index_filters",
			Help: "Filters in this node's index of all nodes' and shards' subscriptions."}, func() float64 { return float64(h.routes.filters.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "sluice", Subsystem: "pubsub", Name: "shards_astray",
			Help: "Shards that another node reaches and this one does not."}, func() float64 { return float64(h.routes.astrays(time.Now())) }),
	} {
		if err := reg.Register(g); err != nil {
			errs = append(errs, fmt.Errorf("register pubsub metric: %w", err))
		}
	}
	return errors.Join(errs...)
}
