package block

import (
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
	table []slot    // open addressing, a power of two, at most a quarter full
	known []known   // of string i
	text  []byte
}

type slot struct {
	hash uint32
	id   uint32 // + 1; 0 is free
}

// known is a string in text: where it ends, and its words.
type known struct {
	first, last uint64
	end         int
}

const dictSlotsMin = 64

func newDict() dict {
	return dict{seed: maphash.MakeSeed(), keys: [2]uint64{rand.Uint64(), rand.Uint64()}, table: make([]slot, dictSlotsMin)}
}

func (d *dict) len() int { return len(d.known) }

// at returns string i, which stays valid until reset.
func (d *dict) at(i uint32) string {
	from := 0
	if i > 0 {
		from = d.known[i-1].end
	}
	b := d.text[from:d.known[i].end]
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// id returns the number of s, a new one at first sight.
func (d *dict) id(s string) uint32 {
	first, last := words(s)
	h := d.hash(s, first, last)
	i, id := d.search(s, first, last, h)
	if id == 0 {
		id = d.add(s, first, last, h, i)
	}
	return id - 1
}

// find returns the number of s if it is known.
func (d *dict) find(s string) (id uint32, ok bool) {
	first, last := words(s)
	_, id = d.search(s, first, last, d.hash(s, first, last))
	return id - 1, id > 0
}

// search returns the slot of s and its number + 1, or a free slot and 0.
func (d *dict) search(s string, first, last uint64, h uint32) (at, id uint32) {
	mask := uint32(len(d.table) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		found := d.table[i&uint32(len(d.table)-1)]
		if found.id == 0 || found.hash == h && d.same(found.id-1, s, first, last) {
			return i, found.id
		}
	}
}

// same reports whether string i is s.
func (d *dict) same(i uint32, s string, first, last uint64) bool {
	if len(s) > wordsMax {
		return d.at(i) == s
	}
	k := &d.known[i]
	if k.first != first || k.last != last {
		return false
	}
	if i > 0 {
		return k.end-d.known[i-1].end == len(s)
	}
	return k.end == len(s)
}

// hash mixes the words of short strings by one wide product, as wyhash does (Wang
// Yi, 2019), and leaves others to maphash.
func (d *dict) hash(s string, first, last uint64) uint32 {
	if len(s) > wordsMax {
		return d.hashLong(s)
	}
	high, low := bits.Mul64(first^d.keys[0], last^d.keys[1]^uint64(len(s)))
	return uint32(high ^ low)
}

func (d *dict) hashLong(s string) uint32 { return uint32(maphash.String(d.seed, s)) }

// idOf is id for bytes, which are copied if they are new.
func (d *dict) idOf(b []byte) uint32 { return d.id(unsafe.String(unsafe.SliceData(b), len(b))) }

// add puts s, which is not known, at a free slot, and returns its number + 1.
func (d *dict) add(s string, first, last uint64, h, at uint32) uint32 {
	d.text = appendWords(d.text, len(s), s, first, last)
	d.known = append(d.known, known{first, last, len(d.text)})
	id := uint32(len(d.known))
	d.table[at] = slot{h, id}
	if 4*len(d.known) > len(d.table) {
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
	if len(d.known) == 0 {
		return
	}
	if cap(d.text) > dictTextKept || len(d.table) > dictTextKept/8 {
		*d = dict{seed: d.seed, keys: d.keys, table: make([]slot, dictSlotsMin)}
		return
	}
	clear(d.table)
	d.known, d.text = d.known[:0], d.text[:0]
}

// lengths appends the length of every string.
func (d *dict) lengths(dst []int64) []int64 {
	from := 0
	for i := range d.known {
		dst = append(dst, int64(d.known[i].end-from))
		from = d.known[i].end
	}
	return dst
}
