package shard

import (
	"fmt"
	"iter"
	"slices"
	"sort"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// What waits for a store that is away for long costs disk, not memory: data goes
// back to the log, marks go to files, and what is left, the bookkeeping of the
// blocks, is packed in runs, about 10 bytes a block instead of 200, and goes to
// files as well when there are many: half a byte a block stays.
const (
	// runBlocks is how many blocks are packed together.
	runBlocks = 256
	// nodeBlocksMax is how many blocks of all shards of a node may wait before the
	// oldest are packed, shardBlocks how many of each in any case. What is stored
	// and retained is not packed while little waits: its marks would be written.
	nodeBlocksMax = 1 << 17
	shardBlocks   = 4 * runBlocks
	// shardRuns is how many runs of a shard stay in memory, packed.
	shardRuns = 32
)

// run is a number of blocks of which nothing but the bookkeeping is in memory. It
// does not change, so that whoever has it reads it without a lock.
type run struct {
	first, last uint64 // index
	count       int
	rows        [telemetry.Lanes]uint64
	packed      []byte          // nil: in book
	book        *spillFile      // where packed is
	at          int64           // ... in it
	size        int             // ... and its length
	marks       *spillFile      // of all that have any
	data        *spillFile      // of all that are pinned
	plain       []*pendingBlock // instead of packed: some keep their data
}

// newRun packs blocks that are cold.
func newRun(blocks []*pendingBlock) *run {
	r := &run{first: blocks[0].index, last: blocks[len(blocks)-1].index, count: len(blocks)}
	plain := false
	for _, b := range blocks {
		for lane, n := range b.rows {
			r.rows[lane] += uint64(n)
		}
		plain = plain || b.data != nil || !r.shares(&r.marks, b.spilled) || !r.shares(&r.data, b.parked)
	}
	if plain {
		r.plain = slices.Clone(blocks)
		return r
	}
	index, marksEnd := r.first, int64(0)
	for _, b := range blocks {
		flags := uint64(0)
		if b.spilled != nil {
			flags |= packedMarks
		}
		if b.parked != nil {
			flags |= packedData
		}
		if b.pinned {
			flags |= packedPinned
		}
		r.packed = wire.AppendUint(r.packed, flags)
		r.packed = wire.AppendUint(r.packed, b.index-index)
		r.packed = wire.AppendUint(r.packed, b.term)
		for lane := range b.rows {
			r.packed = wire.AppendUint(r.packed, uint64(b.messages[lane]))
			r.packed = wire.AppendUint(r.packed, uint64(b.rows[lane]))
		}
		if b.spilled != nil {
			r.packed = wire.AppendInt(r.packed, b.offset-marksEnd)
			r.packed = wire.AppendUint(r.packed, uint64(b.readings))
			marksEnd = b.offset + int64(b.readings)*markBytes
		}
		if b.parked != nil {
			r.packed = wire.AppendInt(r.packed, b.at-marksEnd)
			r.packed = wire.AppendUint(r.packed, uint64(b.size))
			marksEnd = b.at + int64(b.size)
		}
		index = b.index
	}
	r.packed = slices.Clip(r.packed)
	return r
}

// The flags of a packed block.
const (
	packedMarks = 1 << iota
	packedData
	packedPinned
)

// shares makes file the one of the run, which has one of a kind.
func (r *run) shares(of **spillFile, file *spillFile) bool {
	if *of == nil {
		*of = file
	}
	return file == nil || *of == file
}

// onDisk is the same run with its bookkeeping in a file.
func (r *run) onDisk(book *spillFile, at int64) *run {
	light := *r
	light.book, light.at, light.size, light.packed = book, at, len(r.packed), nil
	return &light
}

// bytes is what is packed. A file that this process wrote and cannot read back
// leaves nobody who knows what waits: nothing but a restart, which learns it from
// the log, is right then.
func (r *run) bytes() []byte {
	if r.book == nil {
		return r.packed
	}
	b := make([]byte, r.size)
	if _, err := r.book.ReadAt(b, r.at); err != nil {
		panic(fmt.Sprintf("shard: read what is known of the waiting blocks %d to %d: %v", r.first, r.last, err))
	}
	return b
}

// all yields the blocks.
func (r *run) all(yield func(*pendingBlock) bool) bool {
	for _, b := range r.plain {
		if !yield(b) {
			return false
		}
	}
	index, marksEnd := r.first, int64(0)
	for w := wire.NewReader(r.bytes()); w.Len() > 0; {
		flags := w.Uint()
		index += w.Uint()
		b := &pendingBlock{index: index, term: w.Uint(), pinned: flags&packedPinned != 0}
		for lane := range b.rows {
			b.messages[lane], b.rows[lane] = uint32(w.Uint()), uint32(w.Uint())
		}
		if flags&packedMarks != 0 {
			b.spilled, b.offset, b.readings = r.marks, marksEnd+w.Int(), int(w.Uint())
			marksEnd = b.offset + int64(b.readings)*markBytes
		}
		if flags&packedData != 0 {
			b.parked, b.at, b.size = r.data, marksEnd+w.Int(), int(w.Uint())
			marksEnd = b.at + int64(b.size)
		}
		if !yield(b) {
			return false
		}
	}
	return true
}

// blockRange are the blocks with from < index <= to, runs first.
type blockRange struct {
	from, to uint64
	runs     []*run
	blocks   []*pendingBlock
}

// all yields the blocks in their order. Those that are packed are made anew for
// every reader.
func (r blockRange) all() iter.Seq[*pendingBlock] {
	return func(yield func(*pendingBlock) bool) {
		within := func(b *pendingBlock) bool {
			return b.index <= r.from || b.index <= r.to && yield(b)
		}
		for _, run := range r.runs {
			if !run.all(within) {
				return
			}
		}
		for _, b := range r.blocks {
			if !yield(b) {
				return
			}
		}
	}
}

// clone is a range that may be read without the machine's lock, the bytes and
// marks of its blocks aside.
func (r blockRange) clone() blockRange {
	r.runs, r.blocks = slices.Clone(r.runs), slices.Clone(r.blocks)
	return r
}

// between returns the blocks with from < index <= to that are still here.
func (p *pending) between(from, to uint64) blockRange {
	if from = max(from, p.kept); to <= from {
		return blockRange{}
	}
	first := sort.Search(len(p.cold), func(i int) bool { return p.cold[i].last > from })
	behind := sort.Search(len(p.cold), func(i int) bool { return p.cold[i].first > to })
	return blockRange{from, to, p.cold[first:max(first, behind)], p.blocks[p.after(from):p.after(to)]}
}

// pack moves blocks of which memory has nothing but the bookkeeping into runs.
func (p *pending) pack() {
	n := 0
	for ; n < len(p.blocks); n++ {
		if b := p.blocks[n]; b.marks != nil || b.data != nil && !b.pinned {
			break
		}
	}
	n -= n % runBlocks
	for chunk := range slices.Chunk(p.blocks[:n], runBlocks) {
		p.cold = append(p.cold, newRun(chunk))
	}
	p.shift(n)
}

// heavy are the oldest runs that are in memory and should not be.
func (p *pending) heavy() []*run {
	return slices.Clone(p.cold[min(p.booked, len(p.cold)):max(p.booked, len(p.cold)-shardRuns)])
}

// lighten puts a run in the place of the next heavy one, unless that has gone
// meanwhile.
func (p *pending) lighten(heavy, light *run) {
	if p.booked < len(p.cold) && p.cold[p.booked] == heavy {
		p.cold[p.booked] = light
		p.booked++
	}
}

// shift takes the first blocks out of the list.
func (p *pending) shift(n int) {
	p.forgotten, p.spilled = max(0, p.forgotten-n), max(0, p.spilled-n)
	p.blocks = slices.Delete(p.blocks, 0, n)
}

// crowded is the index behind which at most about n stored blocks are; 0 when
// there are no more than that.
func (p *pending) crowded(n int) uint64 {
	stored := p.after(p.durable)
	if stored > n {
		return p.blocks[stored-n-1].index
	}
	for i := len(p.cold) - 1; i >= 0; i-- {
		if r := p.cold[i]; r.last <= p.durable {
			if stored += r.count; stored > n {
				return r.last
			}
		}
	}
	return 0
}
