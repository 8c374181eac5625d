package meta

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	proposals *prometheus.CounterVec
	forwards  *prometheus.CounterVec
	changes   prometheus.Counter
	stands    prometheus.Counter
	members   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		proposals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_meta_proposals_total",
			Help: "Commands proposed on this node by result: committed, refused, abandoned.",
		}, []string{"result"}),
		forwards: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_meta_forwarded_requests_total",
			Help: "Requests of other nodes by result: served, busy.",
		}, []string{"result"}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_meta_leader_changes_total",
			Help: "Changes of the meta group's leader seen by this node.",
		}),
		stands: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_meta_stands_total",
			Help: "Elections this node started without waiting for raft's timers.",
		}),
		members: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_meta_membership_changes_total",
			Help: "Changes of raft's members made by this node as leader.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.proposals, m.forwards, m.changes, m.stands, m.members)
	}
	return m
}
