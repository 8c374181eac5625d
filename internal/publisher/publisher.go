package publisher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// ErrClosed ends publishes that were not answered when the Publisher was
// closed: what became of them is not known.
var ErrClosed = errors.New("publisher is closed")

// ErrFull says that the window is full.
var ErrFull = errors.New("window of unanswered publishes is full")

// ErrTooLarge ends a publish that is larger than the broker takes; it was not
// sent.
var ErrTooLarge = errors.New("publish is larger than the broker takes")

// Reason codes of PUBACK that callers tell apart.
const (
	ReasonQuarantined = packets.PubackPayloadFormatInvalid // 0x99: durable, but in quarantine
	ReasonTopic       = packets.PubackTopicNameInvalid     // 0x90: device id not acceptable
	reasonQuota       = packets.PubackQuotaExceeded
	reasonFailure     = 0x80 // this and above are refusals
)

// Result is the answer to one publish.
type Result struct {
	Reason  byte          // of the PUBACK, below 0x80 is success
	Text    string        // the broker's reason, may be empty
	Latency time.Duration // from Publish to the answer
	Sends   int           // how often it was sent
	Err     error         // no answer: ErrClosed or ErrTooLarge
}

// OK reports whether the cluster has taken the message as telemetry.
func (r *Result) OK() bool { return r.Err == nil && r.Reason < reasonFailure }

// Stats are counters since New.
type Stats struct {
	Accepted   int64 // by Publish
	Answered   int64 // with any PUBACK that is final
	Resent     int64 // after a connection was lost
	Quota      int64 // answered 0x97 and put back
	Connects   int64 // connections that were accepted
	Disconnect int64 // connections lost or given up
}

// item is one accepted publish. Its fields belong to whoever holds it by the
// rules of Publisher.mu, except topic and payload, which do not change.
type item struct {
	topic    string
	payload  []byte
	done     func(Result)
	accepted time.Time
	sentAt   time.Time // on the current connection
	due      time.Time // not to be sent earlier (after 0x97)
	id       uint16
	sends    int
	dup      bool // it may have reached a broker already
}

// Publisher publishes over one connection at a time.
type Publisher struct {
	logger *slog.Logger
	cfg    Config
	slots  chan struct{} // one element per publish accepted and not answered
	wake   chan struct{} // something for the sender to look at
	stop   context.CancelFunc
	ended  chan struct{} // the sender has ended

	connects, disconnects atomic.Int64

	mu     sync.Mutex
	queue  []*item // in the order of Publish; queue[:sent] are on the current connection
	sent   int
	ids    map[uint16]*item // of queue and paused
	open   int              // accepted and done not yet called
	paused []*item          // answered 0x97
	nextID uint16
	closed bool
	idle   chan struct{} // closed when nothing is left unanswered; nil when nobody waits
	up     chan struct{} // closed while connected
	lost   error         // why there is no connection
	stats  Stats
}

// New starts a Publisher; it connects in the background.
func New(logger *slog.Logger, cfg Config) (*Publisher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.defaults()
	ctx, stop := context.WithCancel(context.Background())
	p := &Publisher{
		logger: logger, cfg: cfg, stop: stop, nextID: cfg.FirstPacketID,
		slots: make(chan struct{}, cfg.Window), wake: make(chan struct{}, 1), ended: make(chan struct{}),
		ids: map[uint16]*item{}, up: make(chan struct{}), lost: errors.New("not connected yet"),
	}
	go p.run(ctx)
	return p, nil
}

// Publish accepts one publish and waits while the window is full. It keeps the
// payload until done, which is called once, from another goroutine, and must
// not block. An error means that the publish was not accepted.
func (p *Publisher) Publish(ctx context.Context, topic string, payload []byte, done func(Result)) error {
	return p.publish(ctx, topic, payload, false, done)
}

// Repeat is Publish for something that an earlier run may have sent already
// with the same client id and packet id: it goes out with DUP from the start.
func (p *Publisher) Repeat(ctx context.Context, topic string, payload []byte, done func(Result)) error {
	return p.publish(ctx, topic, payload, true, done)
}

func (p *Publisher) publish(ctx context.Context, topic string, payload []byte, dup bool, done func(Result)) error {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-p.ended:
		return ErrClosed
	}
	return p.accept(&item{topic: topic, payload: payload, dup: dup, done: done, accepted: time.Now()})
}

// TryPublish is Publish without the wait: ErrFull when the window is full.
func (p *Publisher) TryPublish(topic string, payload []byte, done func(Result)) error {
	select {
	case p.slots <- struct{}{}:
	default:
		return ErrFull
	}
	return p.accept(&item{topic: topic, payload: payload, done: done, accepted: time.Now()})
}

// accept queues an item for which a slot is held.
func (p *Publisher) accept(it *item) error {
	if len(it.topic) > topicBytesMax {
		<-p.slots
		return ErrTooLarge
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		<-p.slots
		return ErrClosed
	}
	for p.ids[p.nextID] != nil || p.nextID == 0 {
		p.nextID++
	}
	it.id = p.nextID
	p.nextID++
	p.ids[it.id] = it
	p.queue = append(p.queue, it)
	p.open++
	p.stats.Accepted++
	p.mu.Unlock()
	p.poke()
	return nil
}

// poke wakes the sender.
func (p *Publisher) poke() {
	select {
	case p.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Connected waits for a connection; the error says why there is none.
func (p *Publisher) Connected(ctx context.Context) error {
	p.mu.Lock()
	up := p.up
	p.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-p.ended:
		return ErrClosed
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		return fmt.Errorf("%w: %w", ctx.Err(), p.lost)
	}
}

// Err is why there is no connection right now, nil while there is one.
func (p *Publisher) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// Flush waits until done has returned for everything accepted so far, and since.
func (p *Publisher) Flush(ctx context.Context) error {
	p.mu.Lock()
	if p.open == 0 {
		p.mu.Unlock()
		return nil
	}
	if p.idle == nil {
		p.idle = make(chan struct{})
	}
	idle := p.idle
	p.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-p.ended:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// InFlight is how many publishes are accepted and not answered.
func (p *Publisher) InFlight() int { return len(p.slots) }

// Stats returns the counters.
func (p *Publisher) Stats() Stats {
	p.mu.Lock()
	s := p.stats
	p.mu.Unlock()
	s.Connects, s.Disconnect = p.connects.Load(), p.disconnects.Load()
	return s
}

// Close says good-bye and waits for both goroutines. Publishes without an
// answer end with ErrClosed.
func (p *Publisher) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	<-p.ended
	p.mu.Lock()
	left := p.queue
	left = append(left, p.paused...)
	p.queue, p.paused, p.sent = nil, nil, 0
	clear(p.ids)
	p.mu.Unlock()
	for _, it := range left {
		p.finish(it, Result{Err: ErrClosed})
	}
	return nil
}

// finish tells the caller; it is in no list any more.
func (p *Publisher) finish(it *item, r Result) {
	r.Latency, r.Sends = time.Since(it.accepted), it.sends
	<-p.slots
	it.done(r)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	if p.open == 0 && p.idle != nil {
		close(p.idle)
		p.idle = nil
	}
}

// answer takes the broker's word on a packet id.
func (p *Publisher) answer(id uint16, reason byte, text string) error {
	p.mu.Lock()
	it := p.ids[id]
	at := -1
	if it != nil {
		at = slices.Index(p.queue[:p.sent], it)
	}
	if at < 0 {
		p.mu.Unlock()
		return fmt.Errorf("broker acknowledged packet id %d, which is not under way", id)
	}
	p.remove(at)
	p.sent--
	if reason == reasonQuota {
		// A negative answer ends the exchange: what follows is a new publish.
		it.due, it.dup = time.Now().Add(p.cfg.QuotaPause), false
		p.paused = append(p.paused, it)
		p.stats.Quota++
		p.mu.Unlock()
		return nil
	}
	delete(p.ids, id)
	p.stats.Answered++
	p.mu.Unlock()
	p.finish(it, Result{Reason: reason, Text: text})
	return nil
}

// remove takes the item at i out of the queue; mu is held. Answers come in
// order, so that i is nearly always 0.
func (p *Publisher) remove(i int) {
	if i == 0 {
		p.queue[0] = nil
		p.queue = p.queue[1:]
		return
	}
	p.queue = slices.Delete(p.queue, i, i+1)
}
