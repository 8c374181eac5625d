package webhook

import "github.com/prometheus/client_golang/prometheus"

type metrics struct{ sent, retries, dead, lost prometheus.Counter }

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_webhook_" + name + "_total", Help: help})
		reg.MustRegister(c)
		return c
	}
	return &metrics{
		sent:    counter("events", "Anomaly events that the receiver took."),
		retries: counter("retries", "Attempts that failed and were repeated."),
		dead:    counter("dead_letters", "Anomaly events that went to the file of dead letters."),
		lost:    counter("lost_events", "Anomaly events that could not even be written there."),
	}
}
