package wal

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/mutate"
)

const (
	// commitBytesMax bounds a group commit, and with it the wait of the last one
	// in the queue: 4 MiB are some 10 ms on a slow disk.
	commitBytesMax = 4 << 20

	// smallEntryBytes is the size up to which an entry may use the reserve:
	// watermarks and membership are smaller, blocks of messages are not.
	smallEntryBytes = 1 << 10

	// markerDelay is how long the log is idle before a marker proves that its
	// last commit was synced. With the sync it stays below 10 ms.
	markerDelay = 5 * time.Millisecond

	// farMarkerDelay is how much longer it is idle before a second marker is
	// written on a page of its own, so that the loss of the page with the last
	// commit and the first marker is noticed too. It costs half a page of log,
	// hence not after every commit.
	farMarkerDelay = time.Second

	pageBytes = 4096
)

// writer is the state of the one goroutine that writes. Nobody else touches it.
type writer struct {
	head     *segment
	off      int64
	commit   uint64 // number of the last synced group commit
	marked   proof
	pending  []*request
	plan     plan
	crowd    int           // distinct groups in the last two commits
	before   int           // groups in the last one
	patience time.Duration // what is left of Config.Linger while waiting is in vain
	cached   ring
	memory   int64  // bytes in the caches of all groups
	sealed   []byte // the last commit as it is on disk, when it is encrypted; memory for the next
}

// proof says what stands behind the last commit that matters.
type proof uint8

const (
	unproven   proof = iota
	markedNear       // a marker, or a checkpoint
	markedFar        // a marker on another page
)

// plan is a group commit being put together.
type plan struct {
	number uint64
	items  []item
	bytes  int64      // on disk, at most
	over   int64      // of them per record for encryption
	done   []*request // end with this commit
	open   *request   // continues in the next one
	opened bool       // and began in this one
}

// item is one record of a plan.
type item struct {
	g      *Group
	rec    record
	log    *raft.Log // an entry; rec is unused then
	commit uint64    // raft commit index to store with log, if not 0
	size   int       // in the clear; a bound until it is encoded
}

func (p *plan) reset() {
	clear(p.items)
	clear(p.done)
	p.items, p.done, p.bytes = p.items[:0], p.done[:0], 0
	p.open, p.opened = nil, false
	p.number++
}

func (p *plan) add(it item) {
	if it.log != nil {
		it.size = entrySizeMax(it.log, it.commit != 0)
	} else {
		it.size = recordHeaderMax + len(it.rec.body)
	}
	p.items = append(p.items, it)
	p.bytes += int64(align(it.size)) + p.over
}

// run is the writer goroutine.
func (l *Log) run() {
	defer close(l.written)
	idle := time.NewTimer(markerDelay)
	defer idle.Stop()
	for {
		select {
		case <-l.wake:
		case <-idle.C:
			if l.w.marked == unproven {
				l.mark(markedNear)
				idle.Reset(farMarkerDelay)
			} else {
				l.mark(markedFar)
			}
			continue
		}
		for l.take() {
			l.step()
		}
		if l.ended() {
			l.mark(markedFar)
			return
		}
		idle.Reset(markerDelay)
	}
}

// take moves the queue to pending and reports whether there is work.
func (l *Log) take() bool {
	l.dequeue()
	if n := len(l.w.pending); n > 0 && n < l.w.crowd && l.cfg.Linger > 0 {
		l.linger()
	}
	return len(l.w.pending) > 0
}

func (l *Log) dequeue() {
	l.qmu.Lock()
	defer l.qmu.Unlock()
	l.w.pending = append(l.w.pending, l.queue...)
	clear(l.queue)
	l.queue = l.queue[:0]
}

// linger lets the groups that wrote in the last two commits join this one; else
// one comes first, alone, and the others wait a sync longer: half empty commits,
// taking turns. It yields
// instead of sleeping: a Go timer is a millisecond late on an idle machine, and
// the groups it waits for are runnable now, because their last commit has just
// returned. While nobody comes it waits less and less.
func (l *Log) linger() {
	w := &l.w
	before := len(w.pending)
	for start := time.Now(); len(w.pending) < w.crowd && time.Since(start) < w.patience; l.dequeue() {
		runtime.Gosched()
	}
	if len(w.pending) > before {
		w.patience = min(2*w.patience, l.cfg.Linger)
	} else {
		w.patience = max(w.patience/2, l.cfg.Linger/16)
	}
}

func (l *Log) ended() bool {
	l.qmu.Lock()
	defer l.qmu.Unlock()
	return l.closed && len(l.queue) == 0
}

// step makes one group commit of what is pending and answers those who waited
// for it.
func (l *Log) step() {
	w := &l.w
	if err := l.Err(); err != nil {
		l.answer(w.pending, err)
		w.drop(len(w.pending))
		return
	}
	w.drop(l.fill())
	p := &w.plan
	w.count(p)
	err := l.commitPlan()
	l.answer(p.done, err)
	if err == nil || p.open == nil || l.Err() != nil {
		return
	}
	if !p.opened {
		// The beginning is durable, so the request can neither be refused nor end.
		_ = l.fail(fmt.Errorf("store the rest of %d entries of group %d: %w", len(p.open.logs), p.open.g.id, err))
		return
	}
	l.answer(w.pending[:1], err)
	w.drop(1)
}

// count notes how many distinct groups the last two plans held.
func (w *writer) count(p *plan) {
	n, again := 0, 0
	for _, r := range p.done {
		if r.g == nil || r.g.seen == p.number {
			continue
		}
		if n++; r.g.seen == p.number-1 {
			again++
		}
		r.g.seen = p.number
	}
	w.crowd, w.before = n+w.before-again, n
}

// fill plans what fits into one commit and returns how many pending requests are
// dealt with.
func (l *Log) fill() int {
	p := &l.w.plan
	p.reset()
	for n, req := range l.w.pending {
		if p.bytes >= l.commitLimit() {
			return n
		}
		at := req.at
		finished, err := l.add(req)
		switch {
		case err != nil:
			req.done <- err
		case finished:
			p.done = append(p.done, req)
		default:
			if req.at > at {
				p.open, p.opened = req, at == 0
			}
			return n
		}
	}
	return len(l.w.pending)
}

func (l *Log) answer(reqs []*request, err error) {
	for _, r := range reqs {
		r.done <- err
	}
}

// drop forgets the first n pending requests.
func (w *writer) drop(n int) {
	rest := copy(w.pending, w.pending[n:])
	clear(w.pending[rest:])
	w.pending = w.pending[:rest]
}

func (l *Log) commitLimit() int64 { return min(commitBytesMax, l.halfSegment()) }

// commitPlan writes the plan as one group commit and makes it visible.
func (l *Log) commitPlan() error {
	p := &l.w.plan
	if len(p.items) == 0 {
		return nil
	}
	if err := l.room(p.bytes); err != nil {
		return err
	}
	buf := make([]byte, 0, p.bytes)
	for i := range p.items {
		at := len(buf)
		buf = l.encode(buf, &p.items[i], i == len(p.items)-1)
		p.items[i].size = int(binary.LittleEndian.Uint32(buf[at+recordLengthStart:]))
	}
	start, disk := l.w.off, buf
	if head := l.w.head; head.aead != nil {
		disk = slices.Grow(l.w.sealed[:0], int(p.bytes))
		at := 0
		for i := range p.items {
			disk = head.seal(disk, buf[at:at+p.items[i].size])
			at += align(p.items[i].size)
		}
		l.w.sealed = disk
	}
	if err := l.write(disk); err != nil {
		return err
	}
	l.metrics.commitRequests.Observe(float64(len(p.done)))
	l.w.marked = unproven
	return l.publish(buf, start)
}

func (l *Log) encode(buf []byte, it *item, last bool) []byte {
	var flags uint8
	if last {
		flags = flagLast
	}
	commit := l.w.commit + 1
	if it.log == nil {
		it.rec.commit = commit
		it.rec.flags |= flags
		return appendRecord(buf, l.w.head.key, &it.rec)
	}
	if it.commit != 0 {
		flags |= flagCommitIndex
	}
	return appendEntry(buf, l.w.head.key, it.g.id, commit, flags, it.commit, it.log)
}

// write writes one group commit at the head and syncs it.
func (l *Log) write(buf []byte) error {
	w := &l.w
	if _, err := w.head.f.WriteAt(buf, w.off); err != nil {
		return l.fail(fmt.Errorf("write group commit %d to segment %s: %w", w.commit+1, w.head.name, err))
	}
	l.latency.begin()
	if err := l.sync(); err != nil {
		return l.fail(fmt.Errorf("sync group commit %d in segment %s: %w", w.commit+1, w.head.name, err))
	}
	l.metrics.fsync.Observe(l.latency.end().Seconds())
	l.metrics.commits.Inc()
	l.metrics.written.Add(float64(len(buf)))
	w.off += int64(len(buf))
	w.commit++
	w.head.end.Store(w.off)
	return nil
}

// sync makes the group commit at the head durable. A failure is final: the
// kernel may have dropped the pages, and a second sync would say that all is well.
func (l *Log) sync() error {
	if mutate.On(mutate.AckBeforeFsync) {
		return nil
	}
	err := l.w.head.f.Fdatasync()
	for mutate.On(mutate.RetryFsync) && err != nil {
		err = l.w.head.f.Fdatasync()
	}
	return err
}

// publish applies the synced records of the plan, which are in buf in the clear
// and start at file offset off.
func (l *Log) publish(buf []byte, off int64) error {
	w := &l.w
	over := w.head.overhead()
	var at, stored int
	defer func() { l.metrics.entries.Add(float64(stored)) }()
	for i := range w.plan.items {
		it := &w.plan.items[i]
		raw := buf[at : at+it.size : at+it.size]
		loc := location{segment: w.head.id(), offset: uint32(off), size: uint32(it.size + over)}
		off += int64(align(it.size + over))
		at += align(it.size)
		r := parseRecord(raw)
		g := it.g
		g.mu.Lock()
		before := g.cache.bytes
		err := g.apply(&r, loc, l.addLive)
		if it.log != nil {
			g.cache.add(r.index, raw)
			w.cached.push(cacheKey{g, r.index})
			stored++
		}
		w.memory += g.cache.bytes - before
		g.mu.Unlock()
		if err != nil { // add checked it against the same state
			return l.fail(fmt.Errorf("apply record %d of group %d: %w", r.index, g.id, err))
		}
		switch r.typ {
		case typeRelocated:
			l.metrics.relocated.Add(float64(it.size))
		case typeTruncate, typePrefix, typeDetach, typeRemove:
			l.janitor.kick() // a segment may be empty now
		}
	}
	l.evict()
	return nil
}

// evict keeps the caches of all groups together within their bound.
func (l *Log) evict() {
	w := &l.w
	for w.memory > l.cfg.CacheBytes {
		k, ok := w.cached.pop()
		if !ok {
			return
		}
		k.g.mu.Lock()
		before := k.g.cache.bytes
		if k.g.cache.get(k.index) != nil {
			k.g.cache.trim(k.index+1, k.g.state.last)
		}
		w.memory += k.g.cache.bytes - before
		k.g.mu.Unlock()
	}
}
