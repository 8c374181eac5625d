package shard

import (
	"context"
	"errors"
	"fmt"
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
	// leaves the outcome unknown until Watermark is read.
	Write(ctx context.Context, b *telemetry.Batch) error
	// Watermarks reads how far each lane of a shard is committed.
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
	Interval time.Duration // the oldest reading waits this long at most (embedded 30 s, database 1 s)
	RowsMax  int           // a flush holds about this many rows; reaching it flushes at once (default 100,000)
}

// decidedMax is how many decided ranges may wait for the disk before the leader
// decides no more: the log keeps the rest.
const decidedMax = 4

// writtenMax is how many digests of written ranges are remembered for
// comparison with the leader's.
const writtenMax = 8

// flusher moves a shard's rows from the log to the store. On every replica it
// writes decided ranges to the local store; on the leader of a shard whose
// store is shared it writes and moves the watermark.
type flusher struct {
	shard   *Shard
	cfg     FlushConfig
	stores  Stores
	slots   chan struct{} // the node's flushes at once
	signal  chan struct{}
	since   time.Time // when the rows now pending began to wait, as the leader saw it
	written []writtenRange
	retry   time.Duration // pause after an error; 0 after success
	floors  []floorSample // shared store: watermarks of the last minutes, oldest first
}

type writtenRange struct {
	to     uint64
	digest [16]byte
}

func newFlusher(s *Shard, cfg FlushConfig, st Stores, slots chan struct{}) flusher {
	return flusher{shard: s, cfg: cfg, stores: st, slots: slots, signal: make(chan struct{}, 1)}
}

func (f *flusher) wake() {
	select {
	case f.signal <- struct{}{}:
	default:
	}
}

// due reports the range that should be flushed now.
func (f *flusher) due(now time.Time) (from, to uint64, ok bool) {
	m := f.shard.fsm.machine
	m.mu.Lock()
	rows, from, to, decided := m.pending.rows, m.pending.watermark, m.pending.last(), len(m.pending.decided)
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
	return from, f.limit(from, to), true
}

// limit cuts a range so that it holds about RowsMax rows, a block at least.
func (f *flusher) limit(from, to uint64) uint64 {
	m := f.shard.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	rows := 0
	for _, b := range m.pending.between(from, to) {
		if rows += int(b.rows); rows >= f.cfg.RowsMax {
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
const flushRetryMax = 5 * time.Second

func (f *flusher) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.signal:
		}
		if err := f.flush(ctx); err != nil && ctx.Err() == nil {
			f.pause(ctx, err)
		} else {
			f.retry = 0
		}
	}
}

func (f *flusher) pause(ctx context.Context, err error) {
	f.shard.metrics.flushErrors.Inc()
	f.shard.logger.Warn("flush: the log keeps the rows, trying again", "err", err)
	f.retry = min(max(2*f.retry, 100*time.Millisecond), flushRetryMax)
	select {
	case <-ctx.Done():
	case <-time.After(f.retry):
		f.wake()
	}
}

func (f *flusher) flush(ctx context.Context) error {
	if f.stores.Local != nil {
		return f.flushLocal(ctx)
	}
	return f.flushShared(ctx)
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
		blocks := append([]*pendingBlock(nil), m.pending.between(r.from, r.to)...)
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
		if err := f.slot(ctx); err != nil {
			return err
		}
		b, err := f.batch(r.from, r.to, blocks)
		if err == nil {
			b.Messages, b.Updates, b.Anomalies = r.messages, r.updates, r.anomalies
			digest, err = f.stores.Local.Write(ctx, b)
		}
		<-f.slots
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

// slot waits for the node's turn to flush.
func (f *flusher) slot(ctx context.Context) error {
	select {
	case f.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flushShared commits what is due to the database, as the leader.
func (f *flusher) flushShared(ctx context.Context) error {
	for ctx.Err() == nil {
		term := f.shard.readable.Load()
		if term == 0 {
			return nil
		}
		from, to, ok := f.due(time.Now())
		if !ok {
			return nil
		}
		if err := f.writeShared(ctx, term, from, to); err != nil {
			return err
		}
		f.since = time.Time{}
	}
	return nil
}

func (f *flusher) writeShared(ctx context.Context, term, from, to uint64) error {
	if err := f.slot(ctx); err != nil {
		return err
	}
	defer func() { <-f.slots }()
	start := time.Now()
	m := f.shard.fsm.machine
	m.mu.Lock()
	blocks := append([]*pendingBlock(nil), m.pending.between(from, to)...)
	updates, anomalies := m.changes()
	m.mu.Unlock()
	b, err := f.batch(from, to, blocks)
	if err != nil {
		return fmt.Errorf("gather rows %d..%d: %w", from, to, err)
	}
	b.Term, b.Updates, b.Anomalies = term, updates, anomalies
	for _, p := range blocks {
		b.Messages += uint64(p.messages)
	}
	committed := to
	if err := f.stores.Shared.Write(ctx, b); err != nil {
		if committed, err = f.uncertain(ctx, from, err); err != nil {
			return err
		}
	} else {
		f.shard.metrics.flushed(len(b.Rows), time.Since(start))
	}
	if _, err := f.shard.Call(ctx, flushedEntry(committed)); err != nil {
		return fmt.Errorf("record watermark %d: %w", committed, err)
	}
	return nil
}

// uncertain finds out what became of a write that failed: the watermark in the
// database is the only truth.
func (f *flusher) uncertain(ctx context.Context, from uint64, cause error) (uint64, error) {
	var w *store.WatermarkError
	have := uint64(0)
	if errors.As(cause, &w) {
		have = w.Have
	} else {
		at, err := f.stores.Shared.Watermarks(ctx, f.shard.id)
		if err != nil {
			return 0, errors.Join(cause, err)
		}
		have = at[telemetry.LaneLive]
	}
	m := f.shard.fsm.machine
	m.mu.Lock()
	last := m.index
	m.mu.Unlock()
	switch {
	case have == from:
		return 0, cause
	case have < from:
		return 0, fmt.Errorf("the database holds shard %d up to %d, but %d was committed there: it has lost rows, restore it: %w", f.shard.id, have, from, cause)
	case have > last:
		return 0, fmt.Errorf("the database holds shard %d up to %d, beyond its log's %d: it belongs to another cluster, point the configuration at an empty one: %w", f.shard.id, have, last, cause)
	}
	return have, nil
}
