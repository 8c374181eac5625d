package wal

// lookup returns where the entry index is, and its segment with use held for
// reading. ok is false when the group has no such entry.
func (g *Group) lookup(index uint64) (loc location, seg *segment, ok bool, err error) {
	var got fetched
	for {
		g.mu.RLock()
		if !g.state.holds(index) {
			g.mu.RUnlock()
			return location{}, nil, false, nil
		}
		loc, miss, found := g.index.find(index, got)
		if found {
			seg := g.log.segment(loc.segment)
			seg.use.RLock() // before g.mu is released: the segment is live now
			g.mu.RUnlock()
			return loc, seg, true, nil
		}
		g.mu.RUnlock()
		if got, err = g.fetch(miss); err != nil {
			return location{}, nil, false, err
		}
	}
}

// fetch reads a chunk from the shelf. What was released meanwhile is not looked at.
func (g *Group) fetch(c coldChunk) (fetched, error) {
	p, err := g.log.shelf.chunk(g.id, c)
	if err != nil {
		return fetched{}, g.thawSlab(c.shelved)
	}
	got := fetched{c, p}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.index.warm.put(got)
	return got, nil
}

// thaw brings the slab of an entry that is about to change into memory, so that the
// writer need not wait for the disk. An error is for the writer to find again.
func (g *Group) thaw(index uint64) {
	g.mu.RLock()
	var sh *shelved
	if g.state.holds(index) {
		s, _, _ := g.index.place(index)
		sh = s.shelved
	}
	g.mu.RUnlock()
	if sh != nil {
		_ = g.thawSlab(sh)
	}
}

// thawFor is thaw for a deletion of the entries <= cut.
func (g *Group) thawFor(cut uint64) {
	if (cut+1)%slabEntries != 0 {
		g.thaw(cut + 1)
	}
}

// thawSlab brings a slab into memory unless that has happened, or it has gone.
func (g *Group) thawSlab(sh *shelved) error {
	chunks, err := g.log.shelf.slab(g.id, sh)
	if err != nil {
		g.mu.RLock()
		still := g.onShelf(sh) != nil
		g.mu.RUnlock()
		if !still {
			return nil // its slot may have another's bytes
		}
		chunks, err = g.log.shelf.again(g.id, sh, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.onShelf(sh)
	if s == nil {
		return nil
	}
	if err == nil {
		g.index.take(s, chunks)
	}
	return err
}

// onShelf is the slab that is on the shelf as sh; nil when it no longer is. g.mu is
// held.
func (g *Group) onShelf(sh *shelved) *slab {
	if !g.state.holds(sh.base) {
		return nil
	}
	if s, _, _ := g.index.place(sh.base); s.shelved == sh {
		return s
	}
	return nil
}

// shelveBatch is how many slabs are looked at under the group's lock at a time.
const shelveBatch = 64

// shelve puts old slabs of the group on the shelf, all but the newest keep.
func (g *Group) shelve(keep int) error {
	for {
		g.mu.RLock()
		old := g.index.candidates(keep, shelveBatch)
		g.mu.RUnlock()
		moved := 0
		for i := range old {
			sh, err := g.log.shelf.put(g.id, &old[i])
			if err != nil {
				return err
			}
			if sh != nil && g.shelved(&old[i], sh) {
				moved++
			}
		}
		if moved < shelveBatch {
			return nil
		}
	}
}

// shelved replaces a slab by what is on the shelf, unless it has changed.
func (g *Group) shelved(c *candidate, sh *shelved) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	whole := g.state.holds(c.base) && g.state.holds(c.base+slabEntries-1)
	if whole {
		s, _, _ := g.index.place(c.base)
		whole = s == c.slab && c.same()
	}
	if !whole {
		g.log.shelf.release(sh)
		return false
	}
	c.slab.chunks, c.slab.shelved = nil, sh
	return true
}

// slabBytes is about what a slab takes in memory, packed.
const slabBytes = 26 << 10

// shelve puts what exceeds Config.IndexBytes on the shelf. Where that fails it
// stays in memory: a full disk must not stop a log that has room in its segments.
func (l *Log) shelve(groups []*Group) {
	keep := max(1, int(l.cfg.IndexBytes/slabBytes)/max(1, len(groups)))
	for _, g := range groups {
		if err := g.shelve(keep); err != nil {
			if !l.shelveFailed {
				l.logger.Warn("the index of old entries stays in memory", "dir", l.dir, "err", err)
			}
			l.shelveFailed = true
			return
		}
	}
	l.shelveFailed = false
	l.shelf.sweep()
}
