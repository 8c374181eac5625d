package wal

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/internal/mutate"
	"github.com/sluice-iot/sluice/internal/vfs"
)

// Torn is the end of a group commit that was being written when power or process
// ended. It was never acknowledged; Open cuts it.
type Torn struct {
	Segment string
	Offset  int64
	Bytes   int64  // up to the last good record behind the cut, 0 if there is none
	Commit  uint64 // group commit
}

// replay is a log read from disk: what every group looks like, and where the
// head ends.
type replay struct {
	fs       vfs.FS
	dir      string
	readOnly bool
	strict   bool // a checkpoint must say what the records before it say
	log      *Log // groups belong to it
	keys     []Key

	segs   []*segment // all, in order of sequence
	used   int        // segs[:used] hold records; the last of them is the head
	tail   tail       // of the head
	torn   *Torn
	groups map[uint32]*Group
	byID   map[uint32]*segment
	visit  func(s *segment, off int64, r *record) error // for Dump and Verify, may be nil
}

// load reads the directory. The segments stay open, also with an error.
func (p *replay) load() error {
	names, err := p.fs.List(p.dir)
	if err != nil {
		return fmt.Errorf("list log directory: %w", err)
	}
	p.groups, p.byID = map[uint32]*Group{}, map[uint32]*segment{}
	for _, name := range names {
		if !strings.HasSuffix(name, ".wal") {
			continue
		}
		s, err := openSegment(p.fs, p.dir, name, p.readOnly, p.keys)
		if err != nil {
			return err
		}
		p.segs = append(p.segs, s)
		if first := p.segs[0]; s.logID != first.logID {
			return s.corrupt(40, "segment is from another log than "+first.name, nil)
		}
	}
	for i, s := range p.segs {
		done, err := p.segment(i, s)
		if err != nil {
			return err
		}
		if p.log != nil {
			p.log.shelve(slices.Collect(maps.Values(p.groups)))
		}
		if done {
			break
		}
	}
	return p.holes()
}

// segment replays one segment and reports whether it is the head.
func (p *replay) segment(i int, s *segment) (head bool, err error) {
	p.byID[s.id()] = s
	before := p.tail // of the segment before
	t, err := s.scan(func(off int64, _ []byte, r *record) error { return p.record(s, off, r) })
	if err != nil {
		return false, err
	}
	if err := p.follows(i, s, before, t); err != nil {
		return false, err
	}
	p.used, p.tail = i+1, t
	s.end.Store(t.off)
	if t.sealed {
		s.sealed.Store(true)
		if i == len(p.segs)-1 || p.segs[i+1].seq != s.seq+1 && !p.hasRecords(i+1) {
			return false, s.corrupt(t.off, "segment "+segmentName(s.seq+1)+" is missing", nil)
		}
		return false, nil
	}
	return true, p.end(i, s, before)
}

// follows checks the order of group commits over the border of two segments.
func (p *replay) follows(i int, s *segment, before, t tail) error {
	if i == 0 || t.records == 0 {
		return nil
	}
	next := s.seq == p.segs[i-1].seq+1
	if next && t.first != before.commit+1 || t.first <= before.commit {
		return s.corrupt(headerBytes, fmt.Sprintf("first group commit is %d, the segment before ends with %d", t.first, before.commit), nil)
	}
	return nil
}

// hasRecords reports whether a segment behind i begins with a record.
func (p *replay) hasRecords(i int) bool {
	for _, s := range p.segs[i:] {
		w := &window{s: s}
		if _, _, _, err := w.record(headerBytes); err == nil {
			return true
		}
	}
	return false
}

// end judges the end of the first segment without a seal. Bytes that are no
// record are damage if a later group commit was written, because that was done
// after a sync; otherwise they are the torn end of the last one, or nothing.
func (p *replay) end(i int, s *segment, before tail) error {
	t := &p.tail
	unfinished := t.unfinished()
	if t.records == 0 {
		switch {
		case i > 0 && p.segs[i-1].seq == s.seq-1:
			unfinished = before.commit + 1
		case i == 0 && s.seq == 1:
			unfinished = 1
		default:
			return s.corrupt(headerBytes, "the checkpoint at its start cannot be read", t.why)
		}
	}
	if p.hasRecords(i+1) && !mutate.On(mutate.TruncateOnCorrupt) {
		return s.corrupt(t.off, "records end before the seal", t.why)
	}
	rest, err := s.search(t.off)
	if err != nil {
		return err
	}
	if rest.found && rest.commit > unfinished && !mutate.On(mutate.TruncateOnCorrupt) {
		return s.corrupt(t.off, fmt.Sprintf("group commit %d cannot be read, but %d behind it can", unfinished, rest.commit), t.why)
	}
	if rest.found || t.records > 0 && !t.last || t.why != nil && !errors.Is(t.why, errNoRecord) {
		p.torn = &Torn{Segment: s.name, Offset: t.off, Commit: unfinished}
		if rest.found {
			p.torn.Bytes = rest.end - t.off
		}
	}
	if t.records == 0 {
		t.commit = unfinished - 1
	}
	return nil
}

// record replays one record.
func (p *replay) record(s *segment, off int64, r *record) error {
	if off == headerBytes && r.typ != typeCheckpoint {
		return s.corrupt(off, "segment does not begin with a checkpoint", nil)
	}
	var err error
	switch r.typ {
	case typeCheckpoint:
		err = p.checkpoint(s, r.body)
		s.base.Store(off + int64(align(r.size+s.overhead())))
	case typeMarker, typeSeal:
	case typeEntry, typeRelocated, typeTruncate, typePrefix, typeDetach, typeStable, typeRemove:
		loc := location{segment: s.id(), offset: uint32(off), size: uint32(r.size + s.overhead())}
		err = p.group(r.group).apply(r, loc, p.account)
	default:
		err = fmt.Errorf("record type %d is not known", r.typ)
	}
	if err != nil {
		return s.corrupt(off, fmt.Sprintf("record of type %d, group %d, index %d does not fit what is before it", r.typ, r.group, r.index), err)
	}
	if p.visit != nil {
		return p.visit(s, off, r)
	}
	return nil
}

func (p *replay) group(id uint32) *Group {
	g := p.groups[id]
	if g == nil {
		g = newGroup(id, p.log)
		p.groups[id] = g
	}
	return g
}

func (p *replay) account(id uint32, delta int64) {
	if s := p.byID[id]; s != nil {
		s.live.Add(delta)
	}
}

// checkpoint sets every group to its image. Where the segment before is still
// there nothing changes; where it was recycled this is what it left behind.
func (p *replay) checkpoint(s *segment, body []byte) error {
	images, err := readCheckpoint(body)
	if err != nil {
		return err
	}
	next := p.used > 0 && p.segs[p.used-1].seq+1 == s.seq || s.seq == 1
	listed := map[uint32]bool{}
	for i := range images {
		listed[images[i].id] = true
		if g := p.group(images[i].id); p.strict && next && (g.state != images[i].state || !maps.EqualFunc(g.stable, images[i].stable, bytes.Equal)) {
			return fmt.Errorf("checkpoint says %+v of group %d, the records before it %+v", images[i].state, g.id, g.state)
		}
		p.group(images[i].id).restore(&images[i], p.account)
	}
	for id, g := range p.groups {
		if !listed[id] {
			g.restore(&groupImage{id: id, stable: map[string][]byte{}}, p.account)
		}
	}
	return nil
}

// holes looks for entries that are in a range and in no segment.
func (p *replay) holes() error {
	for id, g := range p.groups {
		if g.index.err != nil {
			return g.index.err
		}
		if i, ok := g.index.hole(); ok {
			return &CorruptError{Segment: p.segs[0].name, Reason: fmt.Sprintf("entry %d of group %d is in no segment: a segment was lost", i, id)}
		}
	}
	return nil
}

// recover reads the log into l and prepares it for writing.
func (l *Log) recover() error {
	p := &replay{fs: l.fs, dir: l.dir, log: l, keys: l.cfg.Keys}
	l.prep = newPreparer(l, [16]byte{}, 1, nil)
	l.shelf.segment = func(id uint32) *segment { return p.byID[id] }
	err := p.load()
	l.shelf.segment = l.segment
	l.groups = p.groups
	for i, s := range p.segs {
		if i < p.used {
			l.segs[s.id()] = s
		} else {
			l.prep.ready = append(l.prep.ready, s)
		}
	}
	if err != nil {
		return fmt.Errorf("open log %s: %w", l.dir, err)
	}
	for _, s := range p.segs {
		if err := l.owned(s); err != nil {
			return err
		}
	}
	if err := l.removeSpares(); err != nil {
		return err
	}
	if err := l.removeStale(p); err != nil {
		return err
	}
	if len(p.segs) == 0 {
		return l.create()
	}
	l.prep.id = p.segs[0].logID
	l.prep.next = p.segs[len(p.segs)-1].seq + 1
	for _, g := range l.groups {
		g.floor.Store(g.state.floor)
		g.commit.Store(g.state.commit)
	}
	return l.resume(p)
}

// owned checks the names in a segment's header.
func (l *Log) owned(s *segment) error {
	for _, n := range []struct{ what, have, want string }{
		{"node", s.node, l.cfg.Node}, {"cluster", s.cluster, l.cfg.Cluster},
	} {
		if n.have != "" && n.want != "" && n.have != n.want {
			return fmt.Errorf("open log %s: segment %s was written by %s %q, this is %q: %w: give each node a directory of its own",
				l.dir, s.name, n.what, n.have, n.want, ErrForeign)
		}
	}
	return nil
}

// removeSpares deletes files that were being prepared.
func (l *Log) removeSpares() error {
	names, err := l.fs.List(l.dir)
	if err != nil {
		return fmt.Errorf("list log directory: %w", err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, spareSuffix) {
			continue
		}
		if err := l.fs.Remove(filepath.Join(l.dir, name)); err != nil {
			return fmt.Errorf("delete unfinished log segment: %w", err)
		}
	}
	return nil
}

// removeStale deletes the prepared segments when they are not encrypted as the
// configuration says now, the last one first, so that the rest has no gap.
func (l *Log) removeStale(p *replay) error {
	if !slices.ContainsFunc(l.prep.ready, func(s *segment) bool { return !l.current(s) }) {
		return nil
	}
	for n := len(l.prep.ready); n > 0; n-- {
		s := l.prep.ready[n-1]
		l.prep.ready = l.prep.ready[:n-1]
		if err := l.prep.discard(s); err != nil {
			return err
		}
	}
	p.segs = p.segs[:p.used]
	return nil
}

// create makes the first segment of a new log.
func (l *Log) create() error {
	if _, err := rand.Read(l.prep.id[:]); err != nil {
		return fmt.Errorf("draw an identity for the log: %w", err)
	}
	s, err := l.prep.make(nil, 1)
	if err != nil {
		return fmt.Errorf("create log %s: %w", l.dir, err)
	}
	l.prep.next = 2
	l.begin(s)
	return l.checkpoint()
}

// resume goes on writing where the log ends. What is kept of a torn commit was
// perhaps only in memory; the sync of the marker, which is in the same file,
// makes it durable before anybody reads it.
func (l *Log) resume(p *replay) error {
	head := p.segs[p.used-1]
	l.w.head, l.w.off, l.w.commit = head, p.tail.off, p.tail.commit
	l.metrics.segments.Set(float64(len(l.segs)))
	if t := p.torn; t != nil {
		l.logger.Warn("cut the unfinished end of the log", "segment", t.Segment, "offset", t.Offset, "bytes", t.Bytes, "commit", t.Commit)
		if err := l.erase(head, t.Offset, t.Bytes); err != nil {
			return err
		}
	}
	if p.tail.records == 0 {
		return l.checkpoint()
	}
	if l.w.off+recordHeaderMax+int64(head.overhead())+2*head.sealBytes() > head.bytes {
		return l.settle()
	}
	l.mark(markedNear)
	return l.Err()
}

// settle makes what a full head holds durable: no marker fits any more.
func (l *Log) settle() error {
	if err := l.w.head.f.Fdatasync(); err != nil {
		return l.fail(fmt.Errorf("sync segment %s: %w", l.w.head.name, err))
	}
	return nil
}

// erase zeroes the good records behind a cut, so that they never come back.
func (l *Log) erase(s *segment, off, n int64) error {
	zeros := make([]byte, min(n, fillBytes))
	for end := off + n; off < end; off += int64(len(zeros)) {
		zeros = zeros[:min(int64(len(zeros)), end-off)]
		if _, err := s.f.WriteAt(zeros, off); err != nil {
			return l.fail(fmt.Errorf("erase the torn end of segment %s: %w", s.name, err))
		}
	}
	if err := s.f.Fdatasync(); err != nil {
		return l.fail(fmt.Errorf("sync segment %s: %w", s.name, err))
	}
	return nil
}
