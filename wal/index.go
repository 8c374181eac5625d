package wal

// location is where the record of one entry is. The zero location is a hole,
// which exists only while a log is being opened.
type location struct {
	segment uint32 // sequence of the segment; 2^32 segments of 64 MiB are 256 EiB
	offset  uint32
	size    uint32
}

// chunkEntries is the granularity in which the index is packed and sums.
const chunkEntries = 512

// openChunks is how many of the newest chunks are not packed.
const openChunks = 2

type chunk struct {
	locs   *[chunkEntries]location // nil: packed
	packed *packed
	bytes  int64 // sum of sizes
}

func newChunk() *chunk { return &chunk{locs: &[chunkEntries]location{}} }

func (c *chunk) pack() {
	if c.locs != nil {
		c.packed, c.locs = pack(c.locs), nil
	}
}

func (c *chunk) unpack() { c.locs, c.packed = c.all(), nil }

// all returns the locations, to be read only.
func (c *chunk) all() *[chunkEntries]location {
	if c.locs == nil {
		return c.packed.unpack()
	}
	return c.locs
}

// index maps a contiguous range of entry indexes to locations. It grows and
// shrinks at both ends in constant time per entry. What waits for a database that
// is away has entries by the million: chunks are packed once they are old, and
// slabs of them go to the shelf, a file, when there are many. It may be read by
// several at once, but not while it is written.
type index struct {
	slabs  []*slab
	base   uint64 // entry index of the first location of slabs[0]; a multiple of slabEntries
	first  uint64
	last   uint64 // first..last is the range; both 0 when empty
	opened *chunk // the old one that was written last

	group uint32 // whose it is, for the shelf
	shelf *shelf // nil: all stays in memory
	warm  warm   // what was read from it last
	err   error  // what is on the shelf can neither be read nor found again
}

// place is where the location of an entry is in the index.
func (x *index) place(i uint64) (s *slab, k, at uint64) {
	n := i - x.base
	return x.slabs[n/slabEntries], n % slabEntries / chunkEntries, n % chunkEntries
}

// find returns the location of i, which is in range; or, with ok false, what has
// to be fetched from the shelf first. got is what the caller has just fetched, if
// anything.
func (x *index) find(i uint64, got fetched) (loc location, miss coldChunk, ok bool) {
	s, k, at := x.place(i)
	if s.shelved != nil {
		miss = coldChunk{s.shelved, int(k)}
		p := got.packed
		if got.coldChunk != miss {
			p = x.warm.get(miss)
		}
		if p == nil {
			return location{}, miss, false
		}
		return p.get(at), miss, true
	}
	c := s.chunks[k]
	switch {
	case c == nil:
		return location{}, miss, true
	case c.locs == nil:
		return c.packed.get(at), miss, true
	}
	return c.locs[at], miss, true
}

// get is find for the writer, who brings into memory what is on the shelf.
func (x *index) get(i uint64) location {
	loc, _, ok := x.find(i, fetched{})
	if !ok && x.thaw(i) {
		loc, _, _ = x.find(i, fetched{})
	}
	return loc
}

// set stores the location of i, which is in range, and returns the one before.
func (x *index) set(i uint64, loc location) location {
	s, k, at := x.place(i)
	if s.shelved != nil && !x.thaw(i) {
		return location{} // x.err says why
	}
	c := s.chunks[k]
	if c == nil {
		c = newChunk()
		s.chunks[k] = c
		if x.chunkOf(i)+openChunks <= x.chunkOf(x.last) {
			x.open(c)
		}
	} else if c.locs == nil {
		c.unpack()
		x.open(c)
	}
	old := c.locs[at]
	c.locs[at] = loc
	c.bytes += int64(loc.size) - int64(old.size)
	return old
}

// open makes c the one old chunk that is not packed.
func (x *index) open(c *chunk) {
	if x.opened != nil && x.opened != c {
		x.opened.pack()
	}
	x.opened = c
}

// chunkOf is the number of the chunk that has i.
func (x *index) chunkOf(i uint64) uint64 { return (i - x.base) / chunkEntries }

// resize makes first..last the range (0, 0 is empty) and calls drop with every
// location that falls out; what falls out of a shelved slab as a whole comes as
// one location for each segment. New places are holes.
func (x *index) resize(first, last uint64, drop func(location)) {
	if x.last != 0 && (last == 0 || first > x.last || last < x.first) {
		x.dropRange(x.first, x.last, drop)
		*x = index{group: x.group, shelf: x.shelf, err: x.err}
	}
	if last == 0 {
		return
	}
	if x.last == 0 {
		x.base, x.first, x.last = first-first%slabEntries, first, first
		x.slabs = []*slab{newSlab()}
	}
	if last < x.last {
		x.dropRange(last+1, x.last, drop)
	}
	if first > x.first {
		x.dropRange(x.first, first-1, drop)
	}
	before := x.last
	x.first, x.last = first, last
	x.fit()
	x.age(before)
}

func (x *index) dropRange(from, to uint64, drop func(location)) {
	for i := from; i <= to; {
		s, _, _ := x.place(i)
		begin := i - (i-x.base)%slabEntries
		end := min(to, begin+slabEntries-1)
		if s.shelved != nil && i == begin && end == begin+slabEntries-1 {
			for _, sp := range s.shelved.spans {
				drop(location{segment: sp.segment, size: sp.bytes})
			}
			x.shelf.release(s.shelved)
			s.shelved, s.chunks = nil, &[slabChunks]*chunk{}
			i = end + 1
			continue
		}
		for ; i <= end; i++ {
			if old := x.set(i, location{}); old != (location{}) {
				drop(old)
			}
		}
	}
}

// fit adds and removes whole slabs so that they cover first..last.
func (x *index) fit() {
	base := x.first - x.first%slabEntries
	for x.base > base {
		x.slabs = append([]*slab{newSlab()}, x.slabs...)
		x.base -= slabEntries
	}
	if n := (base - x.base) / slabEntries; n > 0 {
		clear(x.slabs[:n])
		x.slabs = x.slabs[n:]
		x.base = base
	}
	need := int((x.last-x.base)/slabEntries) + 1
	for len(x.slabs) < need {
		x.slabs = append(x.slabs, newSlab())
	}
	clear(x.slabs[need:])
	x.slabs = x.slabs[:need]
}

// age packs the chunks that are no longer among the newest since the range ended
// with the entry before.
func (x *index) age(before uint64) {
	before = max(before, x.base)
	newest := x.chunkOf(x.last)
	for n := x.chunkOf(before) - min(x.chunkOf(before), openChunks-1); n <= x.chunkOf(before) && n+openChunks <= newest; n++ {
		if s := x.slabs[n/slabChunks]; s.chunks != nil && s.chunks[n%slabChunks] != nil {
			s.chunks[n%slabChunks].pack()
		}
	}
}

// bytesFrom sums the sizes of the records of the entries >= from; or, with ok
// false, says what has to be fetched from the shelf first.
func (x *index) bytesFrom(from uint64, got fetched) (sum int64, miss coldChunk, ok bool) {
	if x.last == 0 || from > x.last {
		return 0, miss, true
	}
	from = max(from, x.first)
	s, k, at := x.place(from)
	if at > 0 {
		// In the chunk of from, what is behind the last is 0.
		end := from - at + chunkEntries
		for i := from; i < min(end, x.last+1); i++ {
			loc, miss, ok := x.find(i, got)
			if !ok {
				return 0, miss, false
			}
			sum += int64(loc.size)
		}
		k++
	}
	for ; k < slabChunks; k++ {
		sum += s.chunkBytes(k)
	}
	for _, s := range x.slabs[(from-x.base)/slabEntries+1:] {
		for k := range uint64(slabChunks) {
			sum += s.chunkBytes(k)
		}
	}
	return sum, miss, true
}

// hole returns the first entry without a location. What is on the shelf has none.
func (x *index) hole() (uint64, bool) {
	if x.last == 0 {
		return 0, false
	}
	for n, s := range x.slabs {
		if s.shelved != nil {
			continue
		}
		for k, c := range s.chunks {
			begin := x.base + uint64(n)*slabEntries + uint64(k)*chunkEntries
			if c == nil {
				if i := max(begin, x.first); i <= min(x.last, begin+chunkEntries-1) {
					return i, true
				}
				continue
			}
			for at, loc := range c.all() {
				if i := begin + uint64(at); loc == (location{}) && i >= x.first && i <= x.last {
					return i, true
				}
			}
		}
	}
	return 0, false
}
