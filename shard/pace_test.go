package shard

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestLateBatchesFitBetweenTheBeats: none begins while a live lane is at work, nor
// right after a beat, nor when it would not be done by the next one; and none waits
// for ever.
func TestLateBatchesFitBetweenTheBeats(t *testing.T) {
	const interval = time.Second
	synctest.Test(t, func(t *testing.T) {
		var p pace
		waits := func(at time.Duration) time.Duration {
			t.Helper()
			time.Sleep(time.Until(beat(time.Now(), interval).Add(interval)))
			p.wrote(time.Now().Add(-interval / 2)) // in the interval before
			time.Sleep(at)
			start := time.Now()
			p.calm(t.Context(), interval)
			return time.Since(start)
		}
		if got := func() time.Duration { start := time.Now(); p.calm(t.Context(), interval); return time.Since(start) }(); got != 0 {
			t.Errorf("nothing live has ever been written: waited %v", got)
		}
		p.took.Store(int64(100 * time.Millisecond))
		for at, want := range map[time.Duration]time.Duration{
			25 * time.Millisecond:  100 * time.Millisecond, // the live lanes' eighth of the interval
			125 * time.Millisecond: 0,
			900 * time.Millisecond: 0,
			901 * time.Millisecond: 224 * time.Millisecond, // into the next one, after its eighth
		} {
			if got := waits(at); got < want || got > want+2*time.Millisecond {
				t.Errorf("%v after a beat: waited %v, want %v", at, got, want)
			}
		}
		p.took.Store(int64(time.Minute))
		if got := waits(300 * time.Millisecond); got != 0 {
			t.Errorf("a batch that takes longer than any interval: waited %v", got)
		}
		p.took.Store(0)
		ends := p.begins()
		time.AfterFunc(5*interval, ends)
		if got := waits(300 * time.Millisecond); got != calmMax*interval {
			t.Errorf("a live lane is always at work: waited %v, want %v", got, calmMax*interval)
		}
		time.Sleep(2 * liveFlow)
		start := time.Now()
		p.begins()
		p.calm(t.Context(), interval)
		if got := time.Since(start); got != 0 {
			t.Errorf("live rows do not flow: waited %v", got)
		}
	})
}

// TestLateBatchesBecomeAsSmallAsTheyMust and grow again, within their bounds.
func TestLateBatchesBecomeAsSmallAsTheyMust(t *testing.T) {
	var p pace
	now := time.Now()
	if got := p.lateRows(now); got != lateRowsMax {
		t.Errorf("no live rows flow: %d rows, want %d", got, lateRowsMax)
	}
	p.wrote(now)
	for range 20 {
		p.late(p.lateRows(now), 10*time.Millisecond, time.Second)
	}
	if got := p.lateRows(now); got != lateRowsMax {
		t.Errorf("fast batches: %d rows, want %d", got, lateRowsMax)
	}
	p.late(p.lateRows(now), 126*time.Millisecond, time.Second)
	if got := p.lateRows(now); got != lateRowsMax/2 {
		t.Errorf("more than an eighth of the interval: %d rows, want %d", got, lateRowsMax/2)
	}
	p.late(10, time.Millisecond, time.Second)
	if got := p.lateRows(now); got != lateRowsMax/2 {
		t.Errorf("a batch of a few rows: %d rows, want %d", got, lateRowsMax/2)
	}
	for range 20 {
		p.late(p.lateRows(now), time.Second, time.Hour)
	}
	if got := p.lateRows(now); got != lateRowsMin {
		t.Errorf("slow batches: %d rows, want %d", got, lateRowsMin)
	}
}
