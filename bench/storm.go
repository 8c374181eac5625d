package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/sluice-iot/sluice/devcluster"
)

// StormConfig of the scenario of a node's clients that all come back at once.
type StormConfig struct {
	Binary   string // the sluice executable
	Dir      string // for the cluster's data; "" is a temporary directory
	Clients  int    // of the node that dies, with durable sessions and wills
	Rate     float64
	Shards   uint32
	Progress io.Writer // what is being done, may be nil
}

// Storm is what the death of a node full of clients does to them and to the others.
type Storm struct {
	Clients int `json:"clients"`
	// Half, Most and All are seconds from the kill until so many clients had their
	// CONNACK and their session: 50 %, 99 %, 100 %.
	Half float64 `json:"half_s"`
	Most float64 `json:"most_s"`
	All  float64 `json:"all_s"`
	// Present is how many found their session as they had left it.
	Present int `json:"session_present"`
	// Refused counts answers that told a client to come again, Failed connections
	// that ended without an answer.
	Refused int     `json:"refused"`
	Failed  int     `json:"failed"`
	AckP50  float64 `json:"connack_p50_ms"` // from CONNECT to a CONNACK of success
	AckP99  float64 `json:"connack_p99_ms"`
	AckMax  float64 `json:"connack_max_ms"`
	// Telemetry of the clients that stay connected, second by second, from the kill on.
	Rate   float64  `json:"telemetry_per_second"`
	Before []Second `json:"telemetry_before"`
	After  []Second `json:"telemetry_after"`
}

// Second is the latency of telemetry that was acknowledged in one second.
type Second struct {
	At    float64 `json:"at_s"` // its begin, from the kill
	Acked int     `json:"acknowledged"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`
}

const (
	stormBefore = 10 * time.Second // of telemetry before the kill
	stormAfter  = 15 * time.Second
	stormMax    = 2 * time.Minute // for all to be back
)

// RunStorm fills one node of three with clients, kills it, and lets its clients go to
// the other two at once, as clients do: to the next address, after a pause with chance
// in it when that refuses.
func RunStorm(ctx context.Context, cfg StormConfig) (out *Storm, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	c, stop, err := scratchCluster(ctx, cfg.Binary, cfg.Dir, cfg.Shards)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	s := &storm{cfg: &cfg, c: c, out: &Storm{Clients: cfg.Clients, Rate: cfg.Rate}, acks: hdrhistogram.New(1, latencyMaxMicros, 3)}
	victim := c.Nodes()[failoverNodes-1]
	fmt.Fprintf(cfg.Progress, "%d clients connect to %s ...\n", cfg.Clients, victim.ID)
	all := newCrowd("meter", cfg.Clients, true, source)
	defer all.leave()
	if err := all.each(ctx, func(m *member) error { return s.settle(ctx, m, victim.MQTT) }); err != nil {
		return nil, err
	}
	if err := s.strike(ctx, all, victim); err != nil {
		return nil, err
	}
	return s.out, nil
}

type storm struct {
	cfg *StormConfig
	c   *devcluster.Cluster
	out *Storm

	mu     sync.Mutex
	killed time.Time // zero until then
	back   []time.Duration
	acks   *hdrhistogram.Histogram
}

// settle connects a client before the storm and subscribes.
func (s *storm) settle(ctx context.Context, m *member, addr string) error {
	for {
		_, err := m.connect(ctx, addr)
		var r refusal
		if errors.As(err, &r) && ctx.Err() == nil {
			time.Sleep(time.Second)
			continue
		}
		if err != nil {
			return err
		}
		return m.subscribe()
	}
}

// strike kills the node under telemetry and waits for everybody.
func (s *storm) strike(ctx context.Context, all *crowd, victim *devcluster.Node) error {
	survivors := addrs(s.c)[:failoverNodes-1]
	var telemetry error
	var seconds []ProbeSecond
	var publishing sync.WaitGroup
	publishing.Go(func() {
		seconds, telemetry = runProbe(ctx, s.cfg.Binary, Probe{Addrs: survivors, Rate: s.cfg.Rate, Duration: stormBefore + stormAfter})
	})
	fmt.Fprintf(s.cfg.Progress, "telemetry at %.0f/s for %v, then the kill ...\n", s.cfg.Rate, stormBefore)
	waiting, cancel := context.WithTimeout(ctx, stormBefore+stormMax)
	defer cancel()
	var clients sync.WaitGroup
	for i, m := range all.members {
		clients.Go(func() { s.survive(waiting, m, i, survivors) })
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(stormBefore):
	}
	s.mu.Lock()
	s.killed = time.Now()
	s.mu.Unlock()
	err := victim.Kill()
	publishing.Wait()
	clients.Wait()
	if err = errors.Join(err, telemetry, ctx.Err()); err != nil {
		return err
	}
	return s.conclude(seconds)
}

// survive waits until the client's connection breaks and brings it back.
func (s *storm) survive(ctx context.Context, m *member, i int, addrs []string) {
	nc := m.nc
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() }) // wakes the read
	_, err := nc.Read(make([]byte, 1))
	stop()
	if err == nil || ctx.Err() != nil {
		return // still there: the node did not die
	}
	_ = nc.Close()
	m.nc = nil
	for try := 0; ctx.Err() == nil; try++ {
		took, err := m.connect(ctx, addrs[(i+try)%len(addrs)])
		s.mu.Lock()
		var r refusal
		switch {
		case err == nil:
			s.back = append(s.back, time.Since(s.killed))
			// A value beyond the histogram's end is recorded at its end.
			_ = s.acks.RecordValue(min(took.Microseconds(), latencyMaxMicros))
			if m.present {
				s.out.Present++
			}
			s.mu.Unlock()
			return
		case errors.As(err, &r):
			s.out.Refused++
		default:
			s.out.Failed++
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second + rand.N(time.Second)):
		}
	}
}

func (s *storm) conclude(seconds []ProbeSecond) error {
	o := s.out
	if len(s.back) < o.Clients {
		return fmt.Errorf("%d of %d clients were not back within %v", o.Clients-len(s.back), o.Clients, stormMax)
	}
	slices.Sort(s.back)
	o.Half, o.Most, o.All = s.back[len(s.back)/2].Seconds(), s.back[len(s.back)*99/100].Seconds(), s.back[len(s.back)-1].Seconds()
	o.AckP50, o.AckP99, o.AckMax = quantile(s.acks, 50), quantile(s.acks, 99), quantile(s.acks, 100)
	for _, second := range seconds {
		switch second.Second.At = second.From.Sub(s.killed).Seconds(); {
		case second.From.Before(s.killed.Add(-time.Second)):
			o.Before = append(o.Before, second.Second)
		default:
			o.After = append(o.After, second.Second)
		}
	}
	return nil
}

// Table writes the result for people.
func (o *Storm) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d clients of a killed node go to the other two at once\n", o.Clients)
	fmt.Fprintf(&b, "back after: half %.1f s, 99 %% %.1f s, all %.1f s; %d found their session; told to come again %d, ended without an answer %d\n", o.Half, o.Most, o.All, o.Present, o.Refused, o.Failed)
	fmt.Fprintf(&b, "from CONNECT to CONNACK: p50 %.0f ms, p99 %.0f ms, longest %.0f ms\n", o.AckP50, o.AckP99, o.AckMax)
	fmt.Fprintf(&b, "\ntelemetry of others, %.0f/s offered, by the second; the kill is at 0\n%8s %8s %8s %8s %8s\n", o.Rate, "s", "acked", "p50 ms", "p99 ms", "max ms")
	for _, s := range slices.Concat(o.Before, o.After) {
		fmt.Fprintf(&b, "%8.1f %8d %8.1f %8.1f %8.1f\n", s.At, s.Acked, s.P50, s.P99, s.Max)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
