package wal

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// TestRealFilesAreWhatTheFormatSays goes through the operator's view on the
// machine's own file system.
func TestRealFilesAreWhatTheFormatSays(t *testing.T) {
	node := t.TempDir()
	cfg := Config{Dir: filepath.Join(node, "wal"), Node: "n0.5f3a9c1e", Cluster: "c1", SegmentBytes: 1 << 20, ScrubBytesPerSecond: 1 << 30}
	reg := prometheus.NewRegistry()
	l, err := Open(quiet, reg, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(quiet, reg, Config{Dir: t.TempDir()}); err == nil {
		t.Error("two logs share a registry")
	}
	g := l.Group(4)
	mustStore(t, g, entries(4, 1, 1500, 3, 1000))
	if n := g.BytesSince(1400); n < 100*1000 || n > 110*1100 {
		t.Errorf("bytes since 1400: %d, want a little more than 100,000", n)
	}
	for _, i := range []uint64{1500, math.MaxUint64} {
		if n := g.BytesSince(i); n != 0 {
			t.Errorf("bytes since %d: %d", i, n)
		}
	}
	if _, err := Verify(node); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("verify of a log in use: %v, want ErrLocked", err)
	}
	waitFor(t, func() bool { // the scrubber has been through
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "sluice_wal_scrubbed_bytes_total" {
				return f.GetMetric()[0].GetCounter().GetValue() > 0
			}
		}
		t.Fatal("no counter of the scrubber")
		return false
	})
	mustClose(t, l)
	for _, dir := range []string{node, cfg.Dir} {
		rep, err := Verify(dir)
		if err != nil || rep.Entries != 1500 || rep.Node != cfg.Node || len(rep.Damage) != 0 {
			t.Errorf("verify %s: %+v, %v", dir, rep, err)
		}
	}
	st, err := Stat(node)
	if err != nil || len(st.Groups) != 1 || st.Groups[0].Last != 1500 || st.Segments[0].State != "sealed" {
		t.Errorf("stat: %+v, %v", st, err)
	}
	var out bytes.Buffer
	id := uint32(4)
	if err := Dump(&out, node, Filter{Group: &id, From: 7, To: 8, Data: true}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n != 2 || !strings.Contains(out.String(), "entry 8 term 3 LogCommand 1000 bytes") {
		t.Errorf("dump of two entries has %d lines:\n%.300s", n, out.String())
	}
	info, err := os.Stat(filepath.Join(cfg.Dir, segmentName(1)))
	if err != nil || info.Size() != 1<<20 || info.Mode().Perm() != 0o600 {
		t.Errorf("segment file %+v, %v", info, err)
	}
}

// TestSegmentSizeMayChange reopens with larger and smaller segments.
func TestSegmentSizeMayChange(t *testing.T) {
	fs := vfs.NewMem()
	next := uint64(1)
	for _, size := range []int64{16 << 10, 64 << 10, 8 << 10, 32 << 10} {
		cfg := memConfig(fs)
		cfg.SegmentBytes = size
		l := mustOpen(t, cfg)
		mustStore(t, l.Group(1), entries(1, next, next+99, 1, int(size/8)))
		next += 100
		if last, _ := l.Group(1).LastIndex(); last != next-1 {
			t.Errorf("last %d, want %d", last, next-1)
		}
		mustClose(t, l)
		if rep, err := verify(fs, "wal"); err != nil || rep.Entries != int64(next-1) {
			t.Errorf("verify: %+v, %v", rep.Entries, err)
		}
	}
}

func TestConfigReportsEveryProblem(t *testing.T) {
	cfg := Config{SegmentBytes: 5000, Node: strings.Repeat("x", 200), CacheBytes: -1, Linger: time.Second, SpareSegments: -1}
	err := cfg.Validate()
	for _, word := range []string{"Dir", "SegmentBytes", "Node", "CacheBytes", "Linger", "SpareSegments"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not mention %s", err, word)
		}
	}
}

// TestIndexAgreesWithAMap compares the index with the simplest thing.
func TestIndexAgreesWithAMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		x := index{group: 7, shelf: testShelf(rt)}
		m := map[uint64]location{}
		var first, last, end uint64
		next := func() location { // the end of the log, where all groups write
			loc := location{segment: uint32(1 + end>>18), offset: uint32(end % (1 << 18)), size: uint32(1 + end*31%5000)}
			end += uint64(loc.size) + end*17%30_000
			return loc
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			if last == 0 {
				first = uint64(rapid.IntRange(1, 3000).Draw(rt, "first"))
				last = first
			}
			switch rapid.IntRange(0, 6).Draw(rt, "kind") {
			case 0, 1:
				last += uint64(rapid.IntRange(0, 3000).Draw(rt, "more"))
			case 2:
				last = first + uint64(rapid.IntRange(0, int(last-first)).Draw(rt, "cut"))
			case 3:
				first += uint64(rapid.IntRange(0, int(last-first)).Draw(rt, "drop"))
			case 4:
				first, last = 0, 0
			case 5, 6:
				shelveAll(rt, &x, rapid.IntRange(0, 2).Draw(rt, "keep"))
			}
			dropped := map[uint32]int64{} // bytes by segment
			x.resize(first, last, func(loc location) { dropped[loc.segment] += int64(loc.size) })
			for i, loc := range m {
				if last == 0 || i < first || i > last {
					delete(m, i)
					if dropped[loc.segment] -= int64(loc.size); dropped[loc.segment] == 0 {
						delete(dropped, loc.segment)
					}
				}
			}
			if len(dropped) != 0 {
				rt.Fatalf("dropped more or less than there was, bytes by segment: %v", dropped)
			}
			if x.err != nil {
				rt.Fatal(x.err)
			}
			for i := first; i <= last && last != 0; i++ {
				if _, ok := m[i]; !ok {
					m[i] = next()
					x.set(i, m[i])
				}
			}
			for n := rapid.IntRange(0, 3).Draw(rt, "moved"); n > 0 && last > 0; n-- { // by the janitor
				i := first + uint64(rapid.IntRange(0, int(last-first)).Draw(rt, "which"))
				loc := next()
				if old := x.set(i, loc); old != m[i] {
					rt.Fatalf("entry %d was at %v, want %v", i, old, m[i])
				}
				m[i] = loc
			}
			if i, ok := x.hole(); ok {
				rt.Fatalf("entry %d is in no segment", i)
			}
			from := uint64(rapid.IntRange(0, 5000).Draw(rt, "from"))
			var want int64
			for i, loc := range m {
				if got := x.at(rt, i); got != loc {
					rt.Fatalf("entry %d is at %v, want %v", i, got, loc)
				}
				if i >= from {
					want += int64(loc.size)
				}
			}
			if got := x.sumFrom(rt, from); got != want {
				rt.Fatalf("bytes from %d of %d..%d: %d, want %d", from, first, last, got, want)
			}
		}
	})
}

// TestIndexTakesFewBytesPerEntry is the log of a shard that has waited for its
// database for long, with other shards' entries between its own.
func TestIndexTakesFewBytesPerEntry(t *testing.T) {
	const entries = 200_000
	rng := rand.New(rand.NewPCG(1, 2))
	var x index
	end := uint64(0)
	for i := uint64(1); i <= entries; i++ {
		x.resize(1, i, func(location) { t.Error("an entry was dropped") })
		size := uint32(200 + rng.IntN(200))
		x.set(i, location{segment: uint32(1 + end>>26), offset: uint32(end % (1 << 26)), size: size})
		end += uint64(size) + rng.Uint64N(48*300)
	}
	packed := float64(x.memory()) / entries
	shelveAll(t, &x, 2)
	whole := float64(x.memory()) / entries
	old := 0
	for _, s := range x.slabs {
		if s.shelved != nil {
			old += int(unsafe.Sizeof(s)+unsafe.Sizeof(*s)+unsafe.Sizeof(*s.shelved)) + cap(s.shelved.spans)*int(unsafe.Sizeof(span{}))
		}
	}
	per := float64(old) / float64(len(x.slabs)-2) / slabEntries
	t.Logf("%.1f bytes for an entry in memory; %.3f on the shelf, %.2f of all when the newest 8,192 are in memory", packed, per, whole)
	if packed > 7 || per > 0.06 {
		t.Errorf("%.1f and %.3f bytes for an entry, want at most 7 in memory and 0.06 on the shelf", packed, per)
	}
}

// memory is what the index takes.
func (x *index) memory() (n int) {
	for _, s := range x.slabs {
		n += int(unsafe.Sizeof(s) + unsafe.Sizeof(*s))
		if s.shelved != nil {
			n += int(unsafe.Sizeof(*s.shelved)) + cap(s.shelved.spans)*int(unsafe.Sizeof(span{}))
			continue
		}
		n += int(unsafe.Sizeof(*s.chunks))
		for _, c := range s.chunks {
			if c == nil {
				continue
			}
			n += int(unsafe.Sizeof(*c))
			if c.locs != nil {
				n += int(unsafe.Sizeof(*c.locs))
			} else {
				n += int(unsafe.Sizeof(*c.packed)) + cap(c.packed.bytes)
			}
		}
	}
	return n
}

// testShelf is a shelf in memory.
func testShelf(t rapid.TB) *shelf {
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	mem := vfs.NewMem()
	if err := mem.MkdirAll("d"); err != nil {
		t.Fatal(err)
	}
	return &shelf{fs: mem, dir: "d", metrics: m, lost: func(uint32, *shelved, error) { t.Error("a part of the index was lost") }}
}

// shelveAll puts everything that may be there on the shelf of an index, which gets
// one if it has none.
func shelveAll(t rapid.TB, x *index, keep int) {
	if x.shelf == nil {
		x.shelf = testShelf(t)
	}
	for _, c := range x.candidates(keep, math.MaxInt) {
		sh, err := x.shelf.put(x.group, &c)
		if err != nil {
			t.Fatal(err)
		}
		if sh != nil {
			c.slab.chunks, c.slab.shelved = nil, sh
		}
	}
}

// at is find with what it asks for.
func (x *index) at(t rapid.TB, i uint64) location {
	loc, miss, ok := x.find(i, fetched{})
	if !ok {
		p, err := x.shelf.chunk(x.group, miss)
		if err != nil {
			t.Fatal(err)
		}
		x.warm.put(fetched{miss, p})
		loc, _, _ = x.find(i, fetched{})
	}
	return loc
}

// sumFrom is bytesFrom with what it asks for.
func (x *index) sumFrom(t rapid.TB, from uint64) int64 {
	sum, miss, ok := x.bytesFrom(from, fetched{})
	if !ok {
		p, err := x.shelf.chunk(x.group, miss)
		if err != nil {
			t.Fatal(err)
		}
		if sum, _, ok = x.bytesFrom(from, fetched{miss, p}); !ok {
			t.Fatal("it asks for the same chunk again")
		}
	}
	return sum
}

// TestIndexOpensWithHoles sets entries in any order, as recovery does behind a
// checkpoint, and finds the one that is missing.
func TestIndexOpensWithHoles(t *testing.T) {
	const first, last, missing = 700, 5000, 2345
	var x index
	x.resize(first, last, nil)
	at := func(i uint64) location { return location{segment: 1 + uint32(i)%7, offset: uint32(i) * 8, size: 8} }
	for _, k := range rand.New(rand.NewPCG(1, 2)).Perm(last - first + 1) {
		if i := first + uint64(k); i != missing {
			x.set(i, at(i))
		}
	}
	if i, ok := x.hole(); !ok || i != missing {
		t.Fatalf("entry %d is missing (%v), want %d", i, ok, missing)
	}
	x.set(missing, at(missing))
	if i, ok := x.hole(); ok {
		t.Fatalf("entry %d is missing", i)
	}
	for i := uint64(first); i <= last; i++ {
		if x.get(i) != at(i) {
			t.Fatalf("entry %d is at %v, want %v", i, x.get(i), at(i))
		}
	}
	if got := x.sumFrom(t, 0); got != 8*(last-first+1) {
		t.Errorf("%d bytes", got)
	}
}

func BenchmarkIndexOfOldEntries(b *testing.B) {
	var x index
	for i := uint64(1); i <= 100_000; i++ {
		x.resize(1, i, nil)
		x.set(i, location{segment: 1, offset: uint32(i) * 512, size: 300})
	}
	i := uint64(0)
	for b.Loop() {
		if i++; x.get(1+i*7919%90_000).size != 300 {
			b.Fatal("it is not there")
		}
	}
}
