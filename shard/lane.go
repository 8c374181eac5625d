package shard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

const (
	// lateRowsMax keeps transactions of the late lane short, so that what they
	// hold up on the server is soon free again.
	lateRowsMax = 20_000
	// lateIntervals is how many intervals the late lane gathers: its rows are
	// late anyway, and fewer, larger batches hit fewer chunks.
	lateIntervals = 5
	// lateRest is how long the late lane of a node rests after a batch, as a
	// multiple of the time that took, while live rows flow.
	lateRest = 4
	// liveFlow is for how long live rows flow after the last one.
	liveFlow = 5 * time.Second
	// checkInterval is how often an idle leader looks whether the database still
	// has what was committed.
	checkInterval = 30 * time.Second
)

// lane is the leader's part in one lane of a shared database. All but signal and
// what mu guards belongs to its goroutine.
type lane struct {
	lane    telemetry.Lane
	signal  chan struct{}
	since   time.Time     // when the rows now pending began to wait
	retry   time.Duration // pause after an error
	checked time.Time     // when the database was last heard to have what it should

	// Guarded by the machine's mu: others look at it.
	fallback fallback
	suspect  bool // the other lane has fallen back: look at once
}

func (l *lane) wake() {
	select {
	case l.signal <- struct{}{}:
	default:
	}
}

// runLane flushes one lane until the shard closes.
func (f *flusher) runLane(ctx context.Context, l *lane) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.signal:
		}
		if err := f.flushLane(ctx, l); err != nil && ctx.Err() == nil {
			f.pause(ctx, &l.retry, err)
			l.wake()
		} else {
			l.retry = 0
		}
	}
}

// flushLane commits what is due to the database, as the leader.
func (f *flusher) flushLane(ctx context.Context, l *lane) error {
	if err := f.answers(ctx, l); err != nil {
		return err
	}
	for ctx.Err() == nil {
		term := f.shard.readable.Load()
		if term == 0 {
			f.forget(l)
			return nil
		}
		if refilling, err := f.refill(ctx, l, term); err != nil || refilling {
			if err != nil {
				return err
			}
			continue
		}
		from, to, ok := f.laneDue(l, time.Now())
		if !ok {
			return f.check(ctx, l)
		}
		if err := f.flushRange(ctx, l, term, from, to); err != nil {
			return err
		}
		l.since = time.Time{}
	}
	return nil
}

// answers asks a database that failed before a batch is gathered for it again: of
// a long backlog that is 100,000 rows read from the log, by every shard and at
// every attempt, for nothing while the database is away.
func (f *flusher) answers(ctx context.Context, l *lane) error {
	if l.retry == 0 || f.shard.readable.Load() == 0 {
		return nil
	}
	if _, err := f.stores.Shared.Watermarks(ctx, f.shard.id); err != nil {
		return fmt.Errorf("the database is still away: %w", err)
	}
	return nil
}

// laneDue reports the range of a lane that should be flushed now. While one lane
// is being refilled nothing new is flushed: the log would let go of what the
// other still needs.
func (f *flusher) laneDue(l *lane, now time.Time) (from, to uint64, ok bool) {
	interval, rowsMax := f.cfg.Interval, f.cfg.RowsMax
	m := f.shard.fsm.machine
	m.mu.Lock()
	p := &m.pending
	rows, from, to := p.rows[l.lane], p.watermarks[l.lane], p.last()
	if l.lane == telemetry.LaneLate {
		// Only what has rows moves this watermark.
		interval, rowsMax, to = interval*lateIntervals, min(rowsMax, lateRowsMax), max(from, p.newestLate)
	}
	held := false
	for i := range f.lanes {
		held = held || f.lanes[i].fallback.on
	}
	m.mu.Unlock()
	if to == from || held {
		l.since = time.Time{}
		return 0, 0, false
	}
	if l.since.IsZero() {
		l.since = beat(now, interval)
	}
	if rows < uint64(rowsMax) && now.Sub(l.since) < interval {
		return 0, 0, false
	}
	return from, f.limit(from, to, rowsMax, l.rows), true
}

// beat is the latest multiple of an interval: lanes that count from there are due
// together, all shards of a node at the same moment, and share a transaction. By
// the difference to now, because that survives a clock that is set back.
func beat(now time.Time, interval time.Duration) time.Time {
	return now.Add(-time.Duration(now.UnixNano() % int64(interval)))
}

func (l *lane) rows(b *pendingBlock) int { return int(b.rows[l.lane]) }

// flushRange writes one range of a lane and records it in the log.
func (f *flusher) flushRange(ctx context.Context, l *lane, term, from, to uint64) error {
	m := f.shard.fsm.machine
	err := f.write(ctx, l, from, to, func(b *telemetry.Batch) {
		b.Term = term
		if l.lane == telemetry.LaneLive {
			m.mu.Lock()
			b.Updates, b.Anomalies = m.changes()
			m.mu.Unlock()
		}
	})
	committed := to
	if err != nil {
		if committed, err = f.uncertain(ctx, l, err); err != nil || committed == 0 {
			return err
		}
	}
	return f.record(ctx, l, committed)
}

// write gathers and writes a range when it is the lane's turn. complete adds what
// is not in the blocks.
func (f *flusher) write(ctx context.Context, l *lane, from, to uint64, complete func(*telemetry.Batch)) error {
	kind := f.turns.any
	if l.lane == telemetry.LaneLate {
		kind = f.turns.late
	}
	if err := f.turn(ctx, kind); err != nil {
		return err
	}
	defer func() { <-kind }()
	start := time.Now()
	m := f.shard.fsm.machine
	m.mu.Lock()
	var blocks []*pendingBlock
	messages := uint64(0)
	for p := range m.pending.between(from, to).all() {
		messages += uint64(p.messages[l.lane])
		if p.rows[l.lane] > 0 {
			blocks = append(blocks, p)
		}
	}
	m.mu.Unlock()
	want := func(k mark) bool { return k.lane == l.lane }
	b, err := f.batch(from, to, blocks, want)
	if err != nil {
		return fmt.Errorf("gather rows %d..%d: %w", from, to, err)
	}
	b.Lane, b.Messages = l.lane, messages
	b.Sources = func(rows []int, give func(int, *telemetry.Source) error) error {
		return f.sources(b, blocks, want, rows, give)
	}
	complete(b)
	if l.lane == telemetry.LaneLate {
		byDay(b.Rows)
	}
	if err := f.stores.Shared.Write(ctx, b); err != nil {
		return err
	}
	took := time.Since(start)
	f.shard.metrics.flushed(len(b.Rows), took)
	if l.lane == telemetry.LaneLive {
		now := time.Now()
		f.turns.liveAt.Store(&now)
	} else {
		f.shard.metrics.flushLate.Add(float64(len(b.Rows)))
		f.rest(ctx, took)
	}
	return nil
}

// rest keeps the node's late lanes waiting while live rows flow.
func (f *flusher) rest(ctx context.Context, took time.Duration) {
	if live := f.turns.liveAt.Load(); live == nil || time.Since(*live) > liveFlow {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(lateRest * took):
	}
}

// uncertain finds out what became of a write that failed: the watermark in the
// database is the only truth. It returns where the lane stands there when that is
// ahead of the log, and 0 without an error when it has fallen back.
func (f *flusher) uncertain(ctx context.Context, l *lane, cause error) (uint64, error) {
	var w *store.WatermarkError
	if errors.As(cause, &w) {
		return f.judge(l, w.Have, cause)
	}
	at, err := f.stores.Shared.Watermarks(ctx, f.shard.id)
	if err != nil {
		return 0, errors.Join(cause, err)
	}
	return f.judge(l, at[l.lane], cause)
}

// judge compares a watermark of the database with the log's. cause is what gave
// reason to look, nil when nothing did.
func (f *flusher) judge(l *lane, have uint64, cause error) (uint64, error) {
	m := f.shard.fsm.machine
	m.mu.Lock()
	last, at := m.index, m.pending.watermarks[l.lane]
	m.mu.Unlock()
	switch {
	case have == at:
		l.checked = time.Now()
		f.forget(l)
		return 0, cause
	case have > last:
		return 0, errors.Join(fmt.Errorf("the database holds the %s lane of shard %d up to %d, beyond its log's %d: it belongs to another cluster, point the configuration at an empty one", l.lane, f.shard.id, have, last), cause)
	case have > at:
		l.checked = time.Now()
		f.forget(l)
		return have, nil
	case f.fallBack(l, have, at):
		return 0, nil
	}
	return 0, cause
}

// check looks now and then whether a database that gets nothing new still has
// what it had.
func (f *flusher) check(ctx context.Context, l *lane) error {
	m := f.shard.fsm.machine
	m.mu.Lock()
	used, suspect := m.pending.watermarks[l.lane] > 0, l.suspect
	l.suspect = false
	m.mu.Unlock()
	if !used || !suspect && time.Since(l.checked) < checkInterval {
		return nil
	}
	l.checked = time.Now()
	at, err := f.stores.Shared.Watermarks(ctx, f.shard.id)
	if err != nil {
		l.checked = time.Time{}
		return fmt.Errorf("look at the watermarks of shard %d: %w", f.shard.id, err)
	}
	committed, err := f.judge(l, at[l.lane], nil)
	if err != nil || committed == 0 {
		return err
	}
	return f.record(ctx, l, committed)
}

// record tells all replicas what is committed.
func (f *flusher) record(ctx context.Context, l *lane, committed uint64) error {
	if _, err := f.shard.Call(ctx, flushedEntry(l.lane, committed)); err != nil {
		return fmt.Errorf("record %s watermark %d: %w", l.lane, committed, err)
	}
	l.checked = time.Now()
	return nil
}
