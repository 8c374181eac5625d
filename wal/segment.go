package wal

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// segment is one file of the log that is in use or prepared for use.
type segment struct {
	segmentHeader
	name string // base name
	f    vfs.File
	key  segmentKey
	aead cipher.AEAD // of the data key; nil for a segment in the clear

	// use is held for reading while the file is read, and for writing by the
	// janitor before the file gets another name and another life.
	use sync.RWMutex

	base   atomic.Int64 // where the checkpoint at its start ends
	end    atomic.Int64 // where records end
	live   atomic.Int64 // bytes of the records of live entries
	sealed atomic.Bool  // full; read only from here on
	rotten atomic.Bool  // damage was reported
}

func (s *segment) id() uint32 { return uint32(s.seq) }

// dead is the room in the segment that live entries do not take. Header and
// checkpoint do not count: rewriting the segment would not save them.
func (s *segment) dead() int64 { return s.bytes - s.base.Load() - s.live.Load() }

// share is the part of a segment's room that live entries take.
func (s *segment) share() float64 {
	return float64(s.live.Load()) / float64(max(1, s.bytes-s.base.Load()))
}

// corrupt describes damage in the segment.
func (s *segment) corrupt(off int64, reason string, err error) *CorruptError {
	return &CorruptError{Segment: s.name, Offset: off, Reason: reason, Err: err}
}

// readRecord reads and verifies the record at loc and returns it in the clear.
func (s *segment) readRecord(loc location) ([]byte, error) {
	raw := make([]byte, loc.size)
	if _, err := s.f.ReadAt(raw, int64(loc.offset)); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, s.corrupt(int64(loc.offset), "file is cut short", nil)
		}
		return nil, fmt.Errorf("read segment %s at %d: %w", s.name, loc.offset, err)
	}
	if _, err := decodeRecord(raw, s.key); err != nil {
		return nil, s.corrupt(int64(loc.offset), "entry cannot be read", err)
	}
	if s.aead != nil {
		return s.unseal(nil, raw, int64(loc.offset))
	}
	return raw, nil
}

// openSegment opens one file and reads its header. An encrypted one needs its
// operator key.
func openSegment(fs vfs.FS, dir, name string, readOnly bool, keys []Key) (*segment, error) {
	open := fs.Open
	if readOnly {
		open = fs.OpenRead
	}
	f, err := open(filepath.Join(dir, name))
	if err != nil {
		return nil, fmt.Errorf("open log segment: %w", err)
	}
	s := &segment{name: name, f: f}
	err = s.readHeader()
	if err == nil {
		err = s.unlock(keys)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return s, nil
}

func (s *segment) readHeader() error {
	seq, ok := parseSegmentName(s.name)
	if !ok {
		return fmt.Errorf("log segment %s: name is not 16 hexadecimal digits", s.name)
	}
	size, err := s.f.Size()
	if err != nil {
		return fmt.Errorf("size of log segment %s: %w", s.name, err)
	}
	if size < headerUsed {
		return s.corrupt(size, "file is cut short", nil)
	}
	b := make([]byte, headerUsed)
	if _, err := s.f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read header of log segment %s: %w", s.name, err)
	}
	if s.segmentHeader, err = decodeHeader(b); errors.Is(err, errVersion) {
		return fmt.Errorf("log segment %s: %w", s.name, err)
	} else if err != nil {
		return s.corrupt(0, "header cannot be read", err)
	}
	if s.seq != seq {
		return s.corrupt(16, fmt.Sprintf("header says %s", segmentName(s.seq)), nil)
	}
	if size < s.bytes {
		return s.corrupt(size, fmt.Sprintf("file is cut short, it had %d bytes", s.bytes), nil)
	}
	s.key = newSegmentKey(s.logID, s.seq)
	s.base.Store(headerBytes)
	s.end.Store(headerBytes)
	return nil
}
