//go:build !race

package mux

import (
	"runtime"
	"testing"
	"time"
)

// What a replica costs with all of raft, at 64 groups on three nodes (DESIGN D3:
// at most 100 KiB and 6 goroutines). The three nodes share this process.
func TestReplicaCostsAtMost100KiBAnd6Goroutines(t *testing.T) {
	const groups, nodes = 64, 3
	usage := func() (goroutines int, bytes uint64) {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return runtime.NumGoroutine(), s.HeapAlloc + s.StackInuse
	}
	g0, b0 := usage()
	rc := newRaftCluster(t, nodes, groups)
	for g := uint32(1); g <= groups; g++ {
		l := rc.replicas[rc.leader(t, g)][g]
		for range 20 {
			if err := l.Apply(make([]byte, 100), 5*time.Second).Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	goroutines, bytes := 0, uint64(0)
	for range 5 {
		time.Sleep(100 * time.Millisecond)
		g, b := usage()
		goroutines, bytes = goroutines+g-g0, bytes+b-b0
	}
	perReplica := float64(goroutines) / 5 / groups / nodes
	kib := float64(bytes) / 5 / 1024 / groups / nodes
	t.Logf("%.2f goroutines and %.1f KiB per replica, raft's own and its in-memory log included", perReplica, kib)
	if perReplica > 6 || kib > 100 {
		t.Errorf("%.2f goroutines and %.1f KiB per replica", perReplica, kib)
	}
}
