package wal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// Stats describes a closed log.
type Stats struct {
	Dir      string
	Node     string
	Cluster  string
	Segments []SegmentStats
	Groups   []GroupStats
	Torn     *Torn // an unfinished group commit at the end, which Open would cut
}

// SegmentStats describes one segment file.
type SegmentStats struct {
	Name    string
	Bytes   int64  // size of the file
	Used    int64  // where its records end
	Live    int64  // bytes of live entries
	State   string // "sealed", "head" or "empty"
	Key     string // ID of the operator key of an encrypted segment, else empty
	Created time.Time
}

// GroupStats describes one raft group.
type GroupStats struct {
	ID     uint32
	First  uint64 // oldest entry that can be read, 0 for none
	Last   uint64
	Hidden bool // raft has deleted them all, the floor keeps them
	Bytes  int64
	Floor  uint64
	Commit uint64
}

// Report is what Verify found.
type Report struct {
	Stats
	Records int64 // whose checksum is good
	Entries int64 // that are live
	Damage  []*CorruptError
}

// Verify reads a closed log completely: every checksum, the order of group
// commits, the original checksums of relocated entries, and that every entry of
// every group is there. dir is a node's data directory or its wal folder; keys
// are for encrypted segments. The error is Damage[0] for damage; a torn tail is
// none.
func Verify(dir string, keys ...Key) (Report, error) { return verify(vfs.OS{}, dir, keys...) }

// Stat describes a closed log. It reads all of it, because only the records know
// what is live.
func Stat(dir string, keys ...Key) (Stats, error) {
	r, err := verify(vfs.OS{}, dir, keys...)
	return r.Stats, err
}

// find returns the directory that holds the segments, locked for reading.
func find(fs vfs.FS, dir string) (string, io.Closer, error) {
	for _, d := range []string{dir, filepath.Join(dir, "wal")} {
		names, err := fs.List(d)
		if err != nil || !slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, ".wal") }) {
			continue
		}
		lock, err := fs.Lock(filepath.Join(d, lockName), true)
		if err != nil {
			return "", nil, fmt.Errorf("read log: %w: stop the node first", err)
		}
		return d, lock, nil
	}
	return "", nil, fmt.Errorf("read log: no *.wal files in %s or %s", dir, filepath.Join(dir, "wal"))
}

func verify(fs vfs.FS, dir string, keys ...Key) (Report, error) {
	d, lock, err := find(fs, dir)
	if err != nil {
		return Report{}, err
	}
	defer func() { _ = lock.Close() }()
	rep := Report{Stats: Stats{Dir: d}}
	p := &replay{fs: fs, dir: d, readOnly: true, strict: true, keys: keys}
	p.visit = func(s *segment, off int64, r *record) error {
		rep.Records++
		if r.typ != typeRelocated {
			return nil
		}
		if err := checkOrigin(r, s.logID); err != nil {
			return s.corrupt(off, "entry changed while it was relocated", err)
		}
		return nil
	}
	err = p.load()
	defer p.close()
	rep.fill(p)
	var c *CorruptError
	if err != nil && !errors.As(err, &c) {
		return rep, fmt.Errorf("verify log %s: %w", d, err)
	}
	if c != nil {
		rep.Damage = append(rep.Damage, c)
		if err := rep.others(fs, d, keys); err != nil {
			return rep, fmt.Errorf("verify log %s: %w", d, err)
		}
		return rep, rep.Damage[0]
	}
	return rep, nil
}

func (p *replay) close() {
	for _, s := range p.segs {
		_ = s.f.Close()
	}
}

// others checks the segments one by one after damage was found in one of them.
func (rep *Report) others(fs vfs.FS, dir string, keys []Key) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".wal") || name == rep.Damage[0].Segment {
			continue
		}
		var c *CorruptError
		if err := inspect(fs, dir, name, keys); errors.As(err, &c) {
			rep.Damage = append(rep.Damage, c)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// inspect checks one segment by itself.
func inspect(fs vfs.FS, dir, name string, keys []Key) error {
	s, err := openSegment(fs, dir, name, true, keys)
	if err != nil {
		return err
	}
	defer func() { _ = s.f.Close() }()
	t, err := s.scan(nil)
	if err != nil || t.sealed {
		return err
	}
	rest, err := s.search(t.off)
	if err == nil && rest.found && rest.commit > t.unfinished() {
		err = s.corrupt(t.off, "records cannot be read, but later ones can", t.why)
	}
	return err
}

func (rep *Report) fill(p *replay) {
	for i, s := range p.segs {
		rep.Node, rep.Cluster = s.node, s.cluster
		st := SegmentStats{
			Name: s.name, Bytes: s.bytes, Used: s.end.Load(), Live: s.live.Load(), State: "empty", Key: s.keyID(),
			Created: time.UnixMicro(s.created).UTC(),
		}
		switch {
		case s.sealed.Load():
			st.State = "sealed"
		case i == p.used-1:
			st.State = "head"
		}
		rep.Segments = append(rep.Segments, st)
	}
	rep.Torn = p.torn
	for _, id := range slices.Sorted(maps.Keys(p.groups)) {
		g := p.groups[id]
		if g.blank() {
			continue
		}
		if g.state.last != 0 {
			rep.Entries += int64(g.state.last - g.state.first + 1)
		}
		bytes, _, _ := g.index.bytesFrom(0, fetched{}) // a log that is only read has no shelf
		rep.Groups = append(rep.Groups, GroupStats{
			ID: id, First: g.state.first, Last: g.state.last, Hidden: g.state.detached,
			Bytes: bytes, Floor: g.state.floor, Commit: g.state.commit,
		})
	}
}

// Filter chooses what Dump prints; the zero Filter is everything without data.
type Filter struct {
	Group *uint32
	From  uint64 // smallest index
	To    uint64 // largest index, 0 is none
	Data  bool   // print the bytes in hexadecimal
}

func (f *Filter) match(r *record) bool {
	if f.Group != nil && (r.group != *f.Group || r.typ == typeMarker || r.typ == typeSeal || r.typ == typeCheckpoint) {
		return false
	}
	return r.index >= f.From && (f.To == 0 || r.index <= f.To)
}

// Dump prints the records of a closed log, one a line, in the order in which they
// were written; damage ends the segment it is in and is printed too. keys are for
// encrypted segments.
func Dump(w io.Writer, dir string, filter Filter, keys ...Key) error {
	return dump(vfs.OS{}, w, dir, filter, keys...)
}

func dump(fs vfs.FS, w io.Writer, dir string, filter Filter, keys ...Key) error {
	d, lock, err := find(fs, dir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	names, err := fs.List(d)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	for _, name := range names {
		if !strings.HasSuffix(name, ".wal") {
			continue
		}
		if err := dumpSegment(fs, out, d, name, &filter, keys); err != nil {
			return errors.Join(err, out.Flush())
		}
	}
	return out.Flush()
}

func dumpSegment(fs vfs.FS, out *bufio.Writer, dir, name string, filter *Filter, keys []Key) error {
	s, err := openSegment(fs, dir, name, true, keys)
	if errors.Is(err, ErrKey) {
		return err
	}
	if err != nil {
		_, werr := fmt.Fprintf(out, "%s: %v\n", name, err)
		return werr
	}
	defer func() { _ = s.f.Close() }()
	t, err := s.scan(func(off int64, _ []byte, r *record) error {
		if !filter.match(r) {
			return nil
		}
		_, err := fmt.Fprintf(out, "%s %10d commit %d %s\n", s.name, off, r.commit, r.describe(filter.Data))
		return err
	})
	if err != nil {
		return err
	}
	if t.sealed || t.why == nil || errors.Is(t.why, errNoRecord) {
		return nil
	}
	_, err = fmt.Fprintf(out, "%s %10d %v\n", s.name, t.off, t.why)
	return err
}

// describe is one record for people.
func (r *record) describe(data bool) string {
	switch r.typ {
	case typeEntry, typeRelocated:
		var l raft.Log
		if err := readEntry(r, &l); err != nil {
			return fmt.Sprintf("group %d entry %d: %v", r.group, r.index, err)
		}
		s := fmt.Sprintf("group %d %s %d term %d %s %d bytes", r.group, r.typ, r.index, r.term, l.Type, len(l.Data))
		if data {
			s += fmt.Sprintf(" %x", l.Data)
		}
		return s
	case typeStable:
		key, value, err := readStable(r.body)
		if err != nil {
			return fmt.Sprintf("group %d stable: %v", r.group, err)
		}
		return fmt.Sprintf("group %d stable %q %x", r.group, key, value)
	case typeCheckpoint:
		images, err := readCheckpoint(r.body)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("checkpoint of %d groups", len(images))
	case typeMarker, typeSeal:
		return r.typ.String()
	default:
		return fmt.Sprintf("group %d %s %d", r.group, r.typ, r.index)
	}
}

func (t recordType) String() string {
	names := [...]string{
		typeEntry: "entry", typeRelocated: "relocated", typeTruncate: "truncate", typePrefix: "prefix", typeDetach: "detach",
		typeStable: "stable", typeCheckpoint: "checkpoint", typeMarker: "marker", typeSeal: "seal", typeRemove: "remove",
	}
	if int(t) < len(names) && names[t] != "" {
		return names[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}
