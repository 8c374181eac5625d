package main

import "testing"

func TestRatesCountNoLifetimeTwice(t *testing.T) {
	node := func(n float64) totals {
		return totals{accepted: n, acked: n / 10, anomalies: n / 100, ackBuckets: map[float64]float64{0.01: n / 10}}
	}
	sum := totals{ackBuckets: map[float64]float64{}}
	steps := []struct {
		what        string
		before, now totals
		want        float64
	}{
		{"a node is seen for the first time", totals{}, node(5000), 0},
		{"it counts", node(5000), node(5100), 100},
		{"it has missed a question and answers again", node(5100), node(5400), 400},
		{"it was started again", node(5400), node(50), 450},
	}
	for _, s := range steps {
		sum.grow(s.before, s.now)
		if sum.accepted != s.want || sum.acked != s.want/10 || sum.ackBuckets[0.01] != s.want/10 {
			t.Errorf("%s: %+v, want %v accepted", s.what, sum, s.want)
		}
	}
	if sum.anomalies != 4.5 {
		t.Errorf("%v anomalies", sum.anomalies)
	}
}
