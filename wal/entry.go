package wal

import (
	"encoding/binary"
	"errors"
	"fmt"

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

// commitIndexMax bounds the raft commit index in an entry. It is written as what
// the entry's own index is ahead of it: one or two bytes.
const commitIndexMax = binary.MaxVarintLen64

// entrySizeMax bounds the record of l. How long it is follows from the number of
// its group commit.
func entrySizeMax(l *raft.Log, withCommitIndex bool) int {
	n := recordHeaderMax + len(l.Data)
	if withCommitIndex {
		n += commitIndexMax
	}
	if len(l.Extensions) > 0 {
		n += 4 + len(l.Extensions)
	}
	return n
}

// appendEntry encodes one raft entry. staged is the raft commit index to store
// with it; it is used when flags has flagCommitIndex. The time of appending is not
// stored: raft has it for metrics only.
func appendEntry(dst []byte, key segmentKey, group uint32, commit uint64, flags uint8, staged uint64, l *raft.Log) []byte {
	start := len(dst)
	var ahead [commitIndexMax]byte
	before := ahead[:0]
	if flags&flagCommitIndex != 0 {
		before = binary.AppendVarint(before, int64(l.Index-staged))
	}
	size := len(before) + len(l.Data)
	if len(l.Extensions) > 0 {
		flags |= flagExtensions
		size += 4 + len(l.Extensions)
	}
	r := record{typ: typeEntry, flags: flags, logType: uint8(l.Type), group: group, commit: commit, index: l.Index, term: l.Term}
	dst = append(appendHeader(dst, key, &r, size), before...)
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
		_, n := binary.Varint(b)
		if n <= 0 {
			return errEntryBody
		}
		b = b[n:]
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
	if r.typ != typeEntry || r.flags&flagCommitIndex == 0 {
		return 0
	}
	ahead, n := binary.Varint(r.body)
	if n <= 0 {
		return 0
	}
	return r.index - uint64(ahead)
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
