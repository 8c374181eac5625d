package ingest

import (
	"slices"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// A block closes at blockMessagesMax messages or blockBytesMax of raw columns.
// Larger blocks compress little better and make everybody in them wait.
const (
	blockMessagesMax = 512
	blockBytesMax    = 64 << 10
	// inFlightMax is how many blocks of one shard are under way at once: one
	// commits, one travels, one waits at the leader. The state machine remembers
	// the answers of more than that.
	inFlightMax = 8
	// idlePublishes is how many publishes may be open on the node for a block to
	// be sealed without waiting for a beat: nobody else is about to share it.
	idlePublishes = 8
	// Resends begin quickly, because a change of leader takes 100 ms at best.
	retryMin = 10 * time.Millisecond
	retryMax = 200 * time.Millisecond
)

// waiter is who waits for the message at its position in a block.
type waiter = *publication

// sealed is a block on its way.
type sealed struct {
	seq     uint64
	data    []byte
	waiters []waiter
	at      time.Time
	opened  time.Time // when it got its first message
}

// queue gathers and sends the blocks of one shard.
type queue struct {
	pipeline *Pipeline
	id       telemetry.ShardID

	mu      sync.Mutex
	builder *block.Builder
	waiters []waiter
	opened  time.Time // when the block being gathered got its first message
	resets  uint64    // of the epoch
	seq     uint64    // of the last block sealed
	blocks  []*sealed // without an answer, in sequence
	sent    int       // blocks[:sent] are under way in this generation
	gen     uint64    // raised when everything must be sent again
	marked  bool      // the next beat closes the block being gathered
	backoff time.Duration
	waiting bool // the retry timer is armed
	retry   *time.Timer
	stopped bool
	pumping bool      // a goroutine is in pump
	heard   time.Time // when the shard last answered, or had nothing to answer before
	stalled bool      // it has not for too long
	spare   [][]waiter
	failed  []waiter // of blocks that could not be encoded; pump settles them
}

func newQueue(p *Pipeline, id telemetry.ShardID) *queue {
	return &queue{pipeline: p, id: id, builder: block.NewBuilder()}
}

// add takes one message; it copies what it keeps. more promises that another one
// of the same publish follows, so that an array is not torn apart.
func (q *queue) add(m *telemetry.Message, t waiter, more bool) {
	q.mu.Lock()
	if q.stopped {
		q.mu.Unlock()
		t.settle(telemetry.Unknown)
		return
	}
	now := time.Now()
	if q.builder.Len() == 0 {
		q.opened = now
	}
	q.builder.Add(m)
	q.waiters = append(q.waiters, t)
	if q.stalled {
		q.pipeline.pace.hold(t)
	}
	switch {
	case q.builder.Len() >= blockMessagesMax || q.builder.Size() >= blockBytesMax:
		q.seal(now)
	case more:
	case len(q.blocks) == 0 && q.pipeline.pending.Load() <= idlePublishes:
		q.seal(now)
	default:
		q.mark()
	}
	q.mu.Unlock()
	q.pump()
}

// mark leaves the block being gathered to the next beat, unless as many blocks
// are under way as may be: then an answer marks it. mu is held.
func (q *queue) mark() {
	if !q.marked && len(q.blocks) < inFlightMax {
		q.marked = true
		q.pipeline.beat.mark(q)
	}
}

// close seals what has been gathered since the beat before.
func (q *queue) close() {
	q.mu.Lock()
	q.marked = false
	if q.builder.Len() > 0 && len(q.blocks) < inFlightMax && !q.stopped {
		q.seal(time.Now())
	}
	q.mu.Unlock()
	q.pump()
}

// seal closes the block being gathered. mu is held.
func (q *queue) seal(now time.Time) {
	q.seq++
	h := block.Header{
		Origin: q.pipeline.cfg.Origin, Epoch: q.pipeline.cfg.Epoch<<resetBits | q.resets,
		Seq: q.seq, Shard: q.id,
	}
	data, err := q.builder.Append(nil, h)
	q.builder.Reset()
	waiters := q.waiters
	q.waiters = nil
	if n := len(q.spare); n > 0 {
		q.waiters, q.spare = q.spare[n-1], q.spare[:n-1]
	}
	if err != nil {
		// Nothing was sent under this number. The messages came from our own
		// parser, so this is a defect and not a client's mistake.
		q.seq--
		q.pipeline.logger.Error("encode block", "shard", q.id, "err", err)
		q.failed = append(q.failed, waiters...)
		return
	}
	q.pipeline.metrics.sealed(len(waiters), len(data), now.Sub(q.opened))
	if len(q.blocks) == 0 {
		q.heard = now
	}
	q.blocks = append(q.blocks, &sealed{seq: q.seq, data: data, waiters: waiters, at: now, opened: q.opened})
}

// transmission is a block to be sent outside of mu.
type transmission struct {
	b   *sealed
	gen uint64
}

// next takes the blocks that may be sent now. mu is held.
func (q *queue) next() []transmission {
	if q.waiting || q.stopped {
		return nil
	}
	var out []transmission
	for q.sent < len(q.blocks) && q.sent < inFlightMax {
		out = append(out, transmission{q.blocks[q.sent], q.gen})
		q.sent++
	}
	return out
}

// pump hands blocks to the router. One goroutine at a time does so, because
// what overtakes would be answered with a gap and have to be sent again.
func (q *queue) pump() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.failed) > 0 {
		failed := q.failed
		q.failed = nil
		q.mu.Unlock()
		settleAll(failed, telemetry.Refused)
		q.mu.Lock()
	}
	if q.pumping {
		return
	}
	q.pumping = true
	for ts := q.next(); len(ts) > 0; ts = q.next() {
		q.mu.Unlock()
		for _, t := range ts {
			q.pipeline.router.Propose(q.id, t.b.data, func(res shard.Result, err error) { q.answered(t, res, err) })
		}
		q.mu.Lock()
	}
	q.pumping = false
}

// answered takes the answer to one transmission.
func (q *queue) answered(t transmission, res shard.Result, err error) {
	q.mu.Lock()
	var finished []*sealed
	var outcome telemetry.Outcome
	switch {
	case err != nil:
		if t.gen == q.gen {
			q.later()
		}
	case res.Status == shard.StatusApplied:
		q.backoff = 0
		if finished, outcome = q.resolve(t.b), telemetry.Applied; finished != nil {
			q.hear(time.Now(), t.b)
		}
	case res.Status == shard.StatusInvalid:
		finished, outcome = q.resolve(t.b), telemetry.Refused
	case res.Status == shard.StatusGap && t.gen == q.gen:
		if len(q.blocks) > 0 && res.Next < q.blocks[0].seq {
			finished = q.reset() // the shard has forgotten this origin
		} else {
			q.later()
		}
	case res.Status == shard.StatusUnknown && t.gen == q.gen:
		finished = q.reset()
	}
	if q.builder.Len() > 0 {
		q.mark()
	}
	q.mu.Unlock()
	q.pump()
	for _, b := range finished {
		q.settle(b, outcome, res)
	}
}

// hear takes note that the shard has committed a block. mu is held.
func (q *queue) hear(now time.Time, b *sealed) {
	q.heard = now
	if q.stalled { // what has waited for it says nothing about the load
		q.stalled = false
		return
	}
	q.pipeline.pace.answered(now, len(b.waiters), now.Sub(b.opened))
}

// watch notices that the shard does not answer any more. What waits for it, and what
// comes meanwhile, is held apart, so that it does not keep out what is for others.
func (q *queue) watch(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stalled || len(q.blocks) == 0 || now.Sub(q.heard) < q.pipeline.pace.stallAfter() {
		return
	}
	q.stalled = true
	for _, b := range q.blocks {
		for _, t := range b.waiters {
			q.pipeline.pace.hold(t)
		}
	}
	for _, t := range q.waiters {
		q.pipeline.pace.hold(t)
	}
}

// resolve takes an answered block out of the queue; nil when an earlier
// transmission of it was answered before. mu is held.
func (q *queue) resolve(b *sealed) []*sealed {
	for i, x := range q.blocks {
		if x == b {
			q.blocks = slices.Delete(q.blocks, i, i+1)
			if i < q.sent {
				q.sent--
			}
			return []*sealed{b}
		}
	}
	return nil
}

// later sends everything again after a pause. mu is held.
func (q *queue) later() {
	q.gen++
	q.sent = 0
	if q.waiting {
		return
	}
	q.pipeline.metrics.resends.Inc()
	q.backoff = min(max(2*q.backoff, retryMin), retryMax)
	q.waiting = true
	if q.retry == nil {
		q.retry = time.AfterFunc(q.backoff, q.resend)
	} else {
		q.retry.Reset(q.backoff)
	}
}

func (q *queue) resend() {
	q.mu.Lock()
	q.waiting = false
	q.mu.Unlock()
	q.pump()
}

// reset gives up what is under way, whose fate nobody can tell any more, and
// begins a new epoch. mu is held. Without another number for one, the queue ends
// instead: a number used twice would be answered with another block's outcomes.
func (q *queue) reset() []*sealed {
	given := q.blocks
	q.blocks, q.sent, q.seq = nil, 0, 0
	q.gen++
	if q.resets == resetsMax {
		q.stopped = true
		q.pipeline.logger.Error("shard refuses every epoch of this node: restart it", "shard", q.id, "resets", q.resets)
		given = append(given, &sealed{waiters: q.waiters, at: q.opened})
		q.waiters = nil
		q.builder.Reset()
		return given
	}
	q.resets++
	q.pipeline.logger.Warn("shard does not know this node's blocks any more, beginning a new epoch", "shard", q.id, "blocks", len(given))
	return given
}

// settle reports a finished block to everybody in it.
func (q *queue) settle(b *sealed, all telemetry.Outcome, res shard.Result) {
	each, at := res.Outcomes, telemetry.Write{Shard: q.id, Index: res.Index}
	q.pipeline.metrics.committed(time.Since(b.at))
	for i, t := range b.waiters {
		o := all
		if all == telemetry.Applied && each != nil {
			if o = telemetry.Unknown; i < len(each) { // a list cut short says nothing about the rest
				o = each[i]
			}
		}
		t.settleAt(o, at)
	}
	clear(b.waiters)
	q.mu.Lock()
	if len(q.spare) < inFlightMax {
		q.spare = append(q.spare, b.waiters[:0])
	}
	q.mu.Unlock()
}

func settleAll(waiters []waiter, o telemetry.Outcome) {
	for _, t := range waiters {
		t.settle(o)
	}
}

// stop gives up what has no outcome.
func (q *queue) stop() {
	q.mu.Lock()
	q.stopped = true
	if q.retry != nil {
		q.retry.Stop()
	}
	given := q.waiters
	for _, b := range q.blocks {
		given = append(given, b.waiters...)
	}
	q.blocks, q.waiters, q.sent = nil, nil, 0
	q.gen++
	q.builder.Reset()
	q.mu.Unlock()
	settleAll(given, telemetry.Unknown)
}
