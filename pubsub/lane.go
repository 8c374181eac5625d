package pubsub

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// lane is this node's operations for one shard, in one stream of batches for what is
// done with sessions, one for urgent messages and one for all other messages: none of
// them waits for a batch of another.
type lane struct {
	hub   *Hub
	shard telemetry.ShardID

	mu      sync.Mutex
	size    int // bytes that wait, in all streams
	streams [streamKinds]stream
}

// stream sends one batch after the other: what comes while one is under way makes the
// next, so the order is kept. A batch is sent until its answer is known, with the same
// number, so that the shard applies it once.
type stream struct {
	lane   *lane
	origin string // under which the shard counts the batches

	// of lane.mu
	queue []operation
	busy  bool
	seq   uint64
}

type operation struct {
	body []byte
	done func(session.Answer, error) // may be nil; never blocks
	now  func() []byte               // body as it is to be sent now; nil where time does not change it
}

// The streams of a lane. Nothing relies on an order between them: who does something
// with a session or a message because of something else waits for its answer.
const (
	ofSessions = iota
	ofUrgent
	ofBulk
	streamKinds
)

// streamNames make an origin of its own of each stream.
var streamNames = [streamKinds]string{"", "+urgent", "+bulk"}

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
	h.submitTo(ofSessions, id, body, done)
}

// submitMessage queues an operation that brings a message, in the class of its topic;
// done is called as by submit, in the order within that class.
func (h *Hub) submitMessage(urgent bool, id telemetry.ShardID, body []byte, done func(session.Answer, error)) {
	kind := ofBulk
	if urgent {
		kind = ofUrgent
	}
	h.submitTo(kind, id, body, done)
}

func (h *Hub) submitTo(kind int, id telemetry.ShardID, body []byte, done func(session.Answer, error)) {
	h.queue(kind, id, operation{body: body, done: done})
}

func (h *Hub) queue(kind int, id telemetry.ShardID, op operation) {
	l := h.lane(id)
	if l == nil {
		fail(op.done, errClosed)
		return
	}
	bound := laneBytesMax
	if kind == ofBulk {
		bound -= bound / 4 // room for the others, however much of it waits
	}
	l.mu.Lock()
	if l.size+len(op.body) > bound {
		l.mu.Unlock()
		fail(op.done, ErrBusy)
		return
	}
	s := &l.streams[kind]
	s.queue = append(s.queue, op)
	l.size += len(op.body)
	start := !s.busy
	s.busy = true
	l.mu.Unlock()
	if start && !h.spawn(s.run) {
		s.end()
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
		for i := range l.streams {
			l.streams[i] = stream{lane: l, origin: h.cfg.Self + streamNames[i]}
		}
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
func (s *stream) run() {
	for {
		s.lane.mu.Lock()
		batch := s.take()
		if len(batch) == 0 {
			s.busy = false
			s.lane.mu.Unlock()
			return
		}
		s.seq++
		seq := s.seq
		s.lane.mu.Unlock()
		if !s.send(batch, seq) {
			failAll(batch)
			s.end()
			return
		}
	}
}

// take takes as much as fits into a batch. lane.mu is held.
func (s *stream) take() []operation {
	n, size := 0, 0
	for n < len(s.queue) && n < batchMax && (n == 0 || size+len(s.queue[n].body) <= batchBytesMax) {
		size += len(s.queue[n].body)
		n++
	}
	batch := slices.Clone(s.queue[:n])
	clear(s.queue[:n]) // the array lives on
	if s.queue = s.queue[n:]; len(s.queue) == 0 {
		s.queue = nil
	}
	s.lane.size -= size
	return batch
}

// end refuses what waits: the hub stops.
func (s *stream) end() {
	s.lane.mu.Lock()
	rest := s.queue
	s.queue, s.busy = nil, false
	for i := range rest {
		s.lane.size -= len(rest[i].body)
	}
	s.lane.mu.Unlock()
	failAll(rest)
}

func failAll(ops []operation) {
	for _, op := range ops {
		fail(op.done, errClosed)
	}
}

// send takes one batch to the leader, whoever that is, until it is answered; false
// when the hub stops first.
func (s *stream) send(batch []operation, seq uint64) bool {
	hub := s.lane.hub
	bodies := make([][]byte, len(batch))
	type result struct {
		answer []byte
		err    error
	}
	for pause := laneRetryMin; ; pause = min(2*pause, laneRetryMax) {
		results := make(chan result, 1)
		body := session.AppendBatch(nil, s.origin, hub.cfg.Epoch, seq, render(bodies, batch))
		hub.shards.Submit(s.lane.shard, body, func(answer []byte, err error) { results <- result{answer, err} })
		select {
		case r := <-results:
			if r.err == nil {
				conclude(batch, r.answer)
				return true
			}
			hub.log.Debug("session operations not committed yet", "shard", s.lane.shard, "err", r.err)
		case <-hub.ctx.Done():
			return false
		}
		select {
		case <-time.After(pause):
		case <-hub.ctx.Done():
			return false
		}
	}
}

// render fills bodies with what the operations of a batch are now.
func render(bodies [][]byte, batch []operation) [][]byte {
	for i, op := range batch {
		if bodies[i] = op.body; op.now != nil {
			bodies[i] = op.now()
		}
	}
	return bodies
}

func conclude(batch []operation, body []byte) {
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
		busy := slices.ContainsFunc(l.streams[:], func(s stream) bool { return s.busy })
		l.mu.Unlock()
		if busy {
			return false
		}
	}
	return true
}
