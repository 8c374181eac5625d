package shard

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// LocalStore is a store that every replica writes for itself.
type LocalStore interface {
	// Write makes the batch durable under the name of its range and returns the
	// digest of its rows. Repeating a range writes nothing.
	Write(ctx context.Context, b *telemetry.Batch) (digest [16]byte, err error)
	// Digest returns what Write returned for the range, if it was ever written.
	Digest(shard telemetry.ShardID, from, to uint64) (digest [16]byte, ok bool)
	// Read answers from everything the store holds, which is all up to an index at
	// least, and says up to which index that is: files may be ahead of the log that
	// is applied again after a restart.
	Read(ctx context.Context, shard telemetry.ShardID, upTo uint64, q store.Query) (points []store.Point, covered uint64, err error)
	// Aggregate is Read for buckets.
	Aggregate(ctx context.Context, shard telemetry.ShardID, upTo uint64, q store.Aggregate) (buckets []store.Bucket, covered uint64, err error)
}

// SharedStore is one database for all replicas; the leader writes.
type SharedStore interface {
	// Write commits the batch and moves the shard's watermark from Batch.From to
	// Batch.To in one transaction, or fails and changes nothing: with a
	// *store.WatermarkError when the watermark is elsewhere. Any other error
	// leaves the outcome unknown until Watermarks is read. Batch.GapEnd leaves a
	// gap in the live lane, or drains it, in the same transaction.
	Write(ctx context.Context, b *telemetry.Batch) error
	// Watermarks reads how far each lane of a shard is committed, from one snapshot.
	Watermarks(ctx context.Context, shard telemetry.ShardID) (telemetry.Watermarks, error)
	// Read answers from one snapshot of the database, and says up to which index
	// that snapshot holds each lane of the shard.
	Read(ctx context.Context, shard telemetry.ShardID, q store.Query) (points []store.Point, at telemetry.Watermarks, err error)
	// Aggregate answers in the same way with buckets of readings.
	Aggregate(ctx context.Context, shard telemetry.ShardID, q store.Aggregate) (buckets []store.Bucket, at telemetry.Watermarks, err error)
}

// Stores is where batches go: exactly one of its fields is set.
type Stores struct {
	Local  LocalStore
	Shared SharedStore
}

// FlushConfig says when a shard flushes.
type FlushConfig struct {
	Interval time.Duration // the oldest reading waits this long at most (embedded 5 min, database 1 s)
	RowsMax  int           // a flush holds about this many rows; reaching it flushes at once (default 100,000)

	// Retain is how long what a database has committed stays in the log, so that
	// one that fails over to a replica without its tail can be refilled; default
	// 15 min of flushing, however long it is interrupted.
	Retain time.Duration
	// RetainBytes bounds that per shard; default 1 GiB of log.
	RetainBytes int64

	// GapAfter is for how long the live lane of a database may not catch up before
	// it leaves what waits to the backlog lane; default 10 s.
	GapAfter time.Duration
}

func (c FlushConfig) withDefaults() FlushConfig {
	if c.Retain == 0 {
		c.Retain = retainDefault
	}
	if c.RetainBytes == 0 {
		c.RetainBytes = retainBytesDefault
	}
	if c.GapAfter == 0 {
		c.GapAfter = gapAfterDefault
	}
	return c
}

// decidedMax is how many decided ranges may wait for the disk before the leader
// decides no more: the log keeps the rest.
const decidedMax = 4

// writtenMax is how many digests of written ranges are remembered for
// comparison with the leader's.
const writtenMax = 8

// flusher moves a shard's rows from the log to the store. On every replica it
// writes decided ranges to the local store; on the leader of a shard whose
// store is shared it writes and moves the watermarks.
type flusher struct {
	shard   *Shard
	cfg     FlushConfig
	stores  Stores
	turns   *turns
	signal  chan struct{}
	since   time.Time // when the rows now pending began to wait, as the leader saw it
	written []writtenRange
	retry   time.Duration // pause after an error; 0 after success
	floors  []floorSample // shared store: watermarks of the last minutes, oldest first
	lanes   [telemetry.LaneBacklog + 1]lane

	marksMax   atomic.Int64
	spill      spill        // marks
	books      spill        // runs of blocks
	spillBytes atomic.Int64 // of spill, for others
}

// turns are a node's flushes at once.
type turns struct {
	any      chan struct{}        // gathering and writing; of a shared database the live lanes
	late     chan struct{}        // the late lanes: one at a time
	backlog  chan struct{}        // the backlog lanes: one at a time
	pressure atomic.Pointer[room] // see Press
	pace     pace                 // of the late lanes
	back     atomic.Pointer[chan struct{}]
}

// answered ends the pauses of those lanes of the node that got no answer from the
// database: it has given one to another.
func (t *turns) answered() {
	next := make(chan struct{})
	if was := t.back.Swap(&next); was != nil {
		close(*was)
	}
}

func newTurns(n int) *turns {
	t := &turns{any: make(chan struct{}, n), late: make(chan struct{}, 1), backlog: make(chan struct{}, 1)}
	t.answered()
	return t
}

type writtenRange struct {
	to     uint64
	digest [16]byte
}

func newFlusher(s *Shard, cfg FlushConfig, st Stores, t *turns, dir string) *flusher {
	f := &flusher{shard: s, cfg: cfg.withDefaults(), stores: st, turns: t, signal: make(chan struct{}, 1), spill: spill{dir: dir}, books: spill{dir: dir, shared: true}}
	f.marksMax.Store(marksMax)
	for i := range f.lanes {
		f.lanes[i] = lane{lane: telemetry.Lane(i), signal: make(chan struct{}, 1)}
	}
	return f
}

func (f *flusher) wake() {
	if f.stores.Shared != nil {
		for i := range f.lanes {
			f.lanes[i].wake()
		}
		return
	}
	select {
	case f.signal <- struct{}{}:
	default:
	}
}

// due reports the range that should be decided now.
func (f *flusher) due(now time.Time) (from, to uint64, ok bool) {
	m := f.shard.fsm.machine
	m.mu.Lock()
	p := &m.pending
	rows, from, to, decided := p.waiting(), p.watermarks.To[telemetry.LaneLive], p.last(), len(p.decided)
	m.mu.Unlock()
	// A range without rows is flushed too: repeats and refuse must not hold on to
	// the log for ever.
	if to == from {
		f.since = time.Time{}
		return 0, 0, false
	}
	if f.since.IsZero() {
		f.since = now
	}
	full := rows >= uint64(f.cfg.RowsMax)
	if decided >= decidedMax || !full && now.Sub(f.since) < f.cfg.Interval {
		return 0, 0, false
	}
	return from, f.limit(from, to, f.cfg.RowsMax, (*pendingBlock).allRows), true
}

// limit cuts a range so that it holds about rowsMax rows, a block at least.
func (f *flusher) limit(from, to uint64, rowsMax int, rows func(*pendingBlock) int) uint64 {
	m := f.shard.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for b := range m.pending.between(from, to).all() {
		if n += rows(b); n >= rowsMax {
			return b.index
		}
	}
	return to
}

// decide is the leader's part in the embedded store: it proposes the range that
// every replica writes.
func (f *flusher) decide(ctx context.Context, now time.Time) {
	if f.stores.Local == nil {
		f.wake()
		return
	}
	from, to, ok := f.due(now)
	if !ok {
		return
	}
	e := flushEntry{From: from, To: to}
	f.shard.fsm.mu.Lock()
	if n := len(f.written); n > 0 {
		e.PreviousTo, e.Previous = f.written[n-1].to, f.written[n-1].digest
	}
	f.shard.fsm.mu.Unlock()
	if _, err := f.shard.Call(ctx, e.encode()); err != nil {
		f.shard.logger.Debug("flush not decided", "err", err)
		return
	}
	f.since = time.Time{}
}

// flushRetryMax bounds the pause between attempts at a store that fails.
const flushRetryMax = 2 * time.Second

// run flushes to the local store until the shard closes; lanes have goroutines of
// their own.
func (f *flusher) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.signal:
		}
		if err := f.flushLocal(ctx); err != nil && ctx.Err() == nil {
			f.pause(ctx, &f.retry, err)
			f.wake()
		} else {
			f.retry = 0
		}
	}
}

func (f *flusher) pause(ctx context.Context, retry *time.Duration, err error) {
	f.shard.metrics.flushErrors.Inc()
	f.shard.logger.Warn("flush: the log keeps the rows, trying again", "err", err)
	*retry = min(max(2**retry, 100*time.Millisecond), flushRetryMax)
	var back chan struct{} // of a shard's own error nobody else knows whether it has gone
	if errors.Is(err, errNoAnswer) {
		back = *f.turns.back.Load()
	}
	select {
	case <-ctx.Done():
	case <-back:
	case <-time.After(*retry/2 + rand.N(*retry/2)): // not all lanes of a node at the same moment: the first tells the others
	}
}

// flushLocal writes the decided ranges in their order.
func (f *flusher) flushLocal(ctx context.Context) error {
	m := f.shard.fsm.machine
	for ctx.Err() == nil {
		m.mu.Lock()
		if len(m.pending.decided) == 0 {
			m.mu.Unlock()
			return nil
		}
		r := m.pending.decided[0]
		blocks := slices.Collect(m.pending.between(r.from, r.to).all())
		m.mu.Unlock()
		if err := f.writeLocal(ctx, r, blocks); err != nil {
			return err
		}
	}
	return nil
}

func (f *flusher) writeLocal(ctx context.Context, r *flushRange, blocks []*pendingBlock) error {
	start := time.Now()
	digest, ok := f.stores.Local.Digest(f.shard.id, r.from, r.to)
	if !ok {
		if err := f.turn(ctx, f.turns.any); err != nil {
			return err
		}
		b, err := f.batch(r.from, r.to, blocks, bothLanes)
		if err == nil {
			b.Messages, b.Updates, b.Anomalies = r.messages, r.updates, r.anomalies
			digest, err = f.stores.Local.Write(ctx, b)
		}
		<-f.turns.any
		if err != nil {
			return fmt.Errorf("write rows %d..%d of shard %d: %w", r.from, r.to, f.shard.id, err)
		}
		f.shard.metrics.flushed(len(b.Rows), time.Since(start))
	}
	f.compare(r)
	m := f.shard.fsm.machine
	m.mu.Lock()
	if f.written = append(f.written, writtenRange{r.to, digest}); len(f.written) > writtenMax {
		f.written = f.written[1:]
	}
	m.pending.stored(r.to)
	m.mu.Unlock()
	return nil
}

// compare holds the leader's digest of an earlier range against our own.
func (f *flusher) compare(r *flushRange) {
	for _, w := range f.written {
		if w.to == r.compareTo && w.digest != r.compare {
			f.shard.metrics.digestMismatches.Inc()
			f.shard.logger.Error("rows differ from the leader's", "to", w.to)
		}
	}
}

// turn waits for the node's turn to flush.
func (f *flusher) turn(ctx context.Context, kind chan struct{}) error {
	select {
	case kind <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
