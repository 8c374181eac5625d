package simulate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/sluice-iot/sluice/internal/publisher"
)

// schedulerShare is how many connections one goroutine drives: a thousand
// goroutines that sleep cost more than a few that work.
const schedulerShare = 64

// Stats are counters since the start of Run.
type Stats struct {
	Published    int64 // messages accepted for sending
	Acknowledged int64 // by a node: durable
	Quarantined  int64 // answered 0x99
	Refused      int64 // answered with another error
	Unanswered   int64 // given up at the end: not known to be durable
	Skipped      int64 // measurements that could not leave
	Resent       int64 // with DUP, after a connection was lost
	Connections  int   // connections of the fleet
	// Latency from measurement to acknowledgement, of all messages so far.
	P50, P99, Max time.Duration
}

// conn is one connection and its devices, by phase.
type conn struct {
	pub     *publisher.Publisher
	devices []*device
}

// Simulator is a fleet.
type Simulator struct {
	logger  *slog.Logger
	cfg     Config
	weather weather
	conns   []*conn
	total   int
	began   atomic.Bool
	ready   atomic.Bool // conns have their publishers

	published, acknowledged, quarantined, refused, unanswered, skipped atomic.Int64

	mu      sync.Mutex // over latency
	latency *hdrhistogram.Histogram
}

// New makes the fleet and begins to connect.
func New(logger *slog.Logger, cfg Config) (*Simulator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.defaults()
	s := &Simulator{
		logger: logger, cfg: cfg, weather: newWeather(cfg.Seed), total: min(cfg.Devices, cfg.ConnectionsMax),
		// 1 us to 10 min with two digits: 20 KiB.
		latency: hdrhistogram.New(1, int64(10*time.Minute/time.Microsecond), 2),
	}
	for i := range s.total {
		s.conns = append(s.conns, &conn{})
		for n := i; n < cfg.Devices; n += s.total {
			s.conns[i].devices = append(s.conns[i].devices, newDevice(&cfg, n))
		}
		slices.SortFunc(s.conns[i].devices, func(a, b *device) int { return cmp.Compare(a.phase, b.phase) })
	}
	return s, nil
}

// Run publishes until ctx ends, then waits a little for answers that are still
// under way. It may be called once.
func (s *Simulator) Run(ctx context.Context) error {
	if s.began.Swap(true) {
		return errors.New("simulation has run already")
	}
	run := newRunID()
	for i, c := range s.conns {
		brokers := slices.Concat(s.cfg.Brokers[i%len(s.cfg.Brokers):], s.cfg.Brokers[:i%len(s.cfg.Brokers)])
		pub, err := publisher.New(s.logger, publisher.Config{
			Brokers: brokers, ClientID: fmt.Sprintf("%s%s-%d", s.cfg.Prefix, run, i), Window: max(s.cfg.Window, 2*len(c.devices)),
		})
		if err != nil {
			s.close()
			return fmt.Errorf("simulate: %w", err)
		}
		c.pub = pub
	}
	s.ready.Store(true)
	var wg sync.WaitGroup
	start := time.Now()
	for part := range slices.Chunk(s.conns, schedulerShare) {
		wg.Go(func() { s.schedule(ctx, start, part) })
	}
	wg.Wait()
	s.drain(context.WithoutCancel(ctx))
	s.close()
	return nil
}

// drain waits for the answers under way.
func (s *Simulator) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.DrainTimeout)
	defer cancel()
	for _, c := range s.conns {
		if c.pub.Flush(ctx) != nil {
			return // the rest is counted as unanswered
		}
	}
}

func (s *Simulator) close() {
	var wg sync.WaitGroup
	for _, c := range s.conns {
		if c.pub != nil {
			wg.Go(func() { _ = c.pub.Close() }) // it has no error to give
		}
	}
	wg.Wait()
}

// turn is one device of a scheduler's round.
type turn struct {
	d *device
	c *conn
}

// schedule measures and publishes for some connections, round after round.
func (s *Simulator) schedule(ctx context.Context, start time.Time, conns []*conn) {
	var turns []turn
	for _, c := range conns {
		for _, d := range c.devices {
			turns = append(turns, turn{d, c})
		}
	}
	slices.SortFunc(turns, func(a, b turn) int { return cmp.Compare(a.d.phase, b.d.phase) })
	perMessage := 0.0
	if s.cfg.FaultEvery > 0 {
		perMessage = min(1, s.cfg.Interval.Seconds()/s.cfg.FaultEvery.Seconds())
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for round := start; ; round = round.Add(s.cfg.Interval) {
		if late := time.Since(round) / s.cfg.Interval; late > 1 {
			// The machine slept or is too slow: go on from now.
			s.skipped.Add(int64(late) * int64(len(turns)))
			round = round.Add(late * s.cfg.Interval)
		}
		for _, t := range turns {
			at := round.Add(t.d.phase)
			if wait := time.Until(at); wait > 0 {
				timer.Reset(wait)
				select {
				case <-timer.C:
				case <-ctx.Done():
					return
				}
			} else if ctx.Err() != nil {
				return
			}
			s.publish(t, at, perMessage)
		}
	}
}

// messageBytes is a little more than a message of ours.
const messageBytes = 256

func (s *Simulator) publish(t turn, at time.Time, perMessage float64) {
	v := t.d.measure(&s.weather, at, perMessage)
	payload := t.d.appendMessage(make([]byte, 0, messageBytes), at, v)
	if err := t.c.pub.TryPublish(t.d.topic, payload, s.answered); err != nil {
		s.skipped.Add(1)
		return
	}
	s.published.Add(1)
}

// answered counts; it is called from the connections' goroutines.
func (s *Simulator) answered(r publisher.Result) {
	switch {
	case r.Err != nil:
		s.unanswered.Add(1)
		return
	case r.OK():
		s.acknowledged.Add(1)
	case r.Reason == publisher.ReasonQuarantined:
		s.quarantined.Add(1)
	default:
		s.refused.Add(1)
	}
	us := min(r.Latency.Microseconds(), s.latency.HighestTrackableValue())
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.latency.RecordValue(us) // it is within the range
}

// Stats returns the counters; during Run they are of slightly different moments.
func (s *Simulator) Stats() Stats {
	st := Stats{
		Published: s.published.Load(), Acknowledged: s.acknowledged.Load(), Quarantined: s.quarantined.Load(), Refused: s.refused.Load(),
		Unanswered: s.unanswered.Load(), Skipped: s.skipped.Load(), Connections: s.total,
	}
	if s.ready.Load() {
		for _, c := range s.conns {
			st.Resent += c.pub.Stats().Resent
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	us := func(v int64) time.Duration { return time.Duration(v) * time.Microsecond }
	st.P50, st.P99, st.Max = us(s.latency.ValueAtQuantile(50)), us(s.latency.ValueAtQuantile(99)), us(s.latency.Max())
	return st
}
