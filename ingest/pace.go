package ingest

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// pace decides how much telemetry may be in flight, so that a commit takes about as
// long as it should: what is more than the node can work off in that time would only
// wait in front of the cores and in the logs, where nothing that is urgent can pass it.
//
// By Little's law (J. Little, "A proof for the queuing formula L = λW", Operations
// Research 9, 1961), what is in flight is the rate times the time that it takes; while
// commits are slower than the target, the bound moves towards the rate that they have
// times the target. While they are faster, it grows. The target is never less than twice
// the least time that a commit lately took, as TCP Vegas judges a queue by the round
// trip without one (Brakmo, O'Malley, Peterson, SIGCOMM 1994): where the disk or the
// way to the other replicas is slow, less in flight would only mean less throughput.
//
// The step functions take the time; nothing here waits or reads a clock.
type pace struct {
	target time.Duration // 0: no bound
	floor  int64

	limit atomic.Int64
	held  atomic.Int64 // cost of publishes that wait for a stalled shard
	done  atomic.Int64 // cost of what was committed since the last step
	took  atomic.Int64 // ns that a commit took at the last step

	mu       sync.Mutex
	began    time.Time // of the present step
	messages int64     // of the blocks answered since
	waited   float64   // seconds, over all of these
	blocks   int
	least    time.Duration    // that a block took in this step
	bases    [2]time.Duration // the least in the present and in the last baseEvery; 0: none
	based    time.Time
}

const (
	paceEvery     = 100 * time.Millisecond // a step; several commits even on a slow disk
	paceStale     = time.Second            // a step that had too few answers by then says nothing
	paceBlocksMin = 8                      // answers that a step is judged by
	paceGrow      = 1.125                  // in a step: eightfold in two seconds
	baseEvery     = 5 * time.Second
	baseFactor    = 2
	// A shard's blocks cost the cluster as much as their messages when they have fewer than
	// about two dozen: the bound leaves that much to each shard.
	paceShareMin = 16 << 10
	paceMax      = 1 << 30 // far above what a node may hold in flight
)

func newPace(target time.Duration, shards uint32) *pace {
	p := &pace{target: target, floor: int64(shards) * paceShareMin}
	p.limit.Store(4 * p.floor)
	return p
}

// allowance is the bound, with what waits for stalled shards on top: it does not keep
// anybody else's telemetry out.
func (p *pace) allowance() int64 {
	if p.target == 0 {
		return math.MaxInt64
	}
	return p.limit.Load() + p.held.Load()
}

// answered takes note of a block that was committed; took is from its first message on.
func (p *pace) answered(now time.Time, messages int, took time.Duration) {
	if p.target == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.began) > paceStale {
		p.restartLocked(now)
		p.done.Store(0)
	}
	if p.based.IsZero() {
		p.based = now
	}
	p.messages += int64(messages)
	p.waited += float64(messages) * took.Seconds()
	p.blocks++
	if p.least == 0 || took < p.least {
		p.least = took
	}
	if now.Sub(p.began) >= paceEvery && p.blocks >= paceBlocksMin {
		p.stepLocked(now)
	}
}

func (p *pace) stepLocked(now time.Time) {
	elapsed := now.Sub(p.began).Seconds()
	took := p.waited / float64(p.messages)
	rate := float64(p.done.Swap(0)) / elapsed
	if p.bases[0] == 0 || p.least < p.bases[0] {
		p.bases[0] = p.least
	}
	target := p.targetLocked()
	limit := float64(p.limit.Load())
	if took > target {
		flight := min(limit, rate*took) // who used less than the bound is not slow because of it
		limit = (flight + rate*target) / 2
	} else {
		limit *= paceGrow
	}
	p.limit.Store(int64(min(max(limit, float64(p.floor)), paceMax)))
	p.took.Store(int64(took * float64(time.Second)))
	if now.Sub(p.based) >= baseEvery {
		p.bases[1], p.bases[0], p.based = p.bases[0], 0, now
	}
	p.restartLocked(now)
}

func (p *pace) restartLocked(now time.Time) {
	p.began, p.messages, p.waited, p.blocks, p.least = now, 0, 0, 0, 0
}

// targetLocked is what a commit may take, in seconds.
func (p *pace) targetLocked() float64 {
	base := p.bases[0]
	if b := p.bases[1]; b > 0 && b < base {
		base = b
	}
	return max(p.target, baseFactor*base).Seconds()
}

// stallAfter is how long a shard may be silent, with blocks under way, before it counts
// as stalled: longer than overload makes one wait.
func (p *pace) stallAfter() time.Duration {
	return max(stallMin, stallFactor*time.Duration(p.took.Load()))
}

const (
	stallMin    = 500 * time.Millisecond
	stallFactor = 4
)

// hold counts a publish as one that waits for a stalled shard, until it is finished.
func (p *pace) hold(t *publication) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.held && t.open > 0 {
		t.held = true
		p.held.Add(t.size)
	}
}

// finished takes note of a publish that has its outcome.
func (p *pace) finished(t *publication) {
	if t.held {
		p.held.Add(-t.size)
	} else if t.result.Refused == 0 {
		p.done.Add(t.size)
	}
}

const (
	beatShare = 4 // of what a commit takes: as many blocks of a shard are under way
	beatMax   = 16 * time.Millisecond
)

// beat is how long blocks are gathered on a busy node: who waits long for a commit
// anyway is better off in a larger block.
func (p *pace) beat(least time.Duration) time.Duration {
	return max(least, min(beatMax, time.Duration(p.took.Load())/beatShare))
}
