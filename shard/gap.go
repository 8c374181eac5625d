package shard

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// After an outage of the database the live edge goes first: the live lane leaves
// a gap, and the backlog lane drains it, see DESIGN.md.
const (
	gapAfterDefault = 10 * time.Second
	// gapBatches is how many full batches may wait before a gap is left at once.
	gapBatches = 4
	// gapLeast is the part of a full batch of which twice as much must wait: the
	// shards of a node have less than that in the database within a second or two.
	gapLeast = 100
	// gapEdge is for how long what goes in with the gap has waited, about: a little
	// longer than it takes to notice that the database is back, so that what has
	// come since then is in it. It is half a full batch at most.
	gapEdge = flushRetryMax + 2*time.Second
	// backlogRowsMax keeps transactions of the backlog lane short, so that live
	// ones do not wait for them.
	backlogRowsMax = 50_000
)

// span is a range of a lane that is to be written.
type span struct {
	from, to uint64
	gapEnd   uint64 // see telemetry.Batch
	live     uint64 // of a part of a gap: how far the live lane was when the gap was this one
	last     bool   // nothing is pending behind it
}

// rows is the range whose rows are in the batch.
func (s span) rows(lane telemetry.Lane) (from, to uint64) {
	if lane == telemetry.LaneLive && s.gapEnd > 0 {
		return s.gapEnd, s.to
	}
	return s.from, s.to
}

// drained is what the database holds for certain once the rows of a part of a gap are
// in: what it held when the gap was the one the part is of, not what the log knows by
// now. Somebody may have seen this gap closed in the meantime, and have left the
// next one behind it.
func (s span) drained() telemetry.Watermarks {
	w := telemetry.Watermarks{Gap: telemetry.Gap{From: s.to, To: s.gapEnd}}
	w.To[telemetry.LaneLive] = s.live
	return w
}

// gapEnd decides whether the live lane leaves a gap in what waits, and where that
// ends; 0 for none. m.mu is held.
func (f *flusher) gapEnd(l *lane, from, to uint64, now time.Time) uint64 {
	p := &f.shard.fsm.pending
	full := uint64(f.cfg.RowsMax)
	least := max(1, full/gapLeast)
	waiting, age := p.rows[telemetry.LaneLive], now.Sub(l.caughtUp)
	switch {
	case p.watermarks.Gap.Open() || waiting < 2*least:
		return 0
	case waiting < gapBatches*full && age < f.cfg.GapAfter:
		return 0
	}
	edge := float64(waiting) * gapEdge.Seconds() / max(gapEdge.Seconds(), age.Seconds())
	edge = min(max(edge, float64(least)), float64(full)/2)
	end := uint64(0)
	for _, run := range p.between(from, to).runs { // as far as whole ones go, which may be in files
		if run.first <= from || run.last >= to || float64(waiting-run.rows[telemetry.LaneLive]) < edge {
			break
		}
		waiting, end = waiting-run.rows[telemetry.LaneLive], run.last
	}
	for b := range p.between(max(from, end), to).all() {
		if end > 0 && float64(waiting) < edge {
			break
		}
		waiting -= uint64(b.rows[telemetry.LaneLive])
		if b.index < to {
			end = b.index
		}
	}
	return end
}

// waitingSince is when the oldest row that waits in the live lane was received: a
// new leader does not know when its predecessor last caught up.
func (f *flusher) waitingSince(now time.Time) time.Time {
	m := f.shard.fsm.machine
	m.mu.Lock()
	var oldest *pendingBlock
	for p := range m.pending.between(m.pending.watermarks.To[telemetry.LaneLive], math.MaxUint64).all() {
		if p.rows[telemetry.LaneLive] > 0 {
			oldest = p
			break
		}
	}
	m.mu.Unlock()
	since := now
	if oldest == nil {
		return since
	}
	var b block.Block
	err := f.eachReading(oldest, &b, func(e *block.Entry, _ *block.Reading, k mark) {
		if at := time.UnixMicro(e.Received); k.lane == telemetry.LaneLive && at.Before(since) {
			since = at
		}
	})
	if err != nil {
		return now // the flush will say so
	}
	return since
}

// backlogDue is the next part of the gap.
func (f *flusher) backlogDue(l *lane) (span, bool) {
	m := f.shard.fsm.machine
	m.mu.Lock()
	gap, live, held := m.pending.watermarks.Gap, m.pending.watermarks.To[telemetry.LaneLive], f.held()
	m.mu.Unlock()
	if held || !gap.Open() {
		return span{}, false
	}
	return span{from: gap.From, to: f.limit(gap.From, gap.To, min(f.cfg.RowsMax, backlogRowsMax), l.rows), gapEnd: gap.To, live: live}, true
}

// gapLost is the range of the gap in the database that the log knows to be
// stored: the backlog lane has to write it again.
func gapLost(known, have telemetry.Watermarks) telemetry.Gap {
	lost := have.Gap
	if lost.To == known.Gap.To {
		lost.To = known.Gap.From
	} else {
		lost.To = min(lost.To, known.To[telemetry.LaneLive])
	}
	if !lost.Open() {
		return telemetry.Gap{}
	}
	return lost
}

// flushed takes note that the shared database holds everything of a lane up to an
// index, but for a gap, and returns the messages this adds. What it held before it
// still does, whatever gap the report knows of.
func (p *pending) flushed(lane telemetry.Lane, to uint64, gap telemetry.Gap) (messages uint64, err error) {
	report := telemetry.Watermarks{Gap: gap}
	report.To[lane] = to
	if lane != telemetry.LaneLive {
		report.To[telemetry.LaneLive], report.Gap = p.watermarks.To[telemetry.LaneLive], p.watermarks.Gap
	}
	old := p.watermarks
	now, ok := old.Union(report)
	switch {
	case ok && now == old:
		return 0, nil
	case now.Gap.Open() && len(p.decided) > 0:
		return 0, fmt.Errorf("%w: a gap where the embedded store has ranges to write", errFlushStale)
	case !ok:
		return 0, fmt.Errorf("%w: up to %d but for %d to %d, where %d but for %d to %d is stored: that would be two gaps",
			errFlushStale, to, gap.From, gap.To, old.To[lane], old.Gap.From, old.Gap.To)
	}
	p.watermarks = now
	ahead, missed := telemetry.Gap{From: old.To[lane], To: now.To[lane]}, telemetry.Gap{}
	p.rows[lane] -= p.rowsIn(lane, ahead)
	if lane == telemetry.LaneLive {
		missed = now.Gap
		p.gapRows = p.rowsIn(lane, missed)
		messages += p.messagesIn(lane, old.Gap, missed)
	}
	messages += p.messagesIn(lane, ahead, missed)
	p.settled(p.complete())
	return messages, nil
}

// messagesIn counts the messages of a lane in a range, but for a part of it.
func (p *pending) messagesIn(lane telemetry.Lane, in, without telemetry.Gap) (n uint64) {
	parts := []telemetry.Gap{in}
	if without.Open() {
		parts = []telemetry.Gap{{From: in.From, To: min(in.To, without.From)}, {From: max(in.From, without.To), To: in.To}}
	}
	for _, part := range parts {
		for b := range p.between(part.From, part.To).all() {
			n += uint64(b.messages[lane])
		}
	}
	return n
}

// rowsIn counts the rows of a lane in a range.
func (p *pending) rowsIn(lane telemetry.Lane, in telemetry.Gap) (n uint64) {
	r := p.between(in.From, in.To)
	whole := func(run *run) bool { return run.first > r.from && run.last <= r.to }
	for _, run := range r.runs {
		if whole(run) {
			n += run.rows[lane]
		}
	}
	r.runs = slices.DeleteFunc(slices.Clone(r.runs), whole)
	for b := range r.all() {
		n += uint64(b.rows[lane])
	}
	return n
}
