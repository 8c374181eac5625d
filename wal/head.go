package wal

import (
	"encoding/binary"
	"fmt"
)

// mark writes a marker behind the last commit, which proves that it was synced.
func (l *Log) mark(want proof) {
	w := &l.w
	if w.marked >= want || l.Err() != nil {
		return
	}
	r := record{typ: typeMarker, flags: flagLast, commit: w.commit + 1}
	size := int64(r.headerSize() + w.head.overhead())
	var pad int64 // a marker's body that reaches to the next page
	if want == markedFar {
		pad = (pageBytes - (w.off+size)%pageBytes) % pageBytes
	}
	if w.off+size+pad+2*w.head.sealBytes() > w.head.bytes {
		// No room: the checkpoint of the next segment proves it as well. A full
		// disk leaves the last commit unproven, which costs nothing but certainty.
		if l.rotate() == nil {
			w.marked = markedFar
		}
		return
	}
	var buf []byte
	if want == markedFar {
		buf = w.head.append(nil, &record{typ: typeMarker, commit: r.commit, body: make([]byte, pad)})
	}
	if l.write(w.head.append(buf, &r)) == nil {
		w.marked = want
	}
}

// room makes sure that n bytes and a seal fit behind the head's end, and that they
// are encrypted as they should be.
func (l *Log) room(n int64) error {
	for l.w.off+n+l.w.head.sealBytes() > l.w.head.bytes || !l.current(l.w.head) {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	return nil
}

// rotate seals the head and goes on in the next prepared segment. ErrFull leaves
// everything as it is.
func (l *Log) rotate() error {
	w := &l.w
	next, err := l.prep.take()
	if err != nil {
		return err
	}
	seal := record{typ: typeSeal, flags: flagLast, commit: w.commit + 1}
	if err := l.write(w.head.append(nil, &seal)); err != nil {
		return err
	}
	full := w.head
	l.begin(next)
	if err := l.checkpoint(); err != nil {
		return err
	}
	full.sealed.Store(true) // only now is nothing but its entries needed
	l.janitor.kick()
	return nil
}

// begin makes s the head.
func (l *Log) begin(s *segment) {
	l.smu.Lock()
	l.segs[s.id()] = s
	l.metrics.segments.Set(float64(len(l.segs)))
	l.smu.Unlock()
	l.w.head, l.w.off = s, headerBytes
}

// checkpoint writes the state of all groups as the first commit of the head.
func (l *Log) checkpoint() error {
	body := make([]byte, 4)
	var n uint32
	for _, g := range l.sortedGroups() {
		if !g.blank() {
			body = appendImage(body, &groupImage{id: g.id, state: g.state, stable: g.stable})
			n++
		}
	}
	binary.LittleEndian.PutUint32(body, n)
	head := l.w.head
	if room := min(l.halfSegment(), head.bytes-headerBytes-head.sealBytes()); int64(len(body)) > room-2*int64(recordHeaderMax+head.overhead()) {
		return l.fail(fmt.Errorf("checkpoint of %d groups takes %d bytes: raise the segment size", n, len(body)))
	}
	r := record{typ: typeCheckpoint, flags: flagLast, commit: l.w.commit + 1, body: body}
	l.w.marked = markedNear
	if err := l.write(head.append(nil, &r)); err != nil {
		return err
	}
	head.base.Store(l.w.off)
	return nil
}
