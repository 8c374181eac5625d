package pubsub

import (
	"errors"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/internal/precedence"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// lane is this node's operations for one shard: one batch is under way, the others
// gather behind it and make the next. A batch is sent until its answer is known, with
// the same number, so that the shard applies it once. What is done with sessions, and
// urgent messages, passes bulk messages; within either class the order is kept.
type lane struct {
	hub   *Hub
	shard telemetry.ShardID

	mu    sync.Mutex
	queue precedence.Queue[operation]
	busy  bool
	seq   uint64
}

type operation struct {
	body []byte
	done func(session.Answer, error) // may be nil; never blocks
}

// ErrBusy answers an operation when too many wait for a shard already.
var ErrBusy = errors.New("too many operations wait for the shard")

const (
	laneBytesMax  = 32 << 20 // waiting for one shard: what a node takes in while a leader is elected
	batchMax      = 512      // operations
	batchBytesMax = 512 << 10
	laneRetryMin  = 10 * time.Millisecond
	laneRetryMax  = 250 * time.Millisecond
)

// submit queues an operation of a session. done is called exactly once, in the order
// of submission: with the shard's answer, or with ErrBusy or the hub's end.
func (h *Hub) submit(id telemetry.ShardID, body []byte, done func(session.Answer, error)) {
	h.submitAs(true, id, body, done)
}

// submitAs queues an operation that brings a message, in the class of its topic.
func (h *Hub) submitAs(urgent bool, id telemetry.ShardID, body []byte, done func(session.Answer, error)) {
	l := h.lane(id)
	if l == nil {
		fail(done, errClosed)
		return
	}
	l.mu.Lock()
	if !l.queue.Push(operation{body, done}, len(body), urgent, laneBytesMax) {
		l.mu.Unlock()
		fail(done, ErrBusy)
		return
	}
	start := !l.busy
	l.busy = true
	l.mu.Unlock()
	if start && !h.spawn(l.run) {
		l.end()
	}
}

func fail(done func(session.Answer, error), err error) {
	if done != nil {
		done(session.Answer{}, err)
	}
}

var errClosed = errors.New("the node stops")

func (h *Hub) lane(id telemetry.ShardID) *lane {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return nil
	}
	l := h.lanes[id]
	if l == nil {
		l = &lane{hub: h, shard: id}
		h.lanes[id] = l
	}
	return l
}

// spawn runs f on a goroutine that Close waits for; false when it is too late.
func (h *Hub) spawn(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return false
	}
	h.done.Go(f)
	return true
}

// run sends batches until nothing is left.
func (l *lane) run() {
	for {
		l.mu.Lock()
		batch := l.take()
		if len(batch) == 0 {
			l.busy = false
			l.mu.Unlock()
			return
		}
		l.seq++
		seq := l.seq
		l.mu.Unlock()
		if !l.send(batch, seq) {
			for _, op := range batch {
				fail(op.done, errClosed)
			}
			l.end()
			return
		}
	}
}

// take takes as much as fits into a batch. mu is held.
func (l *lane) take() (batch []operation) {
	size := 0
	for next, ok := l.queue.Next(); ok && len(batch) < batchMax && (len(batch) == 0 || size+next <= batchBytesMax); next, ok = l.queue.Next() {
		size += next
		batch = append(batch, l.queue.Pop())
	}
	return batch
}

// end refuses what waits: the hub stops.
func (l *lane) end() {
	l.mu.Lock()
	var rest []operation
	for l.queue.Len() > 0 {
		rest = append(rest, l.queue.Pop())
	}
	l.busy = false
	l.mu.Unlock()
	for _, op := range rest {
		fail(op.done, errClosed)
	}
}

// send takes one batch to the leader, whoever that is, until it is answered; false
// when the hub stops first.
func (l *lane) send(batch []operation, seq uint64) bool {
	bodies := make([][]byte, len(batch))
	for i := range batch {
		bodies[i] = batch[i].body
	}
	body := session.AppendBatch(nil, l.hub.cfg.Self, l.hub.cfg.Epoch, seq, bodies)
	type result struct {
		answer []byte
		err    error
	}
	for pause := laneRetryMin; ; pause = min(2*pause, laneRetryMax) {
		results := make(chan result, 1)
		l.hub.shards.Submit(l.shard, body, func(answer []byte, err error) { results <- result{answer, err} })
		select {
		case r := <-results:
			if r.err == nil {
				l.conclude(batch, r.answer)
				return true
			}
			l.hub.log.Debug("session operations not committed yet", "shard", l.shard, "err", r.err)
		case <-l.hub.ctx.Done():
			return false
		}
		select {
		case <-time.After(pause):
		case <-l.hub.ctx.Done():
			return false
		}
	}
}

func (l *lane) conclude(batch []operation, body []byte) {
	answers, err := session.DecodeAnswers(body)
	if err == nil && len(answers) != len(batch) {
		err = errors.New("the shard does not know the batch any more")
	}
	for i, op := range batch {
		switch {
		case op.done == nil:
		case err != nil:
			op.done(session.Answer{}, err)
		default:
			op.done(answers[i], nil)
		}
	}
}

// idle reports whether nothing waits for any shard.
func (h *Hub) idle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.lanes {
		l.mu.Lock()
		busy := l.busy
		l.mu.Unlock()
		if busy {
			return false
		}
	}
	return true
}
