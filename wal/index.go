package wal

// location is where the record of one entry is: 12 bytes per entry. The zero
// location is a hole, which exists only while a log is being opened.
type location struct {
	segment uint32 // sequence of the segment; 2^32 segments of 64 MiB are 256 EiB
	offset  uint32
	size    uint32
}

// chunkEntries is the granularity in which the index grows, shrinks and sums.
const chunkEntries = 512

type chunk struct {
	locs  [chunkEntries]location
	bytes int64 // sum of sizes
}

// index maps a contiguous range of entry indexes to locations. It grows and
// shrinks at both ends in constant time per entry. Not safe for concurrent use.
type index struct {
	chunks []*chunk
	base   uint64 // entry index of chunks[0].locs[0]; a multiple of chunkEntries
	first  uint64
	last   uint64 // first..last is the range; both 0 when empty
}

func (x *index) at(i uint64) *location {
	n := i - x.base
	return &x.chunks[n/chunkEntries].locs[n%chunkEntries]
}

// get returns the location of i, which is in range.
func (x *index) get(i uint64) location { return *x.at(i) }

// set stores the location of i, which is in range, and returns the one before.
func (x *index) set(i uint64, loc location) location {
	p := x.at(i)
	old := *p
	*p = loc
	x.chunks[(i-x.base)/chunkEntries].bytes += int64(loc.size) - int64(old.size)
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
		x.chunks = []*chunk{{}}
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

// fit adds and removes whole chunks so that they cover first..last.
func (x *index) fit() {
	base := x.first - x.first%chunkEntries
	for x.base > base {
		x.chunks = append([]*chunk{{}}, x.chunks...)
		x.base -= chunkEntries
	}
	if n := (base - x.base) / chunkEntries; n > 0 {
		clear(x.chunks[:n])
		x.chunks = x.chunks[n:]
		x.base = base
	}
	need := int((x.last-x.base)/chunkEntries) + 1
	for len(x.chunks) < need {
		x.chunks = append(x.chunks, &chunk{})
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
	for i := from; i < x.base+(c+1)*chunkEntries && i <= x.last; i++ {
		sum += int64(x.get(i).size)
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
	for i := x.first; i <= x.last; i++ {
		if x.get(i) == (location{}) {
			return i, true
		}
	}
	return 0, false
}
