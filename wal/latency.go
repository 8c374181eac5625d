package wal

import (
	"sync/atomic"
	"time"
)

const (
	// slowSync is how long a sync takes at least on a slow disk. Leaders wait for
	// their own sync before they send an entry, and for nothing else that long.
	slowSync = 100 * time.Millisecond
	// hungSync is when one sync alone says so; otherwise it takes two in a row, for
	// any disk is late once.
	hungSync = 4 * slowSync
	// slowHold is how long the disk has to be well, every sync in less than half of
	// slowSync, before it is not slow any more: what gives way to it should not come
	// back between two of its moods.
	slowHold = 5 * time.Second
)

// latency judges the disk by the syncs of group commits. The writer notes them,
// anybody may ask. Times are nanoseconds since base.
type latency struct {
	base  time.Time
	began atomic.Int64 // of the sync under way; 0 is none
	last  atomic.Int64 // how long the one before it took
	until atomic.Int64 // slow until then
}

func newLatency() *latency { return &latency{base: time.Now()} }

func (l *latency) now() time.Duration { return time.Since(l.base) }

// begin notes that a sync is under way.
func (l *latency) begin() { l.began.Store(max(1, int64(l.now()))) }

// end notes that it is over. It is not under way any more before it is the last
// one, or Slow could take it for two.
func (l *latency) end() (took time.Duration) {
	now := l.now()
	took = now - time.Duration(l.began.Load())
	l.judge(now, time.Duration(l.last.Load()), took)
	l.began.Store(0)
	l.last.Store(int64(took))
	return took
}

// judge prolongs the slow state by a sync that has taken some time by now, and
// came after one that took last.
func (l *latency) judge(now, last, took time.Duration) {
	if took > hungSync || took > slowSync && last > slowSync || took > slowSync/2 && now < time.Duration(l.until.Load()) {
		l.until.Store(int64(now + slowHold))
	}
}

// underWay is how long the present sync has taken so far.
func (l *latency) underWay(now time.Duration) time.Duration {
	if began := time.Duration(l.began.Load()); began > 0 {
		return max(0, now-began)
	}
	return 0
}

// SyncLatency is how long the last sync of a group commit took, or the one under
// way by now if that is longer.
func (l *Log) SyncLatency() time.Duration {
	return max(time.Duration(l.latency.last.Load()), l.latency.underWay(l.latency.now()))
}

// Slow reports whether the disk of the log is slow: two syncs in a row, the one
// under way included, took more than 100 ms, or one has for 400 ms. It is not any
// more when all of them took less than 50 ms for five seconds.
func (l *Log) Slow() bool {
	d := l.latency
	now, last := d.now(), time.Duration(d.last.Load()) // before what is under way, see end
	d.judge(now, last, d.underWay(now))
	return now < time.Duration(d.until.Load())
}
