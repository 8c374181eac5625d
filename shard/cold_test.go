package shard

import (
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/telemetry"
)

// waiting makes a list of blocks as an outage leaves them: what came with a
// snapshot first, its data parked, then blocks whose data is in the log and whose
// marks are in files; some without rows.
func waiting(n, pinned int, intn func(int) int, parked bool) (list []*pendingBlock) {
	marks, park := []*spillFile{{}, {}, {}}, &spillFile{}
	var end, parkEnd int64
	index, file := uint64(0), 0
	for i := range n {
		index += uint64(1 + intn(3))
		b := &pendingBlock{index: index, term: uint64(1 + i/100), pinned: i < pinned}
		for lane := range b.rows {
			b.messages[lane], b.rows[lane] = uint32(intn(300)), uint32(intn(2)*intn(1000))
		}
		if b.allRows() > 0 {
			if intn(300) == 0 {
				file, end = (file+1)%len(marks), int64(intn(1000))
			}
			b.readings = b.allRows() + intn(5)
			b.spilled, b.offset = marks[file], end
			end += int64(b.readings) * markBytes
			switch {
			case b.pinned && parked:
				b.parked, b.at, b.size = park, parkEnd, 100+intn(1000)
				parkEnd += int64(b.size)
			case b.pinned:
				b.data = []byte("a block that came with a snapshot")
			}
		}
		list = append(list, b)
	}
	return list
}

func collect(r blockRange) []*pendingBlock { return slices.Collect(r.all()) }

func same(a, b []*pendingBlock) bool {
	return slices.EqualFunc(a, b, func(x, y *pendingBlock) bool { return reflect.DeepEqual(*x, *y) })
}

// toDisk moves the bookkeeping of the runs to files, as the flusher does.
func toDisk(t require, p *pending, books *spill) {
	t.Helper()
	for _, r := range p.heavy() {
		light := r
		if r.plain == nil {
			book, at, err := books.append(r.last, r.packed)
			if err != nil {
				t.Fatal(err)
			}
			light = r.onDisk(book, at)
		}
		p.lighten(r, light)
	}
}

// require is what testing and rapid have in common.
type require interface {
	Helper()
	Fatal(args ...any)
}

func TestPackedBlocksComeBackAsTheyWere(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		intn := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "n") }
		rng := rand.New(rand.NewPCG(uint64(intn(1<<20)), 1))
		list := waiting(rng.IntN(5*runBlocks)+rng.IntN(8)/7*shardRuns*runBlocks, rng.IntN(2*runBlocks), rng.IntN, rng.IntN(2) == 0)
		want := slices.Clone(list)
		p := pending{retain: true}
		for _, b := range list {
			if err := p.restoreBlock(b); err != nil {
				rt.Fatal(err)
			}
		}
		if hot := 0; len(list) > 0 {
			hot = rng.IntN(len(list) + 1) // from here on everything is in memory
			for _, b := range p.blocks {
				if b.index > list[min(hot, len(list)-1)].index {
					b.marks = make([]mark, 1)
				}
			}
		}
		p.pack()
		books := spill{dir: dir, shared: true}
		defer books.close()
		toDisk(rt, &p, &books)
		if p.newest() > 0 && p.newest() != want[len(want)-1].index {
			rt.Fatalf("the newest is %d, want %d", p.newest(), want[len(want)-1].index)
		}
		last := p.newest()
		rows := p.rows
		for range 20 {
			from, to := uint64(rng.IntN(int(last)+2)), uint64(rng.IntN(int(last)+2))
			var in []*pendingBlock
			for _, b := range want {
				if b.index > max(from, p.kept) && b.index <= to {
					in = append(in, b)
				}
			}
			if got := collect(p.between(from, to).clone()); !same(got, in) {
				rt.Fatalf("%d blocks in (%d, %d], want %d", len(got), from, to, len(in))
			}
			if rng.IntN(4) == 0 { // some are stored and let go
				p.durable = max(p.durable, from)
				p.trim(from)
				books.release(p.kept)
				toDisk(rt, &p, &books)
			}
		}
		if p.rows != rows {
			rt.Fatal("letting go of stored blocks changed what waits")
		}
		for lane := range p.rows {
			before := uint64(0)
			for b := range p.between(0, last).all() {
				before += uint64(b.messages[lane])
			}
			if got, err := p.flushed(telemetry.Lane(lane), last, telemetry.Gap{}); err != nil || got != before {
				rt.Fatalf("%d messages flushed, want %d", got, before)
			}
		}
		p.trim(last)
		if len(p.cold)+len(p.blocks) > 0 {
			rt.Fatalf("%d runs and %d blocks are left of nothing", len(p.cold), len(p.blocks))
		}
	})
}

// TestAWaitingBlockTakesFewBytes is what makes an outage of hours bearable: a
// shard that gets a million blocks of a message each.
func TestAWaitingBlockTakesFewBytes(t *testing.T) {
	const blocks = 100_000
	p, f, books := pending{blocksMax: shardBlocks}, &spillFile{}, spill{dir: t.TempDir(), shared: true}
	defer books.close()
	for i := range uint64(blocks) {
		b := &pendingBlock{index: i + 1, term: 3, data: make([]byte, 100), marks: make([]mark, 4), messages: [telemetry.Lanes]uint32{1}, rows: [telemetry.Lanes]uint32{4}}
		p.add(b)
		for p.surplus(p.spilled) { // as spillMarks does
			s := p.blocks[p.spilled]
			s.spilled, s.offset = f, f.size
			f.size += int64(len(s.marks)) * markBytes
			p.marks -= len(s.marks)
			s.marks = nil
			p.spilled++
		}
		p.pack()
		toDisk(t, &p, &books)
	}
	bytes, count := 0, len(p.blocks)
	for _, r := range p.cold {
		bytes += cap(r.packed) + int(unsafe.Sizeof(*r))
		count += r.count
	}
	if count != blocks || len(p.blocks) > shardBlocks+runBlocks || p.dataBytes > 100*(shardBlocks+1) {
		t.Fatalf("%d blocks, %d of them and %d bytes unpacked", count, len(p.blocks), p.dataBytes)
	}
	if per := float64(bytes) / float64(blocks); per > 2 {
		t.Errorf("%.1f bytes for a waiting block, want at most 2", per)
	} else {
		t.Logf("%.1f bytes for a waiting block, %d unpacked", per, len(p.blocks))
	}
	n := 0
	for b := range p.between(0, math.MaxUint64).all() {
		if n++; b.index != uint64(n) || b.rows[0] != 4 {
			t.Fatalf("block %d is %+v", n, b)
		}
	}
}
