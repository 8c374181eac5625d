package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// shelfSlots is how many slabs a file of the shelf has: 10 MiB.
const shelfSlots = 256

// shelf keeps parts of the groups' indexes in files. They are derived from the
// segments and not synced, have no name, and end with the process: opening the log
// makes the index anew.
type shelf struct {
	fs      vfs.FS
	dir     string
	metrics *metrics
	// segment finds the segments that a slab which cannot be read is made from again.
	segment func(id uint32) *segment
	// lost is told of such a slab.
	lost func(group uint32, sh *shelved, err error)

	mu     sync.Mutex // leaf
	files  []*shelfFile
	made   int
	serial uint32
}

// shelfFile is one file.
type shelfFile struct {
	vfs.File
	free []uint16
}

// put writes a slab. One goroutine at a time may call it.
func (h *shelf) put(group uint32, c *candidate) (*shelved, error) {
	h.serial++
	buf, sh := c.encode(group, h.serial)
	if sh == nil {
		return nil, nil
	}
	if err := h.slot(sh); err != nil {
		return nil, err
	}
	if _, err := sh.file.WriteAt(buf, int64(sh.slot)*slotBytes); err != nil {
		h.release(sh)
		return nil, fmt.Errorf("write the index of old entries: %w", err)
	}
	return sh, nil
}

// slot finds room.
func (h *shelf) slot(sh *shelved) error {
	take := func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, f := range h.files {
			if n := len(f.free); n > 0 {
				sh.file, sh.slot, f.free = f, f.free[n-1], f.free[:n-1]
				h.count()
				return true
			}
		}
		return false
	}
	if take() {
		return nil
	}
	f, err := h.create()
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.files = append(h.files, f)
	h.mu.Unlock()
	take()
	return nil
}

// create makes a file without a name.
func (h *shelf) create() (*shelfFile, error) {
	h.made++
	name := filepath.Join(h.dir, "index-"+strconv.Itoa(h.made)+spareSuffix)
	file, err := h.fs.Create(name)
	if err != nil {
		return nil, fmt.Errorf("make a file for the index of old entries: %w", err)
	}
	if err := h.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("unlink the file for the index of old entries: %w", err), file.Close())
	}
	f := &shelfFile{File: file}
	for i := range uint16(shelfSlots) {
		f.free = append(f.free, shelfSlots-1-i) // the first comes first
	}
	return f, nil
}

// release frees a slot. It does no I/O.
func (h *shelf) release(sh *shelved) {
	h.mu.Lock()
	defer h.mu.Unlock()
	sh.file.free = append(sh.file.free, sh.slot)
	h.count()
}

// count sets the gauge; h.mu is held.
func (h *shelf) count() {
	used := 0
	for _, f := range h.files {
		used += shelfSlots - len(f.free)
	}
	h.metrics.shelved.Set(float64(used) * slabEntries)
}

// sweep closes the files of which nothing is needed.
func (h *shelf) sweep() {
	h.mu.Lock()
	var empty []*shelfFile
	h.files = slices.DeleteFunc(h.files, func(f *shelfFile) bool {
		if len(f.free) == shelfSlots {
			empty = append(empty, f)
			return true
		}
		return false
	})
	h.mu.Unlock()
	for _, f := range empty {
		_ = f.Close() // it has no name: nothing is left of it
	}
}

// close closes all files.
func (h *shelf) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.files {
		_ = f.Close() // as in sweep
	}
	h.files = nil
}

// chunk reads one chunk of a slab.
func (h *shelf) chunk(group uint32, c coldChunk) (*packed, error) {
	from, to := c.extent(c.chunk)
	b := make([]byte, to-from)
	if _, err := c.file.ReadAt(b, int64(c.slot)*slotBytes+int64(from)); err != nil {
		return nil, fmt.Errorf("read the index of old entries: %w", err)
	}
	return c.decode(group, c.chunk, b)
}

// slab reads a whole slab.
func (h *shelf) slab(group uint32, sh *shelved) (*[slabChunks]*chunk, error) {
	chunks := &[slabChunks]*chunk{}
	for k := range chunks {
		p, err := h.chunk(group, coldChunk{sh, k})
		if err != nil {
			return nil, err
		}
		chunks[k] = &chunk{packed: p, bytes: sh.sums[k]}
	}
	return chunks, nil
}

// again makes a slab that cannot be read from the segments that have its entries:
// the last record of an index is its entry. What memory knows of the slab has to
// come out.
func (h *shelf) again(group uint32, sh *shelved, why error) (*[slabChunks]*chunk, error) {
	h.lost(group, sh, why)
	chunks := &[slabChunks]*chunk{}
	for k := range chunks {
		chunks[k] = newChunk()
	}
	ids := make([]uint32, 0, len(sh.spans))
	for _, sp := range sh.spans {
		ids = append(ids, sp.segment)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if err := h.collect(group, sh, id, chunks); err != nil {
			return nil, fmt.Errorf("make the index of entries %d.. of group %d again: %w", sh.base, group, err)
		}
	}
	var spans []span
	for k, c := range chunks {
		for _, loc := range c.locs {
			c.bytes += int64(loc.size)
			if loc != (location{}) {
				spans = addSpan(spans, loc)
			}
		}
		c.pack()
		if c.bytes != sh.sums[k] {
			return nil, fmt.Errorf("make the index of entries %d.. of group %d again: they have %d bytes, not %d: %w", sh.base, group, c.bytes, sh.sums[k], why)
		}
	}
	if !sameSpans(spans, sh.spans) {
		return nil, fmt.Errorf("make the index of entries %d.. of group %d again: they are in other segments: %w", sh.base, group, why)
	}
	return chunks, nil
}

func (h *shelf) collect(group uint32, sh *shelved, id uint32, chunks *[slabChunks]*chunk) error {
	s := h.segment(id)
	if s == nil {
		return nil // recycled since: the caller finds that the slab has changed
	}
	s.use.RLock()
	defer s.use.RUnlock()
	if s.f == nil {
		return nil
	}
	_, err := s.scan(func(off int64, _ []byte, r *record) error {
		if r.group != group || r.typ != typeEntry && r.typ != typeRelocated || r.index < sh.base || r.index-sh.base >= slabEntries {
			return nil
		}
		n := r.index - sh.base
		chunks[n/chunkEntries].locs[n%chunkEntries] = location{segment: id, offset: uint32(off), size: uint32(r.size + s.overhead())}
		return nil
	})
	return err
}

func sameSpans(a, b []span) bool {
	order := func(x, y span) int { return int(int64(x.segment) - int64(y.segment)) }
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, order)
	slices.SortFunc(b, order)
	return slices.Equal(a, b)
}
