package wal

import (
	"encoding/binary"
	"fmt"
)

// view is the group's state as it will be after what is planned so far.
func (l *Log) view(g *Group) *state {
	if n := l.w.plan.number; g.stagedIn != n {
		g.staged, g.stagedIn = g.state, n
	}
	return &g.staged
}

// add plans a request. finished is false when the rest of it has to wait for the
// next commit. With an error nothing of it is planned.
func (l *Log) add(req *request) (finished bool, err error) {
	switch req.op {
	case opStore:
		return l.addStore(req)
	case opMove:
		return l.addMoves(req), nil
	case opDelete:
		return true, l.addDelete(req)
	case opStable:
		l.addRecord(req.g, record{typ: typeStable, body: req.body})
	case opFloor:
		if s, floor := l.view(req.g), req.g.floor.Load(); floor > s.floor {
			l.addRecord(req.g, record{typ: typePrefix, index: s.asked, body: floorBody(floor)})
		}
	case opRemove:
		l.addRecord(req.g, record{typ: typeRemove})
	}
	return true, nil
}

func floorBody(floor uint64) []byte { return binary.LittleEndian.AppendUint64(nil, floor) }

// addRecord plans a record that is always valid.
func (l *Log) addRecord(g *Group, r record) {
	r.group = g.id
	_ = l.view(g).apply(&r)
	l.w.plan.add(item{g: g, rec: r})
}

func (l *Log) addStore(req *request) (bool, error) {
	g := req.g
	s := l.view(g)
	if req.at == 0 {
		next := *s
		if err := next.append(req.logs[0].Index, 0); err != nil {
			return true, fmt.Errorf("store entry %d of group %d behind entry %d: %w", req.logs[0].Index, g.id, s.last, ErrGap)
		}
		if err := l.afford(req); err != nil {
			return true, fmt.Errorf("store %d entries of group %d: %w", len(req.logs), g.id, err)
		}
	}
	limit := l.commitLimit()
	for i := req.at; i < len(req.logs); i++ {
		it := item{g: g, log: req.logs[i]}
		if i == len(req.logs)-1 && req.commit != s.commit {
			it.commit = req.commit
		}
		size := int64(align(entrySizeMax(it.log, it.commit != 0))) + l.overhead()
		if len(l.w.plan.items) > 0 && l.w.plan.bytes+size > limit {
			req.at = i
			return false, nil
		}
		if err := s.append(it.log.Index, it.commit); err != nil {
			return true, l.fail(fmt.Errorf("plan entry %d of group %d: %w", it.log.Index, g.id, err))
		}
		l.w.plan.add(it)
	}
	return true, nil
}

// afford makes sure that all of a store fits without what it may not use of the
// reserve, or nothing of it is written.
func (l *Log) afford(req *request) error {
	var total, used int64
	segments := 1
	half := l.halfSegment()
	for _, e := range req.logs {
		n := int64(align(entrySizeMax(e, true))) + l.overhead()
		total += n
		if used += n; used > half {
			segments, used = segments+1, n
		}
	}
	keep := 1 // the last segment is for votes, and for deletions, which end the shortage
	if req.bulk || total >= l.commitLimit() {
		if keep = reserveSegments; l.prep.isFull() {
			return ErrFull
		}
	}
	if head := l.w.head; l.w.off+l.w.plan.bytes+total+head.sealBytes() <= head.bytes && l.current(head) {
		return nil
	}
	return l.prep.await(segments + keep)
}

func (l *Log) addDelete(req *request) error {
	g := req.g
	s := l.view(g)
	first, last := s.visible()
	floor := floorBody(max(s.floor, g.floor.Load()))
	switch lo, hi := req.min, req.max; {
	case last == 0 || lo > hi || hi < first || lo > last:
	case lo <= first && hi >= last:
		l.addRecord(g, record{typ: typeDetach, index: last, body: floor})
	case lo <= first:
		l.addRecord(g, record{typ: typePrefix, index: hi, body: floor})
	case hi >= last:
		l.addRecord(g, record{typ: typeTruncate, index: lo})
	default:
		return fmt.Errorf("delete entries %d..%d of group %d, which has %d..%d: %w", lo, hi, g.id, first, last, ErrGap)
	}
	return nil
}

// stillAt reports whether an entry is at loc, for the writer.
func (g *Group) stillAt(index uint64, loc location) bool {
	if !g.state.holds(index) {
		return false
	}
	g.mu.RLock()
	at, _, ok := g.index.find(index, fetched{})
	g.mu.RUnlock()
	if !ok { // isAt had it in memory
		g.mu.Lock()
		at = g.index.get(index)
		g.mu.Unlock()
	}
	return at == loc
}

// addMoves plans relocations of entries that still are where they were. They come
// first in a commit, because what they are checked against is the synced state.
func (l *Log) addMoves(req *request) bool {
	if len(l.w.plan.items) > 0 && req.at == 0 {
		return false
	}
	for i := req.at; i < len(req.moves); i++ {
		m := &req.moves[i]
		if !m.g.stillAt(m.rec.index, m.from) {
			continue
		}
		size := int64(align(recordHeaderMax+len(m.rec.body))) + l.overhead()
		if len(l.w.plan.items) > 0 && l.w.plan.bytes+size > l.commitLimit() {
			req.at = i
			return false
		}
		l.w.plan.add(item{g: m.g, rec: m.rec})
	}
	return true
}
