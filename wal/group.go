package wal

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// Group is one raft group's part of the log. It implements raft.LogStore,
// raft.StableStore, raft.MonotonicLogStore and raft.CommitTrackingLogStore. All
// methods may be called from several goroutines; those that change something
// return when it is durable, unless they say otherwise.
type Group struct {
	id  uint32
	log *Log

	mu     sync.RWMutex // guards what follows; written by the writer only
	state  state
	index  index
	stable map[string][]byte
	cache  cache

	staged   state  // the writer's view within the group commit it builds
	stagedIn uint64 // the plan that staged belongs to
	seen     uint64 // the last plan with a request of this group

	floor  atomic.Uint64 // as asked for by SetFloor, state.floor follows
	commit atomic.Uint64 // as asked for by StageCommitIndex
}

var (
	_ raft.LogStore               = (*Group)(nil)
	_ raft.StableStore            = (*Group)(nil)
	_ raft.MonotonicLogStore      = (*Group)(nil)
	_ raft.CommitTrackingLogStore = (*Group)(nil)
)

func newGroup(id uint32, l *Log) *Group {
	g := &Group{id: id, log: l, stable: map[string][]byte{}}
	g.index.group = id
	if l != nil {
		g.index.shelf = l.shelf
	}
	return g
}

// ID is the group's number.
func (g *Group) ID() uint32 { return g.id }

// IsMonotonic tells raft that entries have no gaps here, so that it deletes
// everything after it installed a snapshot.
func (g *Group) IsMonotonic() bool { return true }

// FirstIndex is the index of the oldest entry, 0 if there is none.
func (g *Group) FirstIndex() (uint64, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	first, _ := g.state.visible()
	return first, g.log.readable()
}

// LastIndex is the index of the latest entry, 0 if there is none.
func (g *Group) LastIndex() (uint64, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	_, last := g.state.visible()
	return last, g.log.readable()
}

// Retained is the range of entries that GetLog can read. It is what FirstIndex
// and LastIndex say, except after raft deleted its whole log while the floor
// protects some of it: then those remain readable until the next append shows
// that they belong to a replaced past.
func (g *Group) Retained() (first, last uint64) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.state.first, g.state.last
}

// GetLog reads an entry. Its Data and Extensions are shared with the cache, in
// pieces of up to 4 MiB: they must not be changed, and who keeps them for long
// should copy them. The error is raft.ErrLogNotFound below the first entry,
// ErrBeyondLast above the last one, and a *CorruptError for damage.
func (g *Group) GetLog(index uint64, out *raft.Log) error {
	if err := g.log.readable(); err != nil {
		return err
	}
	g.mu.RLock()
	raw := g.cache.get(index)
	g.mu.RUnlock()
	if raw != nil {
		g.log.metrics.cacheHits.Inc()
		r := parseRecord(raw)
		return readEntry(&r, out)
	}
	loc, seg, ok, err := g.lookup(index)
	if err != nil {
		return fmt.Errorf("get entry %d of group %d: %w", index, g.id, err)
	}
	if !ok {
		return g.missing(index)
	}
	raw, err = seg.readRecord(loc)
	seg.use.RUnlock()
	g.log.metrics.cacheMisses.Inc()
	if err != nil {
		g.log.damaged(seg, err)
		return fmt.Errorf("get entry %d of group %d: %w", index, g.id, err)
	}
	r := parseRecord(raw)
	if r.group != g.id || r.index != index {
		err := seg.corrupt(int64(loc.offset), fmt.Sprintf("entry %d of group %d is in the place of entry %d of group %d", r.index, r.group, index, g.id), nil)
		g.log.damaged(seg, err)
		return err
	}
	return readEntry(&r, out)
}

// missing is the error for an entry that is not there.
func (g *Group) missing(index uint64) error {
	g.mu.RLock()
	last := g.state.last
	g.mu.RUnlock()
	if last != 0 && index > last {
		return fmt.Errorf("get entry %d of group %d (last is %d): %w", index, g.id, last, ErrBeyondLast)
	}
	return raft.ErrLogNotFound
}

// StoreLog is StoreLogs of one entry.
func (g *Group) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries, which must follow the last one, and returns when
// they are durable. With an error that is not from a latched log (ErrFull,
// ErrGap, ErrTooLarge) nothing was stored.
func (g *Group) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	req := newRequest(opStore, g)
	req.logs = logs
	req.commit = g.commit.Load()
	limit := g.log.entryBytesMax()
	for i, l := range logs {
		if l.Index != logs[0].Index+uint64(i) {
			return fmt.Errorf("store entry %d of group %d behind entry %d: %w", l.Index, g.id, logs[i-1].Index, ErrGap)
		}
		if n := entrySizeMax(l, true); int64(n) > limit {
			return fmt.Errorf("store entry %d of group %d, %d bytes, at most %d: %w", l.Index, g.id, n, limit, ErrTooLarge)
		}
		req.bulk = req.bulk || l.Type == raft.LogCommand && len(l.Data) > smallEntryBytes
	}
	return g.log.do(req)
}

// DeleteRange removes entries at either end: a prefix (limited by the floor), a
// suffix, or everything (see Retained).
func (g *Group) DeleteRange(minIndex, maxIndex uint64) error {
	if first, _ := g.Retained(); minIndex > first {
		g.thaw(minIndex)
	}
	g.thawFor(min(maxIndex, g.Floor()))
	req := newRequest(opDelete, g)
	req.min, req.max = minIndex, maxIndex
	return g.log.do(req)
}

// SetFloor says that the owner of the group needs no entry <= index, so that
// raft's prefix deletions may remove them. A new group's floor is 0: nothing is
// removed. math.MaxUint64 leaves everything to raft. The floor only rises; it is
// stored lazily, and after a restart may be an earlier one.
func (g *Group) SetFloor(index uint64) {
	for {
		old := g.floor.Load()
		if index <= old {
			return
		}
		if g.floor.CompareAndSwap(old, index) {
			g.log.janitor.kick()
			return
		}
	}
}

// Floor is the highest floor that was set.
func (g *Group) Floor() uint64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return max(g.floor.Load(), g.state.floor)
}

// BytesSince is the size of the entries behind index in the log.
func (g *Group) BytesSince(index uint64) int64 {
	var got fetched
	for {
		g.mu.RLock()
		if index >= g.state.last {
			g.mu.RUnlock()
			return 0
		}
		sum, miss, ok := g.index.bytesFrom(index+1, got)
		g.mu.RUnlock()
		if ok {
			return sum
		}
		var err error
		if got, err = g.fetch(miss); err != nil {
			g.log.logger.Error("the index of old entries is lost", "group", g.id, "err", err)
			index += chunkEntries - (index+1)%chunkEntries // without the chunk that cannot be read
		}
	}
}

// Remove deletes the group with all that it holds, floor or not: the replica has
// left this node. The group may be used again and is then a new one.
func (g *Group) Remove() error {
	g.floor.Store(0)
	g.commit.Store(0)
	return g.log.do(newRequest(opRemove, g))
}

// StageCommitIndex stores index with the next StoreLogs.
func (g *Group) StageCommitIndex(index uint64) error {
	g.commit.Store(index)
	return nil
}

// GetCommitIndex is the latest commit index that is stored, 0 for none, and never
// beyond the last entry.
func (g *Group) GetCommitIndex() (uint64, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	_, last := g.state.visible()
	return min(g.state.commit, last), g.log.readable()
}

// Set stores a value under a key, at most 4 KiB together.
func (g *Group) Set(key, value []byte) error {
	if n := len(key) + len(value); n > stableBytesMax {
		return fmt.Errorf("set %q of group %d: %d bytes are more than %d", key, g.id, n, stableBytesMax)
	}
	req := newRequest(opStable, g)
	req.body = stableBody(key, value)
	return g.log.do(req)
}

// Get returns the value under a key; for a missing one the error's text is
// "not found", which is what raft compares with.
func (g *Group) Get(key []byte) ([]byte, error) {
	if err := g.log.readable(); err != nil {
		return nil, err
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	v, ok := g.stable[string(key)]
	if !ok {
		return nil, errKeyNotFound
	}
	return v, nil
}

// SetUint64 stores a number under a key.
func (g *Group) SetUint64(key []byte, value uint64) error {
	return g.Set(key, binary.LittleEndian.AppendUint64(nil, value))
}

// GetUint64 returns the number under a key, 0 for a missing one.
func (g *Group) GetUint64(key []byte) (uint64, error) {
	if err := g.log.readable(); err != nil {
		return 0, err
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	v, ok := g.stable[string(key)]
	if !ok {
		return 0, nil
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("get %q of group %d: value has %d bytes, not 8", key, g.id, len(v))
	}
	return binary.LittleEndian.Uint64(v), nil
}

// account changes the count of live bytes in a segment.
type account func(segment uint32, delta int64)

// apply carries out a synced record. The caller holds g.mu or is alone.
func (g *Group) apply(r *record, loc location, add account) error {
	drop := func(old location) { add(old.segment, -int64(old.size)) }
	place := func() {
		if old := g.index.set(r.index, loc); old != (location{}) {
			drop(old)
		}
		add(loc.segment, int64(loc.size))
	}
	switch r.typ {
	case typeRelocated:
		if g.state.holds(r.index) {
			place()
		}
		return g.index.err
	case typeStable:
		key, value, err := readStable(r.body)
		if err != nil {
			return err
		}
		g.stable[key] = value
	case typeRemove:
		clear(g.stable)
	}
	if err := g.state.apply(r); err != nil {
		return err
	}
	g.index.resize(g.state.first, g.state.last, drop)
	g.cache.trim(g.state.first, g.state.last)
	if r.typ == typeEntry {
		place()
	}
	return g.index.err
}

// restore sets the group to what a checkpoint says.
func (g *Group) restore(img *groupImage, add account) {
	g.state, g.stable = img.state, img.stable
	g.index.resize(g.state.first, g.state.last, func(old location) { add(old.segment, -int64(old.size)) })
}

// blank reports whether there is nothing to keep about the group.
func (g *Group) blank() bool { return g.state == state{} && len(g.stable) == 0 }
