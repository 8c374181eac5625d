package detector

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	signals *prometheus.CounterVec
	dropped prometheus.Counter
	downs   prometheus.Counter
	paused  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		signals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_detector_signals_total",
			Help: "Signals about peers by kind.",
		}, []string{"signal"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_detector_signals_dropped_total",
			Help: "Signals dropped because the queue was full.",
		}),
		downs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_detector_downs_total",
			Help: "Times a peer was held for gone.",
		}),
		paused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_detector_pauses_total",
			Help: "Times this process stood still long enough to void the signals.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.signals, m.dropped, m.downs, m.paused)
	}
	return m
}
