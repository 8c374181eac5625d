package gossip

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	members *prometheus.GaugeVec
	pings   *prometheus.CounterVec
	joins   *prometheus.CounterVec
	paused  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		members: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_gossip_members_count",
			Help: "Members by state, this node not counted.",
		}, []string{"state"}),
		pings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_gossip_pings_total",
			Help: "Direct pings of silent members by result: answered, lost.",
		}, []string{"result"}),
		joins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_gossip_seed_contacts_total",
			Help: "Attempts to reach a seed by result: reached, failed.",
		}, []string{"result"}),
		paused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_gossip_pauses_total",
			Help: "Times this process was paused long enough to void its suspicions.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.members, m.pings, m.joins, m.paused)
	}
	return m
}
