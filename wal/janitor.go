package wal

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// floorDelay gathers the floors of all groups before they are stored: a floor
	// that is a second late only keeps entries a second longer.
	floorDelay = time.Second

	// moveBytesMax is how much is relocated by one request, and so how much a
	// group commit grows by it.
	moveBytesMax = 1 << 20

	// Rewriting starts when the dead bytes in sealed segments exceed both
	// deadSegmentsMax segments and half of what lives; below that, segments die
	// by themselves as floors rise, and moving their last entries would only
	// cost writes. Then the segments with the smallest share of live bytes go,
	// never one that is more than half alive.
	deadSegmentsMax = 4
)

// janitor frees segments: it stores floors, recycles segments without live
// entries, and rewrites the few live entries of others to the head.
type janitor struct {
	l       *Log
	wake    chan struct{}
	pressed atomic.Bool // disk is short, see Log.Press
	mu      sync.Mutex  // one maintenance at a time
}

func newJanitor(l *Log) *janitor { return &janitor{l: l, wake: make(chan struct{}, 1)} }

func (j *janitor) kick() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// run is the janitor goroutine. Empty segments go at once, the rest waits until
// floorDelay has passed since the last time.
func (j *janitor) run() {
	due := time.NewTimer(floorDelay)
	defer due.Stop()
	for waiting := true; ; {
		select {
		case <-j.wake:
			j.mu.Lock()
			j.recycle()
			j.mu.Unlock()
			if !waiting {
				due.Reset(floorDelay)
				waiting = true
			}
			continue
		case <-due.C:
			waiting = false
		case <-j.l.stop:
			return
		}
		if err := j.maintain(); err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrFull) && j.l.Err() == nil {
			j.l.logger.Error("log maintenance ended early", "dir", j.l.dir, "err", err)
		}
	}
}

// maintain does everything that is due.
func (j *janitor) maintain() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.floors(); err != nil {
		return err
	}
	j.recycle()
	defer func() { j.l.shelve(j.l.sortedGroups()) }()
	sealed := j.sealed() // what is sealed meanwhile waits for the next time
	for {
		victim := j.victim(sealed)
		if victim == nil {
			return nil
		}
		if err := j.rewrite(victim); err != nil {
			return err
		}
		j.recycle()
	}
}

// floors stores the floors that free entries.
func (j *janitor) floors() error {
	var reqs []*request
	for _, g := range j.l.sortedGroups() {
		g.mu.RLock()
		s := g.state
		g.mu.RUnlock()
		if cut := min(s.asked, g.floor.Load()); s.last != 0 && cut >= s.first {
			g.thawFor(cut)
			reqs = append(reqs, newRequest(opFloor, g))
		}
	}
	return j.l.doAll(reqs)
}

// doAll submits requests together and waits for all.
func (l *Log) doAll(reqs []*request) error {
	var errs []error
	for _, r := range reqs {
		if err := l.submit(r); err != nil {
			r.done <- err
		}
	}
	for _, r := range reqs {
		errs = append(errs, <-r.done)
	}
	return errors.Join(errs...)
}

// recycle hands segments without live entries to the preparer.
func (j *janitor) recycle() {
	for _, s := range j.sealed() {
		if s.live.Load() != 0 {
			continue
		}
		j.l.smu.Lock()
		delete(j.l.segs, s.id())
		j.l.metrics.segments.Set(float64(len(j.l.segs)))
		j.l.smu.Unlock()
		s.use.Lock() // readers that found it before are done
		old := &segment{segmentHeader: s.segmentHeader, name: s.name, f: s.f}
		s.f = nil
		s.use.Unlock()
		j.l.metrics.recycled.Inc()
		j.l.prep.give(old)
	}
}

func (j *janitor) sealed() []*segment {
	j.l.smu.RLock()
	defer j.l.smu.RUnlock()
	var out []*segment
	for _, s := range j.l.segs {
		if s.sealed.Load() {
			out = append(out, s)
		}
	}
	return out
}

// victim picks one of candidates to rewrite, nil if none is worth it.
func (j *janitor) victim(candidates []*segment) *segment {
	var live, dead int64
	sealed := j.sealed()
	for _, s := range sealed {
		live += s.live.Load()
		dead += s.dead()
	}
	limit := max(deadSegmentsMax*j.l.cfg.SegmentBytes, live/2)
	if j.l.Full() || j.pressed.Load() {
		limit = 0 // then every segment counts
	}
	if dead <= limit {
		return nil
	}
	var best *segment
	for _, s := range candidates {
		if s.share() <= 0.5 && !s.rotten.Load() && slices.Contains(sealed, s) && (best == nil || s.share() < best.share()) {
			best = s
		}
	}
	return best
}

// rewrite moves the live entries of a sealed segment to the head.
func (j *janitor) rewrite(s *segment) error {
	req := newRequest(opMove, nil)
	size := 0
	flush := func() error {
		if len(req.moves) == 0 {
			return nil
		}
		err := j.l.do(req)
		req, size = newRequest(opMove, nil), 0
		return err
	}
	t, err := s.scan(func(off int64, raw []byte, r *record) error {
		m, ok, err := j.move(s, off, raw, r)
		if err != nil || !ok {
			return err
		}
		req.moves = append(req.moves, m)
		if size += len(raw); size < moveBytesMax {
			return nil
		}
		return flush()
	})
	if err == nil && !t.sealed {
		err = s.corrupt(t.off, "records end before the seal", t.why)
	}
	if err == nil {
		err = flush()
	}
	if err == nil && s.live.Load() != 0 {
		err = fmt.Errorf("segment %s still has %d live bytes", s.name, s.live.Load())
	}
	if err != nil {
		j.l.damaged(s, err)
		return fmt.Errorf("rewrite segment %s: %w", s.name, err)
	}
	return nil
}

// move makes the copy of a record if it is a live entry.
func (j *janitor) move(s *segment, off int64, raw []byte, r *record) (move, bool, error) {
	if r.typ != typeEntry && r.typ != typeRelocated {
		return move{}, false, nil
	}
	j.l.gmu.RLock()
	g := j.l.groups[r.group]
	j.l.gmu.RUnlock()
	from := location{segment: s.id(), offset: uint32(off), size: uint32(len(raw) + s.overhead())}
	if g == nil {
		return move{}, false, nil
	}
	if ok, err := g.isAt(r.index, from); err != nil || !ok {
		return move{}, false, err
	}
	if r.typ == typeRelocated {
		if err := checkOrigin(r, s.logID); err != nil {
			return move{}, false, s.corrupt(off, "entry changed while it was relocated", err)
		}
	}
	rec := relocate(r, raw, s.seq)
	if r.typ == typeRelocated {
		rec.body = append([]byte(nil), rec.body...) // raw is the scan's buffer
	}
	return move{g: g, from: from, rec: rec}, true, nil
}

// isAt reports whether an entry is at loc. If so, its part of the index is in memory
// from now on, because it is about to change.
func (g *Group) isAt(index uint64, loc location) (bool, error) {
	at, seg, ok, err := g.lookup(index)
	if err != nil || !ok {
		return false, err
	}
	seg.use.RUnlock()
	if at != loc {
		return false, nil
	}
	g.thaw(index)
	return true, nil
}
