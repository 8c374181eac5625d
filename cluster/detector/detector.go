package detector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// signalQueue bounds the signals that wait for the loop: ten for each of 99
// peers that go at once.
const signalQueue = 1024

// Config of the detector.
type Config struct {
	// Window is how far apart two signals may be to count as one failure. Default
	// 5 s: longer than gossip needs to suspect a silent peer.
	Window time.Duration
	// Tick is how often the loop proves that this process runs. Default 50 ms.
	Tick time.Duration
	// Slack is how late a tick may be before we were paused, and how long signals
	// wait afterwards. Default 250 ms: more than a busy machine delays a
	// goroutine, less than what makes peers give up on us.
	Slack time.Duration
	// Dial replaces net.Dialer, for simulated networks.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// PeersMax bounds the peers remembered. Default 1024.
	PeersMax int
}

// DefaultConfig fills in every default.
func DefaultConfig() Config {
	return Config{Window: 5 * time.Second, Tick: 50 * time.Millisecond, Slack: 250 * time.Millisecond, PeersMax: 1024}
}

// Validate reports every problem at once.
func (c Config) Validate() error {
	var errs []error
	if c.Window < c.Slack {
		errs = append(errs, fmt.Errorf("window %v is shorter than the slack %v", c.Window, c.Slack))
	}
	if c.Tick < time.Millisecond || c.Slack < c.Tick {
		errs = append(errs, fmt.Errorf("tick %v and slack %v: use at least 1ms, the slack not shorter than the tick", c.Tick, c.Slack))
	}
	if c.PeersMax < 1 {
		errs = append(errs, fmt.Errorf("peers max is %d, less than 1", c.PeersMax))
	}
	return errors.Join(errs...)
}

// Prober is asked to look after a peer as soon as the mux doubts it, so that the
// second opinion comes at once. Probe must not block. A Prober that is a Resolver
// too lets the detector knock at the peer's door.
type Prober interface{ Probe(peer string) }

// Detector combines the signals. See the package comment.
type Detector struct {
	logger  *slog.Logger
	cfg     Config
	metrics *metrics
	prober  Prober

	queue chan observation

	mu   sync.Mutex
	core *core
	subs []func(Event)

	knocks  map[string]bool // peers at whose door somebody stands
	closing bool
	ctx     context.Context // of the knocks; a field because Observe has none
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

type observation struct {
	peer   string
	signal Signal
}

// New starts the detector. prober may be nil.
func New(logger *slog.Logger, reg prometheus.Registerer, cfg Config, prober Prober) (*Detector, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure detector: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &Detector{
		logger:  logger,
		cfg:     cfg,
		metrics: newMetrics(reg),
		prober:  prober,
		queue:   make(chan observation, signalQueue),
		core:    newCore(cfg, time.Now()),
		knocks:  map[string]bool{},
		ctx:     ctx,
		cancel:  cancel,
	}
	d.wg.Go(func() { d.loop(ctx) })
	return d, nil
}

// Observe hands in a signal. It never blocks.
func (d *Detector) Observe(peer string, s Signal) {
	if s >= signals {
		return
	}
	d.metrics.signals.WithLabelValues(s.String()).Inc()
	select {
	case d.queue <- observation{peer, s}:
	default:
		d.metrics.dropped.Inc()
	}
	if d.prober != nil && (s == Reset || s == Refused || s == Quiet || s == Silent) {
		d.prober.Probe(peer)
	}
	switch s {
	case Reset:
		d.knock(peer, d.refused)
	case Quiet:
		d.knock(peer, d.unreachable)
	}
}

// Subscribe calls f for every Down and Up from now on, on the detector's
// goroutine: f must not block.
func (d *Detector) Subscribe(f func(Event)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.subs = append(d.subs, f)
}

// Down reports whether the peer is held for gone.
func (d *Detector) Down(peer string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.core.isDown(peer)
}

// Close stops all goroutines.
func (d *Detector) Close() error {
	d.mu.Lock()
	d.closing = true
	d.mu.Unlock()
	d.cancel()
	d.wg.Wait()
	return nil
}

func (d *Detector) loop(ctx context.Context) {
	tick := time.NewTicker(d.cfg.Tick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.tick(time.Now())
		case o := <-d.queue:
			d.judge(o)
		}
	}
}

func (d *Detector) tick(now time.Time) {
	d.mu.Lock()
	paused, events := d.core.tick(now)
	subs := slices.Clone(d.subs)
	d.mu.Unlock()
	if paused {
		d.metrics.paused.Inc()
		d.logger.Warn("this process was paused, signals about peers wait for a moment")
	}
	for _, e := range events {
		d.tell(e, subs)
	}
}

func (d *Detector) judge(o observation) {
	d.mu.Lock()
	// The time of processing, not of observation: a pause in between must show.
	e, ok := d.core.observe(time.Now(), o.peer, o.signal)
	subs := slices.Clone(d.subs)
	d.mu.Unlock()
	if ok {
		d.tell(e, subs)
	}
}

func (d *Detector) tell(e Event, subs []func(Event)) {
	if e.Down {
		d.metrics.downs.Inc()
		d.logger.Warn("peer is gone", "peer", e.Peer, "first", e.First.String(), "second", e.Second.String())
	} else {
		d.logger.Info("peer is back", "peer", e.Peer)
	}
	for _, f := range subs {
		f(e)
	}
}
