package wal

// cache holds the records of a group's latest entries: a contiguous range that
// ends at the group's last entry. Guarded by the group's lock.
type cache struct {
	first uint64
	recs  [][]byte
	bytes int64
}

func (c *cache) get(index uint64) []byte {
	if index < c.first || index-c.first >= uint64(len(c.recs)) {
		return nil
	}
	return c.recs[index-c.first]
}

func (c *cache) add(index uint64, raw []byte) {
	if index != c.first+uint64(len(c.recs)) {
		c.reset()
	}
	if len(c.recs) == 0 {
		c.first = index
	}
	c.recs = append(c.recs, raw)
	c.bytes += int64(len(raw))
}

func (c *cache) reset() { *c = cache{} }

// trim drops what is outside of first..last.
func (c *cache) trim(first, last uint64) {
	for len(c.recs) > 0 && c.first+uint64(len(c.recs))-1 > last {
		n := len(c.recs) - 1
		c.bytes -= int64(len(c.recs[n]))
		c.recs[n] = nil
		c.recs = c.recs[:n]
	}
	for len(c.recs) > 0 && c.first < first {
		c.evict()
	}
}

// evict drops the oldest record.
func (c *cache) evict() {
	c.bytes -= int64(len(c.recs[0]))
	c.recs[0] = nil
	c.recs = c.recs[1:]
	c.first++
}

// cacheKey remembers in which order entries came in; the oldest leave first.
type cacheKey struct {
	g     *Group
	index uint64
}

// ring is a growing queue of cache keys, used by the writer alone.
type ring struct {
	buf  []cacheKey
	head int
	n    int
}

// ringKeysMin is where the ring starts to look for keys that are no longer cached.
const ringKeysMin = 1024

func (r *ring) push(k cacheKey) {
	if r.n == len(r.buf) {
		r.compact()
	}
	r.buf[(r.head+r.n)%len(r.buf)] = k
	r.n++
}

// compact drops the keys of entries that left the cache with a deletion, and
// makes the ring twice as large as what remains.
func (r *ring) compact() {
	keep := make([]cacheKey, 0, r.n)
	for i := range r.n {
		if k := r.buf[(r.head+i)%len(r.buf)]; k.g.cache.get(k.index) != nil {
			keep = append(keep, k)
		}
	}
	r.buf = make([]cacheKey, max(ringKeysMin, 2*len(keep)))
	r.head, r.n = 0, copy(r.buf, keep)
}

func (r *ring) pop() (cacheKey, bool) {
	if r.n == 0 {
		return cacheKey{}, false
	}
	k := r.buf[r.head]
	r.buf[r.head] = cacheKey{}
	r.head = (r.head + 1) % len(r.buf)
	r.n--
	return k, true
}
