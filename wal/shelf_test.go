package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sluice-iot/sluice/internal/vfs"
)

const (
	oldGroups  = 3
	oldEntries = 3*slabEntries + 700
	oldBytes   = 24
	// oldShelved of them are on the shelf in each group: not the newest slab, and
	// not the first, in which there is no entry 0.
	oldShelved = 2 * slabEntries
)

func shelfConfig(fs vfs.FS) Config {
	return Config{Dir: "wal", FS: fs, SegmentBytes: 256 << 10, ScrubBytesPerSecond: -1, CacheBytes: 1, IndexBytes: 1}
}

// storeOld stores entries 1..oldEntries of some groups by turns and shelves what may be.
func storeOld(t testing.TB, l *Log) {
	t.Helper()
	for from := uint64(1); from <= oldEntries; from += 512 {
		for id := range uint32(oldGroups) {
			mustStore(t, l.Group(id), entries(id, from, min(oldEntries, from+511), 1, oldBytes))
		}
	}
	if err := l.janitor.maintain(); err != nil {
		t.Fatal(err)
	}
}

func onShelf(l *Log) int { return int(testutil.ToFloat64(l.metrics.shelved)) }

// readOld reads the entries of a group in an order that fits no cache.
func readOld(t testing.TB, g *Group, from, step uint64) {
	t.Helper()
	var e raft.Log
	for i := from; i <= oldEntries; i += step {
		if err := g.GetLog(i, &e); err != nil {
			t.Fatalf("read entry %d of group %d: %v", i, g.id, err)
		}
		if e.Index != i || !bytes.Equal(e.Data, payload(g.id, i, 1, oldBytes)) {
			t.Fatalf("entry %d of group %d is not what was stored: %v", i, g.id, e)
		}
	}
}

// bytesOld is BytesSince by adding up.
func bytesOld(g *Group, index uint64) (sum int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := max(index+1, g.state.first); i <= g.state.last; i++ {
		sum += int64(g.index.get(i).size)
	}
	return sum
}

// TestOldEntriesAreFoundFromTheShelf goes through the life of entries whose place
// is in a file: read, summed, partly removed, relocated, found again at a restart.
func TestOldEntriesAreFoundFromTheShelf(t *testing.T) {
	for name, encrypt := range map[string]bool{"plain": false, "encrypted": true} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			cfg := shelfConfig(fs)
			cfg.Encrypt, cfg.Keys = encrypt, testKeys
			l := mustOpen(t, cfg)
			storeOld(t, l)
			if n := onShelf(l); n != oldGroups*oldShelved {
				t.Fatalf("the places of %d entries are on the shelf, want %d", n, oldGroups*oldShelved)
			}
			g := l.Group(0)
			readOld(t, g, 1, 1)
			readOld(t, l.Group(1), 5, 611)
			g.SetFloor(2*slabEntries + 100) // a whole slab and a part of the next
			if err := g.DeleteRange(1, 2*slabEntries+100); err != nil {
				t.Fatal(err)
			}
			if n, want := onShelf(l), (oldGroups-1)*oldShelved; n != want {
				t.Errorf("the places of %d entries are on the shelf behind a deletion, want %d", n, want)
			}
			mustClose(t, l)

			l = mustOpen(t, cfg)
			if n, want := onShelf(l), (oldGroups-1)*oldShelved; n != want {
				t.Errorf("the places of %d entries are on the shelf behind recovery, want %d", n, want)
			}
			readOld(t, l.Group(0), 2*slabEntries+101, 13)
			readOld(t, l.Group(1), 1, 13)
			g = l.Group(2)
			for _, since := range []uint64{0, slabEntries + 500, 2*slabEntries + 511, 2 * slabEntries, 3*slabEntries + 20} {
				if got, want := g.BytesSince(since), bytesOld(mustTwin(t, fs, cfg).Group(2), since); got != want {
					t.Errorf("%d bytes since entry %d, want %d", got, since, want)
				}
			}
		})
	}
}

// mustTwin opens a copy of a log.
func mustTwin(t testing.TB, fs *vfs.Mem, cfg Config) *Log {
	t.Helper()
	cfg.FS, cfg.IndexBytes = fs.CrashClone(nil), 1<<30
	return mustOpen(t, cfg)
}

// TestShelvedEntriesAreRelocated: segments that a group hardly uses are rewritten
// although the places of its entries are on the shelf.
func TestShelvedEntriesAreRelocated(t *testing.T) {
	l := mustOpen(t, shelfConfig(vfs.NewMem()))
	storeOld(t, l)
	before := l.Usage().Segments
	l.Press(true)
	for id := range uint32(oldGroups) {
		if g := l.Group(id); id != 1 {
			g.SetFloor(math.MaxUint64)
			if err := g.DeleteRange(1, oldEntries-1); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 3 {
		if err := l.janitor.maintain(); err != nil {
			t.Fatal(err)
		}
	}
	if after := l.Usage().Segments; after >= before {
		t.Fatalf("%d segments before, %d behind the deletion of two thirds of what they hold", before, after)
	}
	if testutil.ToFloat64(l.metrics.relocated) == 0 {
		t.Fatal("nothing was relocated")
	}
	readOld(t, l.Group(1), 1, 1)
	if err := l.janitor.maintain(); err != nil {
		t.Fatal(err)
	}
	if n := onShelf(l); n < slabEntries {
		t.Errorf("the places of %d entries are on the shelf behind the rewrite, want %d at least", n, slabEntries)
	}
	if n := testutil.ToFloat64(l.metrics.indexLost); n != 0 {
		t.Errorf("%v parts of the index were lost", n)
	}
}

// failing makes operations on the files of the shelf fail, or what they read wrong.
func failing(fs *vfs.Mem, kind vfs.OpKind) {
	fs.SetHook(func(op vfs.Op) error {
		if op.Kind == kind && strings.Contains(op.Name, "index-") {
			return errors.New("the disk says no")
		}
		return nil
	})
}

// TestAnIndexThatCannotBeReadIsMadeAgain, by a reader and by the writer.
func TestAnIndexThatCannotBeReadIsMadeAgain(t *testing.T) {
	damage := map[string]func(t *testing.T, fs *vfs.Mem, l *Log){
		"unreadable": func(_ *testing.T, fs *vfs.Mem, _ *Log) { failing(fs, vfs.OpRead) },
		"rotten": func(t *testing.T, _ *vfs.Mem, l *Log) {
			for _, f := range l.shelf.files {
				for slot := range int64(shelfSlots - len(f.free)) {
					for at := slot*slotBytes + 700; at < slot*slotBytes+20_000; at += 2000 {
						if _, err := f.WriteAt([]byte{0x55, 0xaa}, at); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
		},
		"another's": func(t *testing.T, _ *vfs.Mem, l *Log) {
			f := l.shelf.files[0]
			b := make([]byte, slotBytes)
			if _, err := f.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			for slot := range int64(shelfSlots - len(f.free)) {
				if _, err := f.WriteAt(b, slot*slotBytes); err != nil {
					t.Fatal(err)
				}
			}
		},
	}
	for name, wreck := range damage {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			l := mustOpen(t, shelfConfig(fs))
			storeOld(t, l)
			wreck(t, fs, l)
			readOld(t, l.Group(0), 1, 97)
			g := l.Group(1)
			g.mu.Lock()
			for i := uint64(1); i < oldEntries; i += slabEntries / 2 {
				if loc := g.index.get(i); loc.size == 0 || g.index.err != nil { // as the writer does
					t.Errorf("entry %d is at %v: %v", i, loc, g.index.err)
				}
			}
			g.mu.Unlock()
			readOld(t, g, 1, 97)
			if n := testutil.ToFloat64(l.metrics.indexLost); n < 2 {
				t.Errorf("%v parts of the index were made again", n)
			}
			if err := l.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAShelfThatCannotBeWrittenStopsNothing: a disk without room keeps the index in
// memory, and goes on when it has room.
func TestAShelfThatCannotBeWrittenStopsNothing(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpCreate, vfs.OpWrite, vfs.OpRemove} {
		t.Run(kind.String(), func(t *testing.T) {
			fs := vfs.NewMem()
			l := mustOpen(t, shelfConfig(fs))
			failing(fs, kind)
			storeOld(t, l)
			if n := onShelf(l); n != 0 {
				t.Fatalf("the places of %d entries are on the shelf", n)
			}
			readOld(t, l.Group(0), 1, 97)
			fs.SetHook(nil)
			if err := l.janitor.maintain(); err != nil {
				t.Fatal(err)
			}
			if n, want := onShelf(l), oldGroups*oldShelved; n != want {
				t.Errorf("the places of %d entries are on the shelf when it has room, want %d", n, want)
			}
			readOld(t, l.Group(0), 1, 97)
			names, err := fs.List("wal")
			if err != nil {
				t.Fatal(err)
			}
			mustClose(t, l)
			l = mustOpen(t, shelfConfig(fs))
			readOld(t, l.Group(1), 1, 97)
			if after, err := fs.List("wal"); err != nil || strings.Contains(fmt.Sprint(after), "index-") {
				t.Errorf("files of the shelf are left: %v (%v), before %v", after, err, names)
			}
		})
	}
}

// TestShelfAmongReadersAndWriters runs everything at once, for the race detector.
func TestShelfAmongReadersAndWriters(t *testing.T) {
	l := mustOpen(t, shelfConfig(vfs.NewMem()))
	storeOld(t, l)
	var readers, tidy sync.WaitGroup
	done := make(chan struct{})
	tidy.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := l.janitor.maintain(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for id := range uint32(2) {
		g := l.Group(id)
		for n := range uint64(3) {
			readers.Go(func() {
				var e raft.Log
				for i := 1 + 1000*n; i <= oldEntries; i += 37 {
					if err := g.GetLog(i, &e); err != nil && !errors.Is(err, raft.ErrLogNotFound) {
						t.Error(err)
					} else if err == nil && e.Index != i {
						t.Errorf("entry %d has index %d", i, e.Index)
					}
					g.BytesSince(i)
				}
			})
		}
	}
	for cut := uint64(100); cut < oldEntries; cut += 777 {
		g := l.Group(0)
		g.SetFloor(cut)
		if err := g.DeleteRange(1, cut); err != nil {
			t.Error(err)
		}
	}
	readers.Wait()
	close(done)
	tidy.Wait()
	readOld(t, l.Group(1), 1, 1)
	if n := testutil.ToFloat64(l.metrics.indexLost); n != 0 {
		t.Errorf("%v parts of the index were lost", n)
	}
}
