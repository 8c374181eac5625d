package wal

import (
	"encoding/binary"
	"slices"
)

// packedEntries is how many locations are read to find one.
const packedEntries = 16

// packed is the locations of a chunk that is no longer written: each as the
// difference to the one before, 4 to 6 bytes an entry. It does not change, so that
// readers share it.
type packed struct {
	bytes  []byte
	starts [chunkEntries / packedEntries]packedStart
}

// packedStart is where every packedEntries-th location is, and what it differs from.
type packedStart struct {
	at      uint32 // in bytes
	segment uint32
	offset  uint32
}

func pack(locs *[chunkEntries]location) *packed {
	p := &packed{}
	buf := make([]byte, 0, 8*chunkEntries)
	var before location
	for i, loc := range locs {
		if i%packedEntries == 0 {
			before = location{segment: loc.segment, offset: loc.offset}
			p.starts[i/packedEntries] = packedStart{at: uint32(len(buf)), segment: loc.segment, offset: loc.offset}
		}
		buf = appendLocation(buf, before, loc)
		before = loc
	}
	p.bytes = slices.Clone(buf)
	return p
}

// appendLocation writes a location as what differs from the one before: it mostly
// lies some records of other groups behind it.
func appendLocation(b []byte, before, loc location) []byte {
	moved := uint64(0)
	if loc.segment != before.segment {
		moved = 1
	}
	b = binary.AppendUvarint(b, uint64(loc.size)<<1|moved)
	if moved == 1 {
		b = binary.AppendVarint(b, int64(loc.segment)-int64(before.segment))
	}
	return binary.AppendVarint(b, int64(loc.offset)-int64(before.offset)-int64(before.size))
}

func nextLocation(b []byte, before location) (location, []byte) {
	loc := location{segment: before.segment}
	v, n := binary.Uvarint(b)
	b, loc.size = b[n:], uint32(v>>1)
	if v&1 == 1 {
		d, n := binary.Varint(b)
		b, loc.segment = b[n:], uint32(int64(before.segment)+d)
	}
	d, n := binary.Varint(b)
	loc.offset = uint32(int64(before.offset) + int64(before.size) + d)
	return loc, b[n:]
}

// get returns the n-th location of the chunk.
func (p *packed) get(n uint64) (loc location) {
	s := p.starts[n/packedEntries]
	loc = location{segment: s.segment, offset: s.offset}
	b := p.bytes[s.at:]
	for range n%packedEntries + 1 {
		loc, b = nextLocation(b, loc)
	}
	return loc
}

func (p *packed) unpack() *[chunkEntries]location {
	locs := &[chunkEntries]location{}
	var loc location
	b := p.bytes
	for i := range locs {
		if i%packedEntries == 0 {
			s := p.starts[i/packedEntries]
			loc = location{segment: s.segment, offset: s.offset}
		}
		loc, b = nextLocation(b, loc)
		locs[i] = loc
	}
	return locs
}
