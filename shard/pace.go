package shard

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	// lateRowsMax bounds a transaction of the late lane while no live rows flow.
	lateRowsMax = 20_000
	// lateRowsMin is how small batches of the late lane become while live rows flow:
	// below, what a transaction costs whatever is in it weighs more than its rows.
	lateRowsMin = 2_000
	// lateTakesMax is how long a batch of the late lane should take while live rows
	// flow: a live flush that comes meanwhile is held up by no more than that. An
	// eighth of the interval where that is less.
	lateTakesMax = 200 * time.Millisecond
	// lateRest is how long the late lane of a node rests after a batch, as a
	// multiple of the time that took, while live rows flow.
	lateRest = 2
	// liveFlow is for how long live rows flow after the last one.
	liveFlow = 5 * time.Second
	// beatShare is the part of an interval after a beat that belongs to the live
	// lanes, whether they have begun to write or not.
	beatShare = 8
	// calmMax is how many intervals the late lane waits for a calm moment: live
	// lanes that are at work without a pause must not hold it up for ever.
	calmMax = 2
	// calmLook is how often it looks whether the live lanes are done.
	calmLook = 10 * time.Millisecond
)

// pace keeps the late lanes of a node out of the way of its live lanes: they write
// between the beats, what is done by the next one.
type pace struct {
	busy   atomic.Int32              // live lanes that gather, wait or write
	liveAt atomic.Pointer[time.Time] // when a live lane last wrote; nil: never
	rows   atomic.Int64              // of the next late batch, about; 0: lateRowsMin
	took   atomic.Int64              // time.Duration of the last late batch
}

// begins counts a live batch; the function it returns ends it.
func (p *pace) begins() (ends func()) {
	p.busy.Add(1)
	return func() { p.busy.Add(-1) }
}

// wrote notes that live rows flow.
func (p *pace) wrote(now time.Time) { p.liveAt.Store(&now) }

// flows reports whether live rows flow.
func (p *pace) flows(now time.Time) bool {
	at := p.liveAt.Load()
	return at != nil && now.Sub(*at) <= liveFlow
}

// lateRows is how many rows the next late batch should have.
func (p *pace) lateRows(now time.Time) int {
	if !p.flows(now) {
		return lateRowsMax
	}
	return int(max(p.rows.Load(), lateRowsMin))
}

// late learns from a late batch how large the next one should be.
func (p *pace) late(rows int, took, interval time.Duration) {
	p.took.Store(int64(took))
	most := min(lateTakesMax, interval/beatShare)
	was := max(p.rows.Load(), lateRowsMin)
	switch {
	case took > most:
		was /= 2
	case took < most/2 && int64(rows) >= was/2: // the smaller ones say nothing
		was += was / 2
	}
	p.rows.Store(min(max(was, lateRowsMin), lateRowsMax))
}

// calm waits until no live lane is at work and the next beat is further away than
// a late batch takes, for calmMax intervals at most.
func (p *pace) calm(ctx context.Context, interval time.Duration) {
	for end := time.Now().Add(calmMax * interval); ; {
		now := time.Now()
		if !p.flows(now) || !now.Before(end) {
			return
		}
		wait := calmLook
		if p.busy.Load() == 0 {
			if wait = p.untilCalm(now, interval); wait == 0 {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(wait, time.Until(end))):
		}
	}
}

// untilCalm is how long the beat of the live lanes is to be waited for.
func (p *pace) untilCalm(now time.Time, interval time.Duration) time.Duration {
	began := beat(now, interval)
	lead := interval / beatShare // after a beat
	if since := now.Sub(began); since < lead && p.liveAt.Load().Before(began) {
		return lead - since
	}
	takes := min(time.Duration(p.took.Load()), interval/2)
	if next := began.Add(interval); next.Sub(now) < takes {
		return next.Sub(now) + time.Millisecond
	}
	return 0
}

// rest keeps the node's late lanes waiting after a batch while live rows flow.
func (p *pace) rest(ctx context.Context, took time.Duration) {
	if !p.flows(time.Now()) {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(lateRest * took):
	}
}
