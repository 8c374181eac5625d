package wal

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/vfs"
)

func TestManyWritersLoseNothingInACrash(t *testing.T) { inBothForms(t, manyWritersLoseNothing) }

// manyWritersLoseNothing lets all groups write, read, compact and relocate at once
// while the power goes again and again.
func manyWritersLoseNothing(t *testing.T, config func(vfs.FS) Config) {
	const groups = 6
	fs := vfs.NewMem()
	var acked [groups]atomic.Uint64
	type point struct {
		disk  *vfs.Mem
		acked [groups]uint64
	}
	var mu sync.Mutex
	var points []point
	rng := rand.New(rand.NewPCG(4, 4))
	ops := 0
	fs.SetHook(func(op vfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if ops++; op.Kind == vfs.OpRead || ops%5 != 0 || len(points) == 300 {
			return nil
		}
		var p point
		for i := range acked { // before the clone: what is acknowledged now must be in it
			p.acked[i] = acked[i].Load()
		}
		p.disk = fs.CrashClone(rng)
		points = append(points, p)
		return nil
	})
	cfg := config(fs)
	cfg.CacheBytes = 20_000
	l := mustOpen(t, cfg)
	var wg sync.WaitGroup
	for id := range uint32(groups) {
		wg.Go(func() { churn(t, l, id, &acked[id]) })
	}
	wg.Wait()
	fs.SetHook(nil)
	mustClose(t, l)
	for _, p := range points {
		l := mustOpen(t, config(p.disk))
		for id := range uint32(groups) {
			g := l.Group(id)
			first, last := g.Retained()
			if last < p.acked[id] {
				t.Fatalf("group %d ends at %d, %d was acknowledged", id, last, p.acked[id])
			}
			if last != 0 {
				wantEntries(t, g, first, last, 1, 120)
			}
		}
		mustClose(t, l)
		if _, err := verify(p.disk, "wal", testKeys...); err != nil {
			t.Fatal(err)
		}
	}
}

// churn appends to one group, reads back at random and compacts now and then.
func churn(t *testing.T, l *Log, id uint32, acked *atomic.Uint64) {
	rng := rand.New(rand.NewPCG(uint64(id), 9))
	g := l.Group(id)
	for next := uint64(1); next < 400; {
		n := uint64(1 + rng.IntN(6))
		if err := g.StoreLogs(entries(id, next, next+n-1, 1, 120)); err != nil {
			t.Error(err)
			return
		}
		next += n
		acked.Store(next - 1)
		var e raft.Log
		if i := next - 1 - uint64(rng.IntN(int(min(next-1, 20)))); g.GetLog(i, &e) != nil && i > g.Floor() {
			t.Errorf("entry %d of group %d cannot be read", i, id)
		}
		if rng.IntN(4) == 0 && next > 40 {
			g.SetFloor(next - 30)
			first, _ := g.FirstIndex()
			if err := g.DeleteRange(first, next-20); err != nil {
				t.Error(err)
			}
		}
		if rng.IntN(10) == 0 {
			if err := l.janitor.maintain(); err != nil {
				t.Error(err)
			}
		}
	}
}
