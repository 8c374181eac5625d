package wal

// location is where the record of one entry is. The zero location is a hole,
// which exists only while a log is being opened.
type location struct {
	segment uint32 // sequence of the segment; 2^32 segments of 64 MiB are 256 EiB
	offset  uint32
	size    uint32
}

// chunkEntries is the granularity in which the index grows, shrinks and sums.
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
// shrinks at both ends in constant time per entry. Chunks are packed once they are
// old: what waits for a database that is away has entries by the million. It may
// be read by several at once, but not while it is written.
type index struct {
	chunks []*chunk
	base   uint64 // entry index of the first location of chunks[0]; a multiple of chunkEntries
	first  uint64
	last   uint64 // first..last is the range; both 0 when empty
	opened *chunk // the old one that was written last
}

// get returns the location of i, which is in range.
func (x *index) get(i uint64) location {
	n := i - x.base
	c := x.chunks[n/chunkEntries]
	if c.locs == nil {
		return c.packed.get(n % chunkEntries)
	}
	return c.locs[n%chunkEntries]
}

// set stores the location of i, which is in range, and returns the one before.
func (x *index) set(i uint64, loc location) location {
	n := i - x.base
	c := x.chunks[n/chunkEntries]
	if c.locs == nil {
		if x.opened != nil {
			x.opened.pack()
		}
		c.unpack()
		x.opened = c
	}
	old := c.locs[n%chunkEntries]
	c.locs[n%chunkEntries] = loc
	c.bytes += int64(loc.size) - int64(old.size)
	return old
}

// resize makes first..last the range (0, 0 is empty) and calls drop with every
// location that falls out. New places are holes.
func (x *index) resize(first, last uint64, drop func(location)) {
	if x.last != 0 && (last == 0 || first > x.last || last < x.first) {
		x.dropRange(x.first, x.last, drop)
		*x = index{}
	}
	if last == 0 {
		return
	}
	if x.last == 0 {
		x.base, x.first, x.last = first-first%chunkEntries, first, first
		x.chunks = []*chunk{newChunk()}
	}
	if last < x.last {
		x.dropRange(last+1, x.last, drop)
	}
	if first > x.first {
		x.dropRange(x.first, first-1, drop)
	}
	x.first, x.last = first, last
	x.fit()
}

func (x *index) dropRange(from, to uint64, drop func(location)) {
	for i := from; ; i++ {
		if old := x.set(i, location{}); old != (location{}) {
			drop(old)
		}
		if i == to {
			return
		}
	}
}

// fit adds and removes whole chunks so that they cover first..last, and packs the
// one that is old now.
func (x *index) fit() {
	base := x.first - x.first%chunkEntries
	for x.base > base {
		x.chunks = append([]*chunk{newChunk()}, x.chunks...)
		x.base -= chunkEntries
	}
	if n := (base - x.base) / chunkEntries; n > 0 {
		clear(x.chunks[:n])
		x.chunks = x.chunks[n:]
		x.base = base
	}
	need := int((x.last-x.base)/chunkEntries) + 1
	for len(x.chunks) < need {
		x.chunks = append(x.chunks, newChunk())
		if old := len(x.chunks) - 1 - openChunks; old >= 0 {
			x.chunks[old].pack()
		}
	}
	clear(x.chunks[need:])
	x.chunks = x.chunks[:need]
}

// bytesFrom sums the sizes of the records of the entries >= from.
func (x *index) bytesFrom(from uint64) int64 {
	if x.last == 0 || from > x.last {
		return 0
	}
	from = max(from, x.first)
	var sum int64
	c := (from - x.base) / chunkEntries
	for _, loc := range x.chunks[c].all()[(from-x.base)%chunkEntries:] { // 0 behind the last
		sum += int64(loc.size)
	}
	for _, chunk := range x.chunks[c+1:] {
		sum += chunk.bytes
	}
	return sum
}

// hole returns the first entry without a location.
func (x *index) hole() (uint64, bool) {
	if x.last == 0 {
		return 0, false
	}
	for n, c := range x.chunks {
		begin := x.base + uint64(n)*chunkEntries
		for k, loc := range c.all() {
			if i := begin + uint64(k); loc == (location{}) && i >= x.first && i <= x.last {
				return i, true
			}
		}
	}
	return 0, false
}
