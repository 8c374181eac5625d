package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/broker/poll"
	"github.com/sluice-iot/sluice/telemetry"
)

// Ingest is where telemetry goes.
type Ingest interface {
	// Publish takes one publish on its way into the log and never blocks: what it may
	// have to hold is bounded by the broker's window per connection and its byte
	// budget. It is called in publish order for one connection, from one goroutine at
	// a time; from many goroutines for many connections.
	//
	// It calls done exactly once, from any goroutine, Publish's own included, and
	// holds no lock that Publish needs while it does; done never blocks. The counts of
	// the result add up to the messages of the publish and are never all zero. Until
	// done, p and its payload belong to the receiver, afterwards to the broker.
	Publish(p *telemetry.Publish, done func(telemetry.Result))
}

// Pacer is an Ingest that bounds what it is given.
type Pacer interface {
	// Allowance is how many bytes of telemetry, by Publish.Cost, should be in flight now
	// at most; what is more waits in the broker and in the sockets. It never blocks, and
	// is asked again while anything waits.
	Allowance() int64
}

// Broker is a node's MQTT broker.
type Broker struct {
	log                         *slog.Logger
	cfg                         Config
	ingest                      Ingest
	metrics                     *metrics
	poller                      *poll.Poller // nil where the system has none
	buffers                     readBuffers
	started                     time.Time
	sessions                    sessions
	cluster                     Cluster
	subs                        subscribers
	budget                      budget
	turns                       *turns
	identities, alarms, devices *limiters
	halfOpen                    halfOpen

	connected  atomic.Int64
	inFlight   atomic.Int64 // handed to ingest, not reported
	unanswered atomic.Int64 // in the FIFOs of connections
	waitBytes  atomic.Int64
	accepted   atomic.Int64
	acked      atomic.Int64
	refused    atomic.Uint64 // publishes that never reached ingest
	draining   atomic.Bool
	idle       chan struct{} // signalled when unanswered reaches 0 while draining
	running    sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	cancel    context.CancelFunc
	listeners []net.Listener
	conns     map[*conn]struct{}
}

// New makes a broker that hands telemetry to ingest and is one with the brokers of
// cluster. reg may be nil.
func New(logger *slog.Logger, reg prometheus.Registerer, cfg Config, ingest Ingest, cluster Cluster) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("broker configuration: %w", err)
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	b := &Broker{log: logger, cfg: cfg, ingest: ingest, cluster: cluster, metrics: m, started: time.Now(),
		idle: make(chan struct{}, 1), conns: map[*conn]struct{}{}}
	b.sessions.byID, b.sessions.early = map[string]*live{}, map[string]uint64{}
	b.budget.max = cfg.InFlightBytesMax
	if pacer, ok := ingest.(Pacer); ok {
		b.budget.allowance = pacer.Allowance
	}
	b.turns = newTurns(cfg.Limits)
	b.identities, b.alarms, b.devices = newLimiters(cfg.Limits.Identity), newLimiters(cfg.Limits.Identity), newLimiters(cfg.Limits.Device)
	b.halfOpen.max, b.halfOpen.freed = cfg.HalfOpenMax, make(chan struct{}, 1)
	b.buffers.size = cfg.ReadBufferBytes
	if reg != nil {
		if err := b.registerGauges(reg); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Start listens on all endpoints and serves until Drain or Close, or until ctx ends.
func (b *Broker) Start(ctx context.Context) error {
	for i := range b.cfg.Endpoints {
		e := &b.cfg.Endpoints[i]
		lc := net.ListenConfig{KeepAlive: -1} // probes only where MQTT has none, see probe
		l, err := lc.Listen(ctx, "tcp", e.Listen)
		if err != nil {
			return fmt.Errorf("listen for MQTT (%s) on %s (is another process using the port?): %w", e.name(), e.Listen, err)
		}
		if err := b.Serve(ctx, l, e); err != nil {
			return err
		}
	}
	return nil
}

// Serve accepts connections of l, which becomes the broker's, and returns at once.
// A nil endpoint is plain TCP.
func (b *Broker) Serve(ctx context.Context, l net.Listener, e *Endpoint) error {
	if e == nil {
		e = &Endpoint{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.draining.Load() {
		return errors.Join(errors.New("broker is closed"), l.Close())
	}
	if _, tcp := l.(*net.TCPListener); tcp && b.poller == nil {
		p, err := poll.New()
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return errors.Join(err, l.Close())
		}
		b.poller = p
	}
	ctx, cancel := context.WithCancel(ctx)
	before := b.cancel
	b.cancel = func() {
		cancel()
		if before != nil {
			before()
		}
	}
	b.listeners = append(b.listeners, l)
	context.AfterFunc(ctx, func() { _ = l.Close() }) // ends accept; closing twice is harmless
	b.running.Add(1)
	go b.accept(ctx, l, e)
	b.log.Info("mqtt listening", "addr", l.Addr().String(), "kind", e.name())
	return nil
}

// Addr is the address of the first listener, nil before Start.
func (b *Broker) Addr() net.Addr {
	if all := b.Addrs(); len(all) > 0 {
		return all[0]
	}
	return nil
}

// Addrs lists the listeners' addresses: Config.Listen, then the endpoints in their order.
func (b *Broker) Addrs() []net.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []net.Addr
	for _, l := range b.listeners {
		out = append(out, l.Addr())
	}
	return out
}

// Drain stops accepting connections and publishes, waits until every publish that
// was handed to ingest has been answered or ctx ends, and then tells MQTT 5 clients
// that the node goes (0x8B) and ends all connections; Close waits for the last bytes
// to be written. It reports how many publishes were left without an answer; their
// clients will send them again.
func (b *Broker) Drain(ctx context.Context) error {
	b.draining.Store(true)
	b.stopListening()
	var err error
	for b.unanswered.Load() > 0 && err == nil {
		select {
		case <-b.idle:
		case <-ctx.Done():
			err = fmt.Errorf("drain: %d publishes left unanswered: %w", b.unanswered.Load(), ctx.Err())
		}
	}
	for _, c := range b.all() {
		c.fail(packets.ErrServerShuttingDown)
	}
	return err
}

// Close ends all connections and waits for every goroutine of the broker.
func (b *Broker) Close() error {
	b.draining.Store(true)
	b.mu.Lock()
	already := b.closed
	b.closed = true
	cancel := b.cancel
	b.mu.Unlock()
	b.stopListening()
	if cancel != nil {
		cancel() // an authenticator may be waiting
	}
	for _, c := range b.all() {
		c.mu.Lock()
		c.failLocked(packets.ErrServerShuttingDown)
		c.abandonLocked()
		c.mu.Unlock()
	}
	b.running.Wait()
	if already {
		return nil
	}
	if b.poller == nil {
		return nil
	}
	return b.poller.Close()
}

func (b *Broker) stopListening() {
	b.mu.Lock()
	listeners := b.listeners
	b.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close() // ends accept; closing twice is harmless
	}
	b.halfOpen.closeAll()
}

func (b *Broker) all() []*conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]*conn, 0, len(b.conns))
	for c := range b.conns {
		out = append(out, c)
	}
	return out
}

// track counts a goroutine that Close must wait for; false when it is too late.
func (b *Broker) track() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.running.Add(1)
	return true
}

// elapsed is the time since the broker was made: an instant in a third of the bytes of
// a time.Time.
func (b *Broker) elapsed() time.Duration { return time.Since(b.started) }

// answered counts n publishes out of the FIFOs.
func (b *Broker) answered(n int) {
	if b.unanswered.Add(int64(-n)) == 0 && b.draining.Load() {
		select {
		case b.idle <- struct{}{}:
		default:
		}
	}
}

func (b *Broker) allow(c *conn, action Action, topic string) bool {
	return b.cfg.Authorizer == nil || b.cfg.Authorizer.Allow(c.identity, c.client, action, topic)
}

func (b *Broker) subscriptions() int64 { return b.subs.n.Load() }

// Stats is a snapshot of the broker's figures.
type Stats struct {
	Connections   int
	HalfOpen      int
	Sessions      int
	Subscriptions int
	InFlight      int    // publishes handed to ingest and not yet reported
	InFlightBytes int64  // their bytes
	Waiting       int64  // payload bytes read and not yet handed over
	Accepted      int64  // telemetry publishes handed to ingest since the start
	Refused       uint64 // telemetry publishes refused here, before ingest, since the start
	Acknowledged  int64  // telemetry publishes of QoS 1 and 2 answered since the start
}

// Stats returns the figures of this moment.
func (b *Broker) Stats() Stats {
	return Stats{Connections: int(b.connected.Load()), HalfOpen: b.halfOpen.len(), Sessions: b.sessions.len(),
		Subscriptions: int(b.subscriptions()), InFlight: int(b.inFlight.Load()),
		InFlightBytes: b.budget.used.Load(), Waiting: b.waitBytes.Load(), Accepted: b.accepted.Load(), Acknowledged: b.acked.Load(), Refused: b.refused.Load()}
}
