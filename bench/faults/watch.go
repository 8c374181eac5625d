package faults

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/devcluster"
)

// Whoever operates a cluster sees a fault in its metrics or not at all. The
// watch reads those of every node all the time, as a monitoring system would,
// and says whether the one that docs/operations.md names for a fault has moved
// (C10).

const (
	scrapeEvery = 300 * time.Millisecond
	scrapeMax   = 2 * time.Second
)

// watch is what the metrics of all nodes did.
type watch struct {
	done sync.WaitGroup

	mu    sync.Mutex
	nodes map[string]*series
}

// series is what is known of one node.
type series struct {
	first, last map[string]float64 // by name and labels
	moved       map[string]bool    // was another one than first
	peak        map[string]float64 // highest value of a gauge, or mean of a histogram between two scrapes
}

func startWatch(ctx context.Context, nodes func() []*devcluster.Node) *watch {
	w := &watch{nodes: map[string]*series{}}
	w.done.Go(func() {
		for ; ctx.Err() == nil; sleep(ctx, scrapeEvery) {
			var one sync.WaitGroup
			for _, n := range nodes() {
				one.Go(func() { w.scrape(ctx, n) })
			}
			one.Wait()
		}
	})
	return w
}

func (w *watch) scrape(ctx context.Context, n *devcluster.Node) {
	now, err := seriesOf(ctx, n)
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.nodes[n.ID]
	switch {
	case err != nil: // it is away, which its next answer tells
	case s == nil:
		w.nodes[n.ID] = &series{first: now, last: now, moved: map[string]bool{}, peak: map[string]float64{}}
	default:
		s.add(now)
	}
}

func (s *series) add(now map[string]float64) {
	for name, v := range now {
		if v != s.first[name] {
			s.moved[name] = true
		}
		base, _, _ := strings.Cut(name, "{")
		s.peak[base] = max(s.peak[base], v)
		sum, ok := strings.CutSuffix(name, "_sum")
		if !ok {
			continue
		}
		if n := now[sum+"_count"] - s.last[sum+"_count"]; n > 0 {
			s.peak[sum] = max(s.peak[sum], (v-s.last[name])/n)
		}
	}
	s.last = now
}

// begin forgets what has moved so far: the fault strikes now.
func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.nodes {
		s.first = s.last
		clear(s.moved)
		clear(s.peak)
	}
}

// saw reports whether a metric has moved on any node since begin: a series whose
// name and labels begin so was another than before, or, with a bound, a gauge or
// the mean of a histogram between two scrapes was above it.
func (w *watch) saw(metric string, above float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.nodes {
		if above > 0 && s.peak[metric] > above {
			return true
		}
		for name := range s.moved {
			if above == 0 && strings.HasPrefix(name, metric) {
				return true
			}
		}
	}
	return false
}

// tell lists what has moved of the names that begin with a prefix, for whoever
// looks for the right metric of a fault.
func (w *watch) tell(prefix string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, s := range w.nodes {
		for name := range s.moved {
			if strings.HasPrefix(name, prefix) && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// seriesOf reads the metrics of a node by name and labels.
func seriesOf(ctx context.Context, n *devcluster.Node) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, scrapeMax)
	defer cancel()
	cl, err := client.New(client.Config{URL: "http://" + n.HTTP, Retries: -1})
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	b, err := cl.Metrics(ctx)
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", n.ID, err)
	}
	out := map[string]float64{}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		line := sc.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		if v, err := strconv.ParseFloat(line[at+1:], 64); err == nil {
			out[line[:at]] = v
		}
	}
	return out, nil
}
