package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// originBytes is what a relocated record carries in front of the entry's body:
// where the entry was first written and its checksum there. The checksum is
// computed once, when the entry arrives, and never again.
const originBytes = 24

// origin is the first life of a relocated entry.
type origin struct {
	seq    uint64
	commit uint64
	crc    uint32
	flags  uint8
}

// entryBodySize is the body length of l's record.
func entryBodySize(l *raft.Log, withCommitIndex bool) int {
	n := len(l.Data)
	if withCommitIndex {
		n += 8
	}
	if !l.AppendedAt.IsZero() {
		n += 8
	}
	if len(l.Extensions) > 0 {
		n += 4 + len(l.Extensions)
	}
	return n
}

// appendEntry encodes one raft entry. staged is the raft commit index to store
// with it; it is used when flags has flagCommitIndex.
func appendEntry(dst []byte, key segmentKey, group uint32, commit uint64, flags uint8, staged uint64, l *raft.Log) []byte {
	start := len(dst)
	if !l.AppendedAt.IsZero() {
		flags |= flagAppendedAt
	}
	if len(l.Extensions) > 0 {
		flags |= flagExtensions
	}
	size := recordHeaderBytes + entryBodySize(l, flags&flagCommitIndex != 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(key))
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(size))
	dst = binary.LittleEndian.AppendUint32(dst, group)
	dst = binary.LittleEndian.AppendUint64(dst, commit)
	dst = binary.LittleEndian.AppendUint64(dst, l.Index)
	dst = binary.LittleEndian.AppendUint64(dst, l.Term)
	dst = append(dst, byte(typeEntry), flags, byte(l.Type), 0)
	if flags&flagCommitIndex != 0 {
		dst = binary.LittleEndian.AppendUint64(dst, staged)
	}
	if flags&flagAppendedAt != 0 {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(l.AppendedAt.UnixNano()))
	}
	if flags&flagExtensions != 0 {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(l.Extensions)))
		dst = append(dst, l.Extensions...)
	}
	dst = append(dst, l.Data...)
	return sealRecord(dst, start, key)
}

var errEntryBody = errors.New("entry body is cut short")

// readEntry fills l from an entry or relocated record. l shares the record's bytes.
func readEntry(r *record, l *raft.Log) error {
	b, flags := r.body, r.flags
	if r.typ == typeRelocated {
		if len(b) < originBytes {
			return errEntryBody
		}
		flags, b = b[20], b[originBytes:]
	}
	*l = raft.Log{Index: r.index, Term: r.term, Type: raft.LogType(r.logType)}
	if flags&flagCommitIndex != 0 {
		if len(b) < 8 {
			return errEntryBody
		}
		b = b[8:]
	}
	if flags&flagAppendedAt != 0 {
		if len(b) < 8 {
			return errEntryBody
		}
		l.AppendedAt = time.Unix(0, int64(binary.LittleEndian.Uint64(b)))
		b = b[8:]
	}
	if flags&flagExtensions != 0 {
		if len(b) < 4 {
			return errEntryBody
		}
		n := int64(binary.LittleEndian.Uint32(b))
		if int64(len(b)-4) < n {
			return errEntryBody
		}
		l.Extensions = b[4 : 4+n : 4+n]
		b = b[4+n:]
	}
	l.Data = b
	return nil
}

// stagedCommit is the raft commit index that an entry record carries, 0 for none.
func stagedCommit(r *record) uint64 {
	if r.typ != typeEntry || r.flags&flagCommitIndex == 0 || len(r.body) < 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(r.body)
}

// relocate turns a verified entry or relocated record of segment seq, whose
// bytes are raw, into the record that is written at the head.
func relocate(r *record, raw []byte, seq uint64) record {
	out := *r
	out.typ, out.flags = typeRelocated, 0
	if r.typ == typeRelocated { // it keeps its first origin
		return out
	}
	b := make([]byte, 0, originBytes+len(r.body))
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = binary.LittleEndian.AppendUint64(b, r.commit)
	b = append(b, raw[4:8]...)
	b = append(b, r.flags, 0, 0, 0)
	b = append(b, r.body...)
	out.body = b
	return out
}

// checkOrigin rebuilds the first life of a relocated record and verifies the
// checksum it had there.
func checkOrigin(r *record, logID [16]byte) error {
	if len(r.body) < originBytes {
		return errEntryBody
	}
	o := origin{
		seq:    binary.LittleEndian.Uint64(r.body),
		commit: binary.LittleEndian.Uint64(r.body[8:]),
		crc:    binary.LittleEndian.Uint32(r.body[16:]),
		flags:  r.body[20],
	}
	first := *r
	first.typ, first.flags, first.commit, first.body = typeEntry, o.flags, o.commit, r.body[originBytes:]
	raw := appendRecord(nil, newSegmentKey(logID, o.seq), &first)
	if got := binary.LittleEndian.Uint32(raw[4:]); got != o.crc {
		return fmt.Errorf("relocated from segment %s: %w", segmentName(o.seq), errBadChecksum)
	}
	return nil
}
