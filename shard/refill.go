package shard

import (
	"context"
	"fmt"

	"github.com/sluice-iot/sluice/telemetry"
)

// fallback is a database that stands behind what it once committed: it failed
// over to a replica without its tail, or was restored. The leader writes the rows
// again from the log; a new leader finds out for itself.
type fallback struct {
	on     bool
	have   uint64 // where the database stands
	target uint64 // where it stood; it may have moved on in the log since then
	gapEnd uint64 // of the gap in the database, in the backlog lane
	// Entries behind lostFrom and up to lostTo are not in the log any more; equal
	// when nothing is lost.
	lostFrom, lostTo uint64
	accepted         bool // an operator lets them go
}

// LostError says which rows are neither in the database nor in the log.
type LostError struct {
	Shard    telemetry.ShardID
	Lane     telemetry.Lane
	From, To uint64 // log indexes, From exclusive
}

func (e *LostError) Error() string {
	return fmt.Sprintf("the database has lost what entries %d to %d of shard %d brought (%s lane), and the log no longer has them: restore the database, or accept the loss with `sluice shards accept-loss %d`",
		e.From+1, e.To, e.Shard, e.Lane, e.Shard)
}

// fallenTo compares what the log knows of a lane with what the database has.
func fallenTo(l *lane, known, have telemetry.Watermarks) fallback {
	if l.lane == telemetry.LaneBacklog {
		lost := gapLost(known, have)
		return fallback{on: lost.Open(), have: lost.From, target: lost.To, gapEnd: have.Gap.To}
	}
	return fallback{on: have.To[l.lane] < known.To[l.lane], have: have.To[l.lane], target: known.To[l.lane]}
}

// fallBack notes that the database is behind; false when that is known.
func (f *flusher) fallBack(l *lane, fallen fallback) bool {
	m := f.shard.fsm.machine
	m.mu.Lock()
	fb := &l.fallback
	if fb.on && fb.have == fallen.have {
		l.suspect = false
		m.mu.Unlock()
		return false
	}
	fallen.lostFrom, fallen.lostTo = fallen.have, max(fallen.have, min(m.pending.kept, fallen.target))
	*fb = fallen
	lost := fb.lostTo - fb.lostFrom
	for i := range f.lanes {
		f.lanes[i].suspect = &f.lanes[i] != l
	}
	m.mu.Unlock()
	f.shard.metrics.fallbacks.Inc()
	f.shard.logger.Error("the database has lost rows that it had committed, writing them again from the log",
		"lane", l.lane, "have", fallen.have, "committed", fallen.target, "lost_entries", lost)
	for i := range f.lanes {
		f.lanes[i].wake()
	}
	return true
}

// suspectBacklog makes the backlog lane look at once: the gap in the database is
// larger than it should be.
func (f *flusher) suspectBacklog() {
	m := f.shard.fsm.machine
	l := &f.lanes[telemetry.LaneBacklog]
	m.mu.Lock()
	l.suspect = l.suspect || !l.fallback.on
	m.mu.Unlock()
	l.wake()
}

// forget drops that the database is behind: it is not any more, or somebody else
// leads.
func (f *flusher) forget(l *lane) {
	m := f.shard.fsm.machine
	m.mu.Lock()
	l.fallback, l.suspect = fallback{}, false
	m.mu.Unlock()
}

// refill writes the next range of what the database has lost; true when it is
// worth coming back at once.
func (f *flusher) refill(ctx context.Context, l *lane, term uint64) (bool, error) {
	m := f.shard.fsm.machine
	m.mu.Lock()
	fb, at := l.fallback, m.pending.watermarks.To[l.readings()]
	m.mu.Unlock()
	if !fb.on {
		return false, nil
	}
	if l.lane == telemetry.LaneBacklog {
		at = fb.target
	}
	r := span{from: fb.have, to: at, gapEnd: fb.gapEnd}
	lost := fb.have < fb.lostTo
	switch {
	case lost && !fb.accepted:
		return false, &LostError{Shard: f.shard.id, Lane: l.lane, From: fb.lostFrom, To: fb.lostTo}
	case lost:
		r.to = min(fb.lostTo, at)
	default:
		r.to = f.limit(r.from, r.to, f.cfg.RowsMax, l.rows)
	}
	err := f.write(ctx, l, r, func(b *telemetry.Batch) {
		b.Term, b.Lost = term, lost
		if r.to == at && l.lane == telemetry.LaneLive {
			m.mu.Lock()
			b.Updates, b.Anomalies = m.everything()
			m.mu.Unlock()
		}
	})
	if err != nil {
		err = f.uncertain(ctx, l, err)
		return err == nil, err
	}
	f.refilled(l, r.to, at)
	return true, nil
}

func (f *flusher) refilled(l *lane, to, at uint64) {
	m := f.shard.fsm.machine
	m.mu.Lock()
	done := to >= at
	l.fallback.have = to
	if done {
		l.fallback = fallback{}
	}
	m.mu.Unlock()
	if done {
		f.shard.logger.Info("the database has again what it had", "lane", l.lane, "committed", at)
		f.wake()
	}
}

// AcceptLoss lets go of what neither the database nor the log has any more. It is
// recorded in the database among the refused rows. ErrNotFound when nothing is
// lost.
func (s *Shard) AcceptLoss() error {
	m := s.fsm.machine
	m.mu.Lock()
	accepted := false
	for i := range s.flush.lanes {
		fb := &s.flush.lanes[i].fallback
		if fb.on && fb.have < fb.lostTo {
			fb.accepted, accepted = true, true
		}
	}
	m.mu.Unlock()
	if !accepted {
		return fmt.Errorf("shard %d has lost nothing: %w", s.id, ErrNotFound)
	}
	s.flush.wake()
	return nil
}

// fallenBack reports whether the database is behind.
func (f *flusher) fallenBack() bool {
	m := f.shard.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range f.lanes {
		if f.lanes[i].fallback.on {
			return true
		}
	}
	return false
}

// lost describes what is lost and not accepted, "" when nothing is.
func (f *flusher) lost() string {
	m := f.shard.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range f.lanes {
		l := &f.lanes[i]
		if fb := &l.fallback; fb.on && fb.have < fb.lostTo && !fb.accepted {
			return (&LostError{Shard: f.shard.id, Lane: l.lane, From: fb.lostFrom, To: fb.lostTo}).Error()
		}
	}
	return ""
}
