package shard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

const (
	// lateIntervals is how many intervals the late lane gathers: its rows are
	// late anyway, and fewer, larger batches hit fewer chunks.
	lateIntervals = 5
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
	// caughtUp is when the live lane last had nothing to write, or wrote all.
	caughtUp time.Time

	// Guarded by the machine's mu: others look at it.
	fallback fallback
	suspect  bool // another lane has fallen back: look at once
}

// readings is the lane of the readings that this one writes.
func (l *lane) readings() telemetry.Lane {
	if l.lane == telemetry.LaneBacklog {
		return telemetry.LaneLive
	}
	return l.lane
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
			l.caughtUp = time.Time{}
			return nil
		}
		if refilling, err := f.refill(ctx, l, term); err != nil || refilling {
			if err != nil {
				return err
			}
			continue
		}
		now := time.Now()
		if l.lane == telemetry.LaneLive && l.caughtUp.IsZero() {
			l.caughtUp = f.waitingSince(now)
		}
		r, ok := f.laneDue(l, now)
		if !ok {
			return f.check(ctx, l)
		}
		if err := f.flushRange(ctx, l, term, r); err != nil {
			return err
		}
		l.since = time.Time{}
		if r.last {
			l.caughtUp = now
		}
	}
	return nil
}

// errNoAnswer wraps the errors of a database that does not say how far it is: what
// is in the way is not this shard's, and whether it has gone others find out as well.
var errNoAnswer = errors.New("the database is still away")

// answers asks a database that failed before a batch is gathered for it again: of
// a long backlog that is 100,000 rows read from the log, by every shard and at
// every attempt, for nothing while the database is away.
func (f *flusher) answers(ctx context.Context, l *lane) error {
	if l.retry == 0 || f.shard.readable.Load() == 0 {
		return nil
	}
	if _, err := f.stores.Shared.Watermarks(ctx, f.shard.id); err != nil {
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	f.turns.answered()
	return nil
}

// held reports whether one lane is being refilled: nothing new is flushed then,
// since the log would let go of what that one still needs. m.mu is held.
func (f *flusher) held() bool {
	for i := range f.lanes {
		if f.lanes[i].fallback.on {
			return true
		}
	}
	return false
}

// laneDue reports the range of a lane that should be flushed now.
func (f *flusher) laneDue(l *lane, now time.Time) (span, bool) {
	if l.lane == telemetry.LaneBacklog {
		return f.backlogDue(l)
	}
	interval, rowsMax := f.cfg.Interval, f.cfg.RowsMax
	m := f.shard.fsm.machine
	m.mu.Lock()
	p := &m.pending
	rows, from, to := p.rows[l.lane], p.watermarks.To[l.lane], p.last()
	if l.lane == telemetry.LaneLate {
		// Only what has rows moves this watermark.
		interval, rowsMax, to = interval*lateIntervals, min(rowsMax, f.turns.pace.lateRows(now)), max(from, p.newestLate)
	}
	held := f.held()
	m.mu.Unlock()
	if to == from || l.caughtUp.IsZero() {
		l.caughtUp = now
	}
	if to == from || held {
		l.since = time.Time{}
		return span{}, false
	}
	if l.since.IsZero() {
		l.since = beat(now, interval)
	}
	if rows < uint64(rowsMax) && now.Sub(l.since) < interval {
		return span{}, false
	}
	r := span{from: from, to: to}
	if l.lane == telemetry.LaneLive {
		m.mu.Lock()
		r.gapEnd = f.gapEnd(l, from, to, now)
		m.mu.Unlock()
	}
	begin, _ := r.rows(l.lane)
	r.to = f.limit(begin, to, rowsMax, l.rows)
	r.last = r.to == to
	return r, true
}

// beat is the latest multiple of an interval: lanes that count from there are due
// together, all shards of a node at the same moment, and share a transaction. By
// the difference to now, because that survives a clock that is set back.
func beat(now time.Time, interval time.Duration) time.Time {
	return now.Add(-time.Duration(now.UnixNano() % int64(interval)))
}

func (l *lane) rows(b *pendingBlock) int { return int(b.rows[l.readings()]) }

// flushRange writes one range of a lane and records it in the log.
func (f *flusher) flushRange(ctx context.Context, l *lane, term uint64, r span) error {
	m := f.shard.fsm.machine
	err := f.write(ctx, l, r, func(b *telemetry.Batch) {
		b.Term = term
		if l.lane == telemetry.LaneLive {
			m.mu.Lock()
			b.Updates, b.Anomalies = m.changes()
			m.mu.Unlock()
		}
	})
	if err != nil {
		return f.uncertain(ctx, l, err)
	}
	if l.lane == telemetry.LaneBacklog {
		return f.record(ctx, l, r.drained())
	}
	m.mu.Lock()
	at := m.pending.watermarks
	m.mu.Unlock()
	at.To[l.lane] = r.to
	if r.gapEnd > 0 {
		f.shard.metrics.gaps.Inc()
		f.shard.logger.Info("the database is behind: what is new goes first", "backlog_from", r.from, "backlog_to", r.gapEnd)
		at.Gap = telemetry.Gap{From: r.from, To: r.gapEnd}
	}
	return f.record(ctx, l, at)
}

// turnOf is whose turn a lane waits for.
func (f *flusher) turnOf(l *lane) chan struct{} {
	switch l.lane {
	case telemetry.LaneLate:
		return f.turns.late
	case telemetry.LaneBacklog:
		return f.turns.backlog
	}
	return f.turns.any
}

// write gathers and writes a range when it is the lane's turn. complete adds what
// is not in the blocks.
func (f *flusher) write(ctx context.Context, l *lane, r span, complete func(*telemetry.Batch)) error {
	kind := f.turnOf(l)
	if l.lane == telemetry.LaneLive {
		defer f.turns.pace.begins()()
	}
	if err := f.turn(ctx, kind); err != nil {
		return err
	}
	defer func() { <-kind }()
	if l.lane == telemetry.LaneLate {
		f.turns.pace.calm(ctx, f.cfg.Interval)
	}
	start := time.Now()
	b, err := f.gather(l, r)
	if err != nil {
		return fmt.Errorf("gather rows %d..%d: %w", r.from, r.to, err)
	}
	complete(b)
	if err := f.stores.Shared.Write(ctx, b); err != nil {
		return err
	}
	f.turns.answered()
	took := time.Since(start)
	f.shard.metrics.flushed(len(b.Rows), took)
	switch l.lane {
	case telemetry.LaneLate:
		f.shard.metrics.flushLate.Add(float64(len(b.Rows)))
		f.turns.pace.late(len(b.Rows), took, f.cfg.Interval)
		f.turns.pace.rest(ctx, took)
	case telemetry.LaneBacklog:
		f.shard.metrics.flushBacklog.Add(float64(len(b.Rows)))
	default:
		if len(b.Rows) > 0 {
			f.turns.pace.wrote(time.Now())
		}
	}
	return nil
}

// gather makes the batch of a range.
func (f *flusher) gather(l *lane, r span) (*telemetry.Batch, error) {
	m := f.shard.fsm.machine
	readings := l.readings()
	m.mu.Lock()
	var blocks []*pendingBlock
	messages := uint64(0)
	for p := range m.pending.between(r.rows(l.lane)).all() {
		messages += uint64(p.messages[readings])
		if p.rows[readings] > 0 {
			blocks = append(blocks, p)
		}
	}
	m.mu.Unlock()
	want := func(k mark) bool { return k.lane == readings }
	b, err := f.batch(r.from, r.to, blocks, want)
	if err != nil {
		return nil, err
	}
	b.Lane, b.GapEnd, b.Messages = l.lane, r.gapEnd, messages
	b.Sources = func(rows []int, give func(int, *telemetry.Source) error) error {
		return f.sources(b, blocks, want, rows, give)
	}
	if l.lane == telemetry.LaneLate {
		byDay(b.Rows)
	}
	return b, nil
}

// uncertain finds out what became of a write that failed: the watermarks in the
// database are the only truth. No error when that is of use: the database is ahead
// of the log, or has fallen back.
func (f *flusher) uncertain(ctx context.Context, l *lane, cause error) error {
	err := f.look(ctx, l, cause)
	if err == nil || errors.Is(err, cause) {
		return err
	}
	return errors.Join(cause, err)
}

// look compares the watermarks of the database with the log's, as far as they are
// the lane's, and acts on what it finds. cause is what gave reason to look, nil
// when nothing did; it is returned where the two agree.
func (f *flusher) look(ctx context.Context, l *lane, cause error) error {
	m := f.shard.fsm.machine
	m.mu.Lock()
	known := m.pending.watermarks // before the database is asked: it may only have more
	m.mu.Unlock()
	have, err := f.stores.Shared.Watermarks(ctx, f.shard.id)
	if err != nil {
		return fmt.Errorf("look at the watermarks of shard %d: %w", f.shard.id, err)
	}
	m.mu.Lock()
	last := m.index
	m.mu.Unlock()
	readings := l.readings()
	if at := have.To[readings]; at > last {
		return errors.Join(fmt.Errorf("the database holds the %s lane of shard %d up to %d, beyond its log's %d: it belongs to another cluster, point the configuration at an empty one", readings, f.shard.id, at, last), cause)
	}
	if fallen := fallenTo(l, known, have); fallen.on {
		if f.fallBack(l, fallen) {
			return nil
		}
		return cause
	}
	l.checked = time.Now()
	f.forget(l)
	if gapLost(known, have).Open() {
		f.suspectBacklog()
	}
	if all, ok := known.Union(have); ok && all.To[readings] == known.To[readings] && (readings != telemetry.LaneLive || all.Gap == known.Gap) {
		return cause // nothing new
	}
	return f.record(ctx, l, have)
}

// check looks now and then whether a database that gets nothing new still has
// what it had.
func (f *flusher) check(ctx context.Context, l *lane) error {
	m := f.shard.fsm.machine
	m.mu.Lock()
	used, suspect := m.pending.watermarks.To[l.readings()] > 0, l.suspect
	if l.lane == telemetry.LaneBacklog {
		used = suspect || m.pending.watermarks.Gap.Open()
	}
	if !used {
		l.suspect = false
	}
	m.mu.Unlock()
	if !used || !suspect && time.Since(l.checked) < checkInterval {
		return nil
	}
	l.checked = time.Now()
	err := f.look(ctx, l, nil)
	if err != nil {
		l.checked = time.Time{}
	}
	return err
}

// record tells all replicas what the database has, in the lane's readings.
func (f *flusher) record(ctx context.Context, l *lane, at telemetry.Watermarks) error {
	readings, gap := l.readings(), at.Gap
	if readings != telemetry.LaneLive {
		gap = telemetry.Gap{}
	}
	if _, err := f.shard.Call(ctx, flushedEntry(readings, at.To[readings], gap)); err != nil {
		return fmt.Errorf("record %s watermark %d: %w", l.lane, at.To[readings], err)
	}
	l.checked = time.Now()
	return nil
}
