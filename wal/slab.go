package wal

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

const (
	// slabChunks is how many chunks go to the shelf together: for 4,096 entries
	// some 170 bytes stay in memory.
	slabChunks  = 8
	slabEntries = slabChunks * chunkEntries

	// chunkOnShelfMax is what a packed chunk may take on the shelf. Nine bytes an
	// entry are enough for entries of up to a MiB, wherever they are. A slab with
	// a larger chunk stays in memory: its entries take gigabytes of log.
	chunkOnShelfMax = 4 + startsBytes + 9*chunkEntries
	startsBytes     = chunkEntries / packedEntries * 12
	slotBytes       = slabChunks * chunkOnShelfMax
)

// slab is a part of an index: in memory, or on the shelf with all of its entries.
type slab struct {
	chunks  *[slabChunks]*chunk // nil: on the shelf; a chunk that is nil is all holes
	shelved *shelved
}

func newSlab() *slab { return &slab{chunks: &[slabChunks]*chunk{}} }

func (s *slab) chunkBytes(k uint64) int64 {
	switch {
	case s.shelved != nil:
		return s.shelved.sums[k]
	case s.chunks[k] == nil:
		return 0
	}
	return s.chunks[k].bytes
}

// shelved is what memory knows of a slab on the shelf. It does not change.
type shelved struct {
	base   uint64 // entry index of its first location
	serial uint32 // what was in the slot before is not taken for it
	slot   uint16
	ends   [slabChunks]uint16 // of the chunks, in the slot
	file   *shelfFile
	sums   [slabChunks]int64 // of sizes
	spans  []span
}

// span is what the entries of a slab take in one segment.
type span struct{ segment, bytes uint32 }

func addSpan(spans []span, loc location) []span {
	for i := len(spans) - 1; i >= 0; i-- {
		if spans[i].segment == loc.segment {
			spans[i].bytes += loc.size
			return spans
		}
	}
	return append(spans, span{loc.segment, loc.size})
}

// coldChunk is a chunk on the shelf.
type coldChunk struct {
	*shelved
	chunk int
}

// fetched is a chunk read from the shelf.
type fetched struct {
	coldChunk
	packed *packed
}

// warmChunks is how many chunks a group remembers that it read from the shelf:
// those who read old entries, the flusher and a follower far behind or two, read
// one after the other.
const warmChunks = 4

// warm is the last chunks read from the shelf.
type warm struct {
	chunks [warmChunks]fetched
	next   int
}

func (w *warm) get(c coldChunk) *packed {
	for i := range w.chunks {
		if w.chunks[i].coldChunk == c {
			return w.chunks[i].packed
		}
	}
	return nil
}

func (w *warm) put(f fetched) {
	if w.get(f.coldChunk) == nil {
		w.chunks[w.next] = f
		w.next = (w.next + 1) % warmChunks
	}
}

// candidate is a slab that may go to the shelf, as it was when it was looked at.
type candidate struct {
	slab   *slab
	base   uint64
	chunks [slabChunks]chunk
}

// candidates are up to n slabs that have been whole and packed for long: all but
// the newest keep.
func (x *index) candidates(keep, n int) (out []candidate) {
	for i := 0; i < len(x.slabs)-keep && len(out) < n; i++ {
		base := x.base + uint64(i)*slabEntries
		if base >= x.first && base+slabEntries-1 <= x.last {
			if c, ok := x.slabs[i].candidate(base); ok {
				out = append(out, c)
			}
		}
	}
	return out
}

func (s *slab) candidate(base uint64) (candidate, bool) {
	c := candidate{slab: s, base: base}
	if s.shelved != nil {
		return c, false
	}
	for k, ch := range s.chunks {
		if ch == nil || ch.packed == nil {
			return c, false
		}
		c.chunks[k] = *ch
	}
	return c, true
}

// same reports whether the slab is still what c is a copy of. Packed chunks do not
// change but are replaced.
func (c *candidate) same() bool {
	if c.slab.shelved != nil {
		return false
	}
	for k, ch := range c.slab.chunks {
		if ch == nil || ch.packed == nil || ch.packed != c.chunks[k].packed {
			return false
		}
	}
	return true
}

// encode returns the bytes for the slot and what is to be remembered of them; nil
// for a slab that has holes or does not fit.
func (c *candidate) encode(group, serial uint32) ([]byte, *shelved) {
	sh := &shelved{base: c.base, serial: serial}
	var buf []byte
	for k := range c.chunks {
		p := c.chunks[k].packed
		for _, loc := range p.unpack() {
			if loc == (location{}) {
				return nil, nil
			}
			sh.spans = addSpan(sh.spans, loc)
		}
		at := len(buf)
		buf = append(buf, 0, 0, 0, 0)
		for _, st := range p.starts {
			buf = binary.LittleEndian.AppendUint32(buf, st.at)
			buf = binary.LittleEndian.AppendUint32(buf, st.segment)
			buf = binary.LittleEndian.AppendUint32(buf, st.offset)
		}
		buf = append(buf, p.bytes...)
		if len(buf)-at > chunkOnShelfMax {
			return nil, nil
		}
		binary.LittleEndian.PutUint32(buf[at:], sh.check(group, k, buf[at+4:]))
		sh.ends[k], sh.sums[k] = uint16(len(buf)), c.chunks[k].bytes
	}
	return buf, sh
}

// check is the checksum of a chunk, which only it has.
func (sh *shelved) check(group uint32, k int, b []byte) uint32 {
	var key [20]byte
	binary.LittleEndian.PutUint32(key[0:], group)
	binary.LittleEndian.PutUint32(key[4:], sh.serial)
	binary.LittleEndian.PutUint64(key[8:], sh.base)
	binary.LittleEndian.PutUint32(key[16:], uint32(k))
	return crc32.Update(crc32.Checksum(key[:], castagnoli), castagnoli, b)
}

// extent is where a chunk is in the slot.
func (sh *shelved) extent(k int) (from, to int) {
	if k > 0 {
		from = int(sh.ends[k-1])
	}
	return from, int(sh.ends[k])
}

var errShelf = errors.New("checksum of the index is wrong")

// decode makes a packed chunk of the bytes of one.
func (sh *shelved) decode(group uint32, k int, b []byte) (*packed, error) {
	if len(b) < 4+startsBytes || binary.LittleEndian.Uint32(b) != sh.check(group, k, b[4:]) {
		return nil, errShelf
	}
	p := &packed{}
	for i := range p.starts {
		s := b[4+12*i:]
		p.starts[i] = packedStart{at: binary.LittleEndian.Uint32(s), segment: binary.LittleEndian.Uint32(s[4:]), offset: binary.LittleEndian.Uint32(s[8:])}
	}
	p.bytes = b[4+startsBytes:]
	return p, nil
}

// thaw brings the slab of i back into memory and reports whether it is there.
func (x *index) thaw(i uint64) bool {
	s, _, _ := x.place(i)
	if s.shelved == nil {
		return true
	}
	chunks, err := x.shelf.slab(x.group, s.shelved)
	if err != nil {
		chunks, err = x.shelf.again(x.group, s.shelved, err)
	}
	if err != nil {
		x.err = err
		return false
	}
	x.take(s, chunks)
	return true
}

// take replaces a shelved slab by what it is.
func (x *index) take(s *slab, chunks *[slabChunks]*chunk) {
	x.shelf.release(s.shelved)
	s.chunks, s.shelved = chunks, nil
}
