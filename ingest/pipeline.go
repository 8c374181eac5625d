package ingest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/zeebo/xxh3"

	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// Router sends a block to the leader of its shard. done is called exactly once,
// from any goroutine, possibly before Propose returns.
type Router interface {
	Propose(id telemetry.ShardID, block []byte, done func(shard.Result, error))
}

// Config of a Pipeline.
type Config struct {
	Origin string // peer id of this node
	Epoch  uint64 // of this process: larger than that of every earlier one with this Origin
	Shards uint32 // of the cluster
	// BytesOpenMax bounds the payload bytes of publishes without an outcome on
	// this node (default 256 MiB): what a shard without a leader may pile up.
	BytesOpenMax int64
	// Linger is the beat at which a busy node closes the blocks of all its shards
	// (default 2 ms), with a Target slower when commits take long. A message on an idle
	// node does not wait for it.
	Linger time.Duration
	// Target is how long a commit should take under load: Allowance follows from it.
	// 0 is no bound.
	Target time.Duration
}

// Validate returns every problem of the configuration.
func (c *Config) Validate() error {
	var errs []error
	if c.Origin == "" {
		errs = append(errs, errors.New("origin: peer id is empty"))
	}
	if c.Epoch == 0 || c.Epoch > epochMax {
		errs = append(errs, fmt.Errorf("epoch is %d, want 1 to %d", c.Epoch, uint64(epochMax)))
	}
	if c.Shards == 0 {
		errs = append(errs, errors.New("shards is 0: the cluster is not initialised"))
	}
	if c.BytesOpenMax <= 0 {
		errs = append(errs, fmt.Errorf("bytes_open_max is %d: use 268435456 for 256 MiB", c.BytesOpenMax))
	}
	if c.Linger < 0 || c.Linger > time.Second {
		errs = append(errs, fmt.Errorf("linger is %v: use 0 to 1s", c.Linger))
	}
	if c.Target < 0 || c.Target > TargetMax {
		errs = append(errs, fmt.Errorf("target is %v: use 0 for no bound, or up to %v", c.Target, TargetMax))
	}
	return errors.Join(errs...)
}

// TargetMax is the largest Target: less than what the front ends let a client wait for a commit.
const TargetMax = 5 * time.Second

// An origin's epoch is the process epoch above a count of resets: a shard that
// has forgotten this origin is talked to under a fresh number.
const (
	resetBits = 16
	epochMax  = 1<<(64-resetBits) - 1
	resetsMax = 1<<resetBits - 1
)

// Pipeline is the ingest path of one node.
type Pipeline struct {
	logger   *slog.Logger
	metrics  *metrics
	cfg      Config
	router   Router
	queues   []*queue
	beat     beat
	parsers  sync.Pool
	open     atomic.Int64 // payload bytes without an outcome
	pending  atomic.Int64 // publishes without an outcome
	refused  atomic.Uint64
	draining atomic.Bool
	clock    atomic.Int64 // the latest time given by tick
	pace     *pace
	watched  atomic.Int64 // unix ms when stalled shards were last looked for
}

// parser is a scanner with the memory it fills.
type parser struct {
	scanner  *telemetry.Scanner
	messages []telemetry.Message
}

// New returns a Pipeline; it starts no goroutine.
func New(logger *slog.Logger, reg prometheus.Registerer, cfg Config, router Router) (*Pipeline, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure ingest: %w", err)
	}
	p := &Pipeline{logger: logger, metrics: newMetrics(reg), cfg: cfg, router: router, pace: newPace(cfg.Target, cfg.Shards)}
	p.parsers.New = func() any { return &parser{scanner: telemetry.NewScanner()} }
	p.beat.every = func() time.Duration { return p.pace.beat(cfg.Linger) }
	p.registerGauges(reg)
	for id := range cfg.Shards {
		p.queues = append(p.queues, newQueue(p, telemetry.ShardID(id)))
	}
	return p, nil
}

// Publish takes one publish. done is called exactly once, from any goroutine,
// possibly before Publish returns; it must not block.
func (p *Pipeline) Publish(pub *telemetry.Publish, done func(telemetry.Result)) {
	size := pub.Cost()
	p.pending.Add(1) // before the look at draining, so that Drain cannot miss it
	if p.draining.Load() {
		p.pending.Add(-1)
		done(telemetry.Result{Unknown: 1, Reason: "this node stops or drains: use another one"})
		return
	}
	if p.open.Add(size) > p.cfg.BytesOpenMax {
		t := &publication{pipeline: p, size: size, done: done}
		t.result.Reason = "node holds as much unacknowledged data as it may"
		t.refuse(telemetry.RefusalQuota)
		return
	}
	ps := p.parsers.Get().(*parser)
	defer p.parsers.Put(ps)
	msgs, err := ps.scanner.Parse(pub.Device, pub.Payload, pub.Received, ps.messages[:0])
	ps.messages = msgs
	t := &publication{pipeline: p, size: size, done: done, open: len(msgs), token: pub.Token}
	switch {
	case err != nil:
		t.result.Reason = err.Error()
		t.refuse(telemetry.RefusalTopic)
		return
	case len(msgs) == 0: // an empty array: nothing to store, nothing to refuse
		t.finish()
		return
	}
	p.identify(pub, msgs)
	for i := range msgs {
		if t.result.Reason == "" {
			t.result.Reason = msgs[i].Reason
		}
	}
	for i := range msgs {
		more := i+1 < len(msgs) && msgs[i+1].Device == msgs[i].Device
		p.queues[p.home(pub, &msgs[i])].add(&msgs[i], t, more)
	}
}

// home is the shard of a message: its device's, or its topic's when nobody can
// say which device it is about.
func (p *Pipeline) home(pub *telemetry.Publish, m *telemetry.Message) telemetry.ShardID {
	key := m.Device
	if key == "" {
		key = pub.Topic
	}
	return telemetry.ShardOf(key, p.cfg.Shards)
}

// identify gives messages without a time of their own, and quarantined ones, the
// key by which a redelivery is recognised, and quarantined ones their topic.
func (p *Pipeline) identify(pub *telemetry.Publish, msgs []telemetry.Message) {
	for i := range msgs {
		m := &msgs[i]
		if m.Reason != "" {
			m.Topic = pub.Topic
		}
		if m.NoTime {
			// Two messages that were received in the same microsecond must not
			// look like one: their time is all that tells them apart.
			m.Received = p.tick(m.Received)
			m.Time = m.Received
		}
		overHTTP := pub.Topic == ""
		if !m.NoTime && m.Reason == "" || pub.Client == "" || pub.QoS == 0 && !overHTTP {
			continue
		}
		m.Retry = pub.Dup
		m.Dup = dupKey(pub, i)
	}
}

// tick gives every message without a time of its own a time of its own: that of
// its receipt, or the microsecond behind the one given last.
func (p *Pipeline) tick(received int64) int64 {
	for {
		last := p.clock.Load()
		next := max(received, last+1)
		if p.clock.CompareAndSwap(last, next) {
			return next
		}
	}
}

// dupKey hashes what a redelivered publish repeats: client id, packet id and
// payload; the position tells the elements of an array apart.
func dupKey(pub *telemetry.Publish, position int) telemetry.DupKey {
	h := xxh3.HashString128(pub.Client)
	var b [20]byte
	binary.LittleEndian.PutUint64(b[:], h.Lo)
	binary.LittleEndian.PutUint64(b[8:], h.Hi)
	binary.LittleEndian.PutUint16(b[16:], pub.PacketID)
	binary.LittleEndian.PutUint16(b[18:], uint16(position))
	seed := xxh3.Hash(b[:])
	k := telemetry.DupKey(xxh3.Hash128Seed(pub.Payload, seed).Bytes())
	k[0] |= 1 // never the zero key, which means none
	return k
}

// Refused is how many messages this node has refused since it started.
func (p *Pipeline) Refused() uint64 { return p.refused.Load() }

// Open is how many publishes have no outcome yet.
func (p *Pipeline) Open() int64 { return p.pending.Load() }

// Allowance is how many bytes of telemetry, by Publish.Cost, this node should have in
// flight at most: it follows what commits take. What waits for a shard that does not
// answer does not count. Who lets publishes wait for it asks again and again: it is
// here that such shards are noticed.
func (p *Pipeline) Allowance() int64 {
	now := time.Now()
	if last := p.watched.Load(); now.UnixMilli()-last >= watchEvery && p.watched.CompareAndSwap(last, now.UnixMilli()) {
		for _, q := range p.queues {
			q.watch(now)
		}
	}
	return p.pace.allowance()
}

const watchEvery = 100 // ms

// drainPoll is how often Drain looks whether everything has an outcome.
const drainPoll = 5 * time.Millisecond

// Drain refuses new publishes and waits until every open one has its outcome,
// or ctx ends: then the rest stays unknown to its publishers.
func (p *Pipeline) Drain(ctx context.Context) error {
	p.draining.Store(true)
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for p.pending.Load() > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("drain ingest with %d publishes open: %w", p.pending.Load(), ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// Close stops the timers and gives up what has no outcome: its publishers hear
// that nobody knows.
func (p *Pipeline) Close() {
	p.draining.Store(true)
	p.beat.stop()
	for _, q := range p.queues {
		q.stop()
	}
}

// publication is one publish on its way; its messages may go to many shards.
type publication struct {
	pipeline *Pipeline
	size     int64
	done     func(telemetry.Result)

	mu     sync.Mutex
	open   int // messages without an outcome
	token  bool
	held   bool // a shard that it waits for is stalled
	result telemetry.Result
}

// settleAt is settle for a message whose block became durable at w.
func (t *publication) settleAt(o telemetry.Outcome, w telemetry.Write) {
	if t.token && w.Index > 0 {
		t.mu.Lock()
		t.result.Writes = telemetry.AddWrite(t.result.Writes, w)
		t.mu.Unlock()
	}
	t.settle(o)
}

// settle records the outcome of one message and reports with the last one.
func (t *publication) settle(o telemetry.Outcome) {
	t.mu.Lock()
	switch o {
	case telemetry.Applied:
		t.result.Applied++
	case telemetry.Duplicate:
		t.result.Duplicate++
	case telemetry.Quarantined:
		t.result.Quarantined++
	case telemetry.Refused:
		t.result.Refused++
	default:
		t.result.Unknown++
	}
	t.open--
	last := t.open == 0
	t.mu.Unlock()
	if last {
		t.finish()
	}
}

func (t *publication) refuse(r telemetry.Refusal) {
	t.result.Refused, t.result.Refusal = 1, r
	t.finish()
}

func (t *publication) finish() {
	p := t.pipeline
	p.open.Add(-t.size)
	p.refused.Add(uint64(t.result.Refused))
	p.metrics.result(&t.result)
	p.pace.finished(t)
	t.done(t.result)
	p.pending.Add(-1) // last: Drain returns when everybody has heard
}
