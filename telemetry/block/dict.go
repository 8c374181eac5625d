package block

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"math/rand/v2"
	"unsafe"
)

// dict numbers distinct strings in the order of their arrival. The hash is
// seeded, so that nobody can aim for collisions; the numbers do not depend on it.
type dict struct {
	seed  maphash.Seed
	keys  [2]uint64 // more seed, for short strings
	table []slot    // open addressing, a power of two, at most half full
	ends  []int     // of string i in text
	text  []byte
}

type slot struct {
	hash uint32
	id   uint32 // + 1; 0 is free
}

const dictSlotsMin = 64

func newDict() dict {
	return dict{seed: maphash.MakeSeed(), keys: [2]uint64{rand.Uint64(), rand.Uint64()}, table: make([]slot, dictSlotsMin)}
}

func (d *dict) len() int { return len(d.ends) }

// at returns string i, which stays valid until reset.
func (d *dict) at(i uint32) string {
	from := 0
	if i > 0 {
		from = d.ends[i-1]
	}
	b := d.text[from:d.ends[i]]
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// id returns the number of s, a new one at first sight.
func (d *dict) id(s string) uint32 {
	h := d.hash(s)
	mask := uint32(len(d.table) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		switch found := d.table[i]; {
		case found.id == 0:
			return d.add(s, h, i)
		case found.hash == h && d.at(found.id-1) == s:
			return found.id - 1
		}
	}
}

// hash mixes the two overlapping words of 4 to 16 bytes by one wide product, as
// wyhash does (Wang Yi, 2019), and leaves other lengths to maphash.
func (d *dict) hash(s string) uint32 {
	b, n := unsafe.Slice(unsafe.StringData(s), len(s)), len(s)
	var first, last uint64
	switch {
	case n >= 8 && n <= 16:
		first, last = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[n-8:])
	case n >= 4 && n < 8:
		first, last = uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[n-4:]))
	default:
		return uint32(maphash.String(d.seed, s))
	}
	high, low := bits.Mul64(first^d.keys[0], last^d.keys[1]^uint64(n))
	return uint32(high ^ low)
}

// idOf is id for bytes, which are copied if they are new.
func (d *dict) idOf(b []byte) uint32 { return d.id(unsafe.String(unsafe.SliceData(b), len(b))) }

func (d *dict) add(s string, h, i uint32) uint32 {
	id := uint32(len(d.ends))
	d.text = append(d.text, s...)
	d.ends = append(d.ends, len(d.text))
	d.table[i] = slot{h, id + 1}
	if 2*len(d.ends) > len(d.table) {
		d.grow()
	}
	return id
}

func (d *dict) grow() {
	old := d.table
	d.table = make([]slot, 2*len(old))
	mask := uint32(len(d.table) - 1)
	for _, s := range old {
		if s.id == 0 {
			continue
		}
		i := s.hash & mask
		for d.table[i].id != 0 {
			i = (i + 1) & mask
		}
		d.table[i] = s
	}
}

// dictTextKept bounds the memory that a dict keeps for the next block.
const dictTextKept = 1 << 20

func (d *dict) reset() {
	if len(d.ends) == 0 {
		return
	}
	if cap(d.text) > dictTextKept || len(d.table) > dictTextKept/8 {
		*d = dict{seed: d.seed, keys: d.keys, table: make([]slot, dictSlotsMin)}
		return
	}
	clear(d.table)
	d.ends, d.text = d.ends[:0], d.text[:0]
}

// lengths appends the length of every string.
func (d *dict) lengths(dst []int64) []int64 {
	from := 0
	for _, end := range d.ends {
		dst = append(dst, int64(end-from))
		from = end
	}
	return dst
}
