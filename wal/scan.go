package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// windowBytes is how much of a segment is read at once when it is scanned.
const windowBytes = 1 << 20

// window reads a segment front to back through a buffer.
type window struct {
	s    *segment
	buf  []byte
	base int64  // file offset of buf[0]
	open []byte // the latest record in the clear, of an encrypted segment
}

// bytes returns n bytes at off; they are valid until the next call. The range
// lies within the segment.
func (w *window) bytes(off int64, n int) ([]byte, error) {
	if off >= w.base && off+int64(n) <= w.base+int64(len(w.buf)) {
		return w.buf[off-w.base:][:n], nil
	}
	want := int64(max(n, windowBytes))
	if rest := w.s.bytes - off; want > rest {
		want = rest
	}
	if int64(cap(w.buf)) < want {
		w.buf = make([]byte, want)
	}
	w.buf, w.base = w.buf[:want], off
	if _, err := w.s.f.ReadAt(w.buf, off); err != nil && !errors.Is(err, io.EOF) {
		w.buf = w.buf[:0]
		return nil, fmt.Errorf("read segment %s at %d: %w", w.s.name, off, err)
	}
	if int64(n) > want {
		return nil, fmt.Errorf("read segment %s at %d: %w", w.s.name, off, io.ErrUnexpectedEOF)
	}
	return w.buf[:n], nil
}

// tail is where the readable records of a segment end, and why.
type tail struct {
	off     int64
	records int
	first   uint64 // group commit of the first record, 0 if there is none
	commit  uint64 // group commit of the last record, 0 if there is none
	last    bool   // the last record is the last of its group commit
	sealed  bool
	why     error // what is wrong at off; nil when sealed or at the end of the file
}

// unfinished is the number of the group commit that the bytes at off belong to.
func (t *tail) unfinished() uint64 {
	if t.last {
		return t.commit + 1
	}
	return t.commit
}

var errCommitOrder = errors.New("group commit number is out of order")

// visitor gets the good records of a segment in the clear; raw and the record's
// body are valid during the visit only.
type visitor func(off int64, raw []byte, r *record) error

// scan visits the records of a segment from its start while they are good. The
// error is one of reading or of visit; bad bytes end the scan and are described
// by the tail.
func (s *segment) scan(visit visitor) (tail, error) {
	t := tail{off: headerBytes}
	err := s.scanOn(&t, s.bytes, visit)
	return t, err
}

// scanOn continues a scan until it has passed limit bytes more, or is at its end,
// which is where t.sealed or t.why is set or less than a record is left.
func (s *segment) scanOn(t *tail, limit int64, visit visitor) error {
	w := &window{s: s}
	for end := t.off + limit; t.off < end && s.bytes-t.off >= recordHeaderMin; {
		raw, r, size, err := w.record(t.off)
		if err != nil {
			if isBadRecord(err) {
				t.why = err
				return nil
			}
			return err
		}
		if t.records > 0 && r.commit != t.commit && r.commit != t.commit+1 {
			t.why = errCommitOrder
			return nil
		}
		if visit != nil {
			if err := visit(t.off, raw, &r); err != nil {
				return err
			}
		}
		if t.records == 0 {
			t.first = r.commit
		}
		t.records++
		t.commit, t.last = r.commit, r.flags&flagLast != 0
		t.off += int64(align(size))
		if r.typ == typeSeal {
			t.sealed = true
			return nil
		}
	}
	return nil
}

func isBadRecord(err error) bool {
	return errors.Is(err, errNoRecord) || errors.Is(err, errBadLength) || errors.Is(err, errBadChecksum)
}

// record reads the record at off: in the clear, and how many bytes it has on disk.
func (w *window) record(off int64) (raw []byte, r record, size int, err error) {
	head, err := w.bytes(off, recordHeaderMin)
	if err != nil {
		return nil, record{}, 0, err
	}
	n, err := recordSize(head, w.s.key, w.s.bytes-off)
	if err != nil {
		return nil, record{}, 0, err
	}
	if raw, err = w.bytes(off, n); err != nil {
		return nil, record{}, 0, err
	}
	if r, err = decodeRecord(raw, w.s.key); err != nil || w.s.aead == nil {
		return raw, r, n, err
	}
	if w.open, err = w.s.unseal(w.open, raw, off); err != nil {
		return nil, record{}, 0, err
	}
	return w.open, parseRecord(w.open), n, nil
}

// remains describes good records behind a bad one.
type remains struct {
	found  bool
	off    int64  // of the record with the latest group commit
	commit uint64 // the latest group commit
	end    int64  // where the last good record ends
}

// search looks for good records at every possible start from off on.
func (s *segment) search(off int64) (remains, error) {
	var out remains
	look, read := &window{s: s}, &window{s: s}
	for s.bytes-off >= recordHeaderMin {
		b, err := look.bytes(off, int(min(windowBytes, s.bytes-off)))
		if err != nil {
			return out, err
		}
		i := 0
		for ; i+4 <= len(b); i += recordAlign {
			if binary.LittleEndian.Uint32(b[i:]) == uint32(s.key) {
				break
			}
		}
		if i+4 > len(b) {
			off += int64(i)
			continue
		}
		off += int64(i)
		if s.bytes-off < recordHeaderMin {
			break
		}
		_, r, size, err := read.record(off)
		switch {
		case err == nil:
			if !out.found || r.commit > out.commit {
				out.off, out.commit = off, r.commit
			}
			out.found = true
			out.end = off + int64(align(size))
			off = out.end
		case isBadRecord(err):
			off += recordAlign
		default:
			return out, err
		}
	}
	return out, nil
}
