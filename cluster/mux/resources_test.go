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
	// Elections and bursts cost more for a moment; what counts is where it settles.
	var perReplica, kib float64
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		g, b := usage()
		perReplica, kib = float64(g-g0)/groups/nodes, (float64(b)-float64(b0))/1024/groups/nodes
		if perReplica <= 6 && kib <= 100 || time.Now().After(deadline) {
			break
		}
	}
	t.Logf("%.2f goroutines and %.1f KiB per replica, raft's own and its in-memory log included", perReplica, kib)
	if perReplica > 6 || kib > 100 {
		t.Errorf("%.2f goroutines and %.1f KiB per replica", perReplica, kib)
	}
}
