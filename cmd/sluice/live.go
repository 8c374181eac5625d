package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"sort"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sluice-iot/sluice/devcluster"
)

// liveLine shows the cluster's rates, once per second on a terminal and every
// liveEvery lines elsewhere.
type liveLine struct {
	w        io.Writer
	nodes    []*devcluster.Node
	terminal bool
	shown    int
	last     totals
	counters map[*devcluster.Node]totals // as each node last told them
	past     []totals                    // of the last flushWindow, oldest first
}

// flushWindow is over which the flush rate is taken: flushes come in bursts.
const flushWindow = 30 * time.Second

// liveEvery keeps a log readable when nobody watches.
const liveEvery = 10

// totals are the counters of the whole cluster at one moment.
type totals struct {
	at                       time.Time
	accepted, acked, flushed float64
	anomalies                float64
	ackBuckets               map[float64]float64
	up                       int
}

func newLiveLine(f *os.File, cl *devcluster.Cluster) *liveLine {
	l := &liveLine{w: f, nodes: cl.Nodes(), counters: map[*devcluster.Node]totals{}}
	if st, err := f.Stat(); err == nil {
		l.terminal = st.Mode()&os.ModeCharDevice != 0
	}
	return l
}

// say prints a message of its own above the line.
func (l *liveLine) say(format string, args ...any) {
	if l.terminal {
		fmt.Fprint(l.w, "\r\033[K")
	}
	fmt.Fprintf(l.w, format+"\n", args...)
}

func (l *liveLine) show(ctx context.Context) {
	now := l.gather(ctx)
	before := l.last
	now.flushed = max(now.flushed, before.flushed) // a ledger that did not answer counts as unchanged
	l.last = now
	if before.at.IsZero() || now.up == 0 {
		return
	}
	l.past = append(l.past, now)
	for len(l.past) > 1 && now.at.Sub(l.past[0].at) > flushWindow {
		l.past = l.past[1:]
	}
	flushed := 0.0
	if d := now.at.Sub(l.past[0].at).Seconds(); d > 0 {
		flushed = max(0, now.flushed-l.past[0].flushed) / d
	}
	l.shown++
	if !l.terminal && l.shown%liveEvery != 1 {
		return
	}
	secs := now.at.Sub(before.at).Seconds()
	rate := func(a, b float64) float64 { return max(0, a-b) / secs }
	text := fmt.Sprintf("%d/%d nodes  accepted %.0f/s  acknowledged %.0f/s  flushed %.0f/s  anomalies %.1f/s  p99 ack %s",
		now.up, len(l.nodes), rate(now.accepted, before.accepted), rate(now.acked, before.acked), flushed,
		rate(now.anomalies, before.anomalies), quantile(0.99, before, now))
	if l.terminal {
		fmt.Fprint(l.w, "\r\033[K"+text)
	} else {
		fmt.Fprintln(l.w, text)
	}
}

// scrapeMax bounds the wait for a node that does not answer.
const scrapeMax = 800 * time.Millisecond

func (l *liveLine) gather(ctx context.Context) totals {
	ctx, cancel := context.WithTimeout(ctx, scrapeMax)
	defer cancel()
	t := l.last // whoever does not answer has counted nothing meanwhile
	t.at, t.up, t.ackBuckets = time.Now(), 0, maps.Clone(l.last.ackBuckets)
	if t.ackBuckets == nil {
		t.ackBuckets = map[float64]float64{}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, n := range l.nodes {
		wg.Go(func() {
			cl, err := n.Client()
			if err != nil {
				return
			}
			defer cl.Close()
			b, err := cl.Metrics(ctx)
			if err != nil {
				return // dead or busy: it is missing from "up"
			}
			parser := expfmt.NewTextParser(model.LegacyValidation)
			families, err := parser.TextToMetricFamilies(bytes.NewReader(b))
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			counters := countersOf(families)
			t.grow(l.counters[n], counters)
			l.counters[n] = counters
		})
	}
	wg.Wait()
	for _, n := range l.nodes {
		cl, err := n.Client()
		if err != nil {
			continue
		}
		led, err := cl.Ledger(ctx)
		cl.Close()
		if err == nil {
			t.flushed = float64(led.Totals.Flushed)
			break
		}
	}
	return t
}

// grow adds what a node has counted since before. A node seen for the first time
// adds nothing, one that was started again all it has.
func (t *totals) grow(before, now totals) {
	t.up++
	if before.ackBuckets == nil {
		return
	}
	if now.accepted < before.accepted || now.acked < before.acked {
		before = totals{}
	}
	t.accepted += now.accepted - before.accepted
	t.acked += now.acked - before.acked
	t.anomalies += max(0, now.anomalies-before.anomalies)
	for bound, n := range now.ackBuckets {
		t.ackBuckets[bound] += n - before.ackBuckets[bound]
	}
}

// countersOf reads what one node has counted since it was started.
func countersOf(f map[string]*dto.MetricFamily) totals {
	t := totals{ackBuckets: map[float64]float64{}}
	for _, m := range f["sluice_ingest_messages_total"].GetMetric() {
		for _, lp := range m.GetLabel() {
			if v := lp.GetValue(); v == "applied" || v == "duplicate" || v == "quarantined" {
				t.accepted += m.GetCounter().GetValue()
			}
		}
	}
	for _, m := range f["sluice_shard_anomalies_opened_total"].GetMetric() {
		t.anomalies += m.GetCounter().GetValue()
	}
	for _, m := range f["sluice_broker_ack_latency_seconds"].GetMetric() {
		t.acked += float64(m.GetHistogram().GetSampleCount())
		for _, b := range m.GetHistogram().GetBucket() {
			t.ackBuckets[b.GetUpperBound()] += float64(b.GetCumulativeCount())
		}
	}
	return t
}

// quantile reads a latency out of the histograms' growth: the upper bound of
// the bucket in which it lies.
func quantile(q float64, before, now totals) string {
	total := now.acked - before.acked
	if total <= 0 {
		return "-"
	}
	bounds := make([]float64, 0, len(now.ackBuckets))
	for b := range now.ackBuckets {
		bounds = append(bounds, b)
	}
	sort.Float64s(bounds)
	for _, b := range bounds {
		if now.ackBuckets[b]-before.ackBuckets[b] >= q*total {
			return fmt.Sprintf("<= %.3g ms", b*1000)
		}
	}
	return "over the scale"
}
