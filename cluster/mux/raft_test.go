package mux

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func TestEightGroupsReplicateOverOneConnectionPerPair(t *testing.T) {
	const groups, entries = 8, 50
	rc := newRaftCluster(t, 3, groups)
	for g := uint32(1); g <= groups; g++ {
		l := rc.replicas[rc.leader(t, g)][g]
		for e := range entries {
			f := l.Apply(fmt.Appendf(nil, "group %d entry %d", g, e), 5*time.Second)
			if e == entries-1 {
				if err := f.Error(); err != nil {
					t.Fatalf("group %d: %v", g, err)
				}
			}
		}
	}
	for i := range rc.muxes {
		for g := uint32(1); g <= groups; g++ {
			eventually(t, fmt.Sprintf("all entries of group %d on node %d", g, i), func() bool { return rc.replicas[i][g].fsm.has() == entries })
			for e, s := range rc.replicas[i][g].fsm.applied {
				if want := fmt.Sprintf("group %d entry %d", g, e); s != want {
					t.Fatalf("node %d entry %d of group %d: %q, want %q", i, e, g, s, want)
				}
			}
		}
		if n := len(rc.muxes[i].connections()); n != 4 {
			t.Errorf("node %d has %d connections, want one each way with two peers", i, n)
		}
	}
}

func TestPokedFollowerLeadsAtOnce(t *testing.T) {
	rc := newRaftCluster(t, 3, 1)
	l := rc.leader(t, 1)
	if err := rc.replicas[l][1].Apply([]byte("x"), 5*time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	next := (l + 1) % 3
	eventually(t, "the follower to have all entries", func() bool { return rc.replicas[next][1].fsm.has() == 1 })
	start := time.Now()
	if err := rc.muxes[next].Poke(1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the poked follower to lead", func() bool { return rc.replicas[next][1].State() == raft.Leader })
	t.Logf("led after %v", time.Since(start))
	if err := rc.muxes[next].Poke(99); !errors.Is(err, ErrNoGroup) {
		t.Errorf("poke of a group that does not run: %v", err)
	}
}

// lagging makes a cluster of one group whose node 2 is down and, started with an
// empty log, needs a snapshot of size bytes from whichever node leads.
func lagging(t *testing.T, size int, change ...func(*Config)) *raftCluster {
	t.Helper()
	rc := newRaftCluster(t, 3, 1, change...)
	rc.apply(t, "first")
	if err := rc.replicas[2][1].Shutdown().Error(); err != nil {
		t.Fatal(err)
	}
	for done := 0; done < 20; {
		if rc.replicas[rc.leader(t, 1, 2)][1].Apply([]byte("x"), 5*time.Second).Error() == nil {
			done++
		}
	}
	for i := range 2 {
		r := rc.replicas[i][1]
		eventually(t, "all entries on both", func() bool { return r.fsm.has() >= 21 })
		if err := r.ReloadConfig(raft.ReloadableConfig{TrailingLogs: 0, SnapshotInterval: time.Hour, SnapshotThreshold: 1 << 40, HeartbeatTimeout: 2 * time.Second, ElectionTimeout: 2 * time.Second}); err != nil {
			t.Fatal(err)
		}
		r.fsm.size = size
		if err := r.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	return rc
}

// TestHeartbeatsGoOnWhile64MiBAreInstalled has real rafts; how long a heartbeat
// takes meanwhile is what BenchmarkHeartbeat measures.
func TestHeartbeatsGoOnWhile64MiBAreInstalled(t *testing.T) {
	const size = 64 << 20
	rc := lagging(t, size)
	leader := rc.leader(t, 1, 2)
	beats := make(chan time.Duration, 1<<16)
	rc.muxes[2].Group(9).SetHeartbeatHandler(func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil) })
	self := []byte(rc.peers[leader])
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		hb := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: self, Addr: self}, Term: 1}
		for {
			select {
			case <-stop:
				return
			default:
			}
			start := time.Now()
			if err := rc.muxes[leader].Group(9).AppendEntries("", raft.ServerAddress(rc.peers[2]), hb, new(raft.AppendEntriesResponse)); err != nil {
				t.Error(err)
				return
			}
			beats <- time.Since(start)
			time.Sleep(time.Millisecond)
		}
	}()
	start := time.Now()
	rc.replicas[2][1] = startReplica(t, rc.muxes[2], 1, nil)
	eventually(t, "the snapshot to be installed", func() bool {
		f := rc.replicas[2][1].fsm
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.restored == size
	})
	took := time.Since(start)
	close(stop)
	<-ended
	close(beats)
	var worst, sum time.Duration
	n := 0
	for d := range beats {
		worst, sum, n = max(worst, d), sum+d, n+1
	}
	t.Logf("64 MiB in %v, meanwhile %d heartbeats, mean %v, worst %v", took, n, sum/time.Duration(max(n, 1)), worst)
	if n == 0 {
		t.Error("no heartbeat was answered meanwhile")
	}
}

func TestSnapshotRateIsLimited(t *testing.T) {
	rc := lagging(t, 2<<20, func(c *Config) { c.SnapshotBytesPerSecond = 4 << 20 })
	start := time.Now()
	rc.replicas[2][1] = startReplica(t, rc.muxes[2], 1, nil)
	eventually(t, "the snapshot to be installed", func() bool {
		f := rc.replicas[2][1].fsm
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.restored == 2<<20
	})
	if d := time.Since(start); d < 300*time.Millisecond {
		t.Errorf("2 MiB at 4 MiB/s took %v", d)
	}
}

func TestRestartedNodeCatchesUpAtANewAddress(t *testing.T) {
	const groups = 8
	rc := newRaftCluster(t, 3, groups)
	rc.apply(t, "before")
	for g := uint32(1); g <= groups; g++ {
		if err := rc.replicas[2][g].Shutdown().Error(); err != nil {
			t.Fatal(err)
		}
	}
	_ = rc.muxes[2].Close()
	for g := uint32(1); g <= groups; g++ {
		l := rc.replicas[rc.leader(t, g, 2)][g]
		if err := l.Apply([]byte("while it was away"), 5*time.Second).Error(); err != nil {
			t.Fatal(err)
		}
	}
	rc.muxes[2] = newTestMux(t, rc.dir, rc.peers[2])
	for g := uint32(1); g <= groups; g++ {
		rc.replicas[2][g] = startReplica(t, rc.muxes[2], g, rc.replicas[2][g])
	}
	for g := uint32(1); g <= groups; g++ {
		eventually(t, "the restarted node to have all entries", func() bool { return rc.replicas[2][g].fsm.has() == 2 })
	}
}

// TestReplicaThatAbstainsIsNotHeardInElections: neither of the two that are left is
// elected while one of them abstains, whichever stands, and raft is told nothing.
func TestReplicaThatAbstainsIsNotHeardInElections(t *testing.T) {
	rc := newRaftCluster(t, 3, 1)
	rc.apply(t, "first")
	l := rc.leader(t, 1)
	silent, other := (l+1)%3, (l+2)%3
	for _, i := range []int{silent, other} {
		eventually(t, "all entries", func() bool { return rc.replicas[i][1].fsm.has() == 1 })
	}
	var abstains atomic.Bool
	var asked atomic.Int32
	abstains.Store(true)
	rc.muxes[silent].OnElection(1, func() error {
		if !abstains.Load() {
			return nil
		}
		asked.Add(1)
		return errors.New("abstains")
	})
	if err := rc.muxes[l].Group(1).TimeoutNow("", raft.ServerAddress(rc.peers[silent]), &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: rc.muxes[l].self, Addr: rc.muxes[l].self}}, new(raft.TimeoutNowResponse)); err == nil || err.Error() != "abstains" {
		t.Errorf("hand-over to it: %v", err)
	}
	if err := rc.replicas[l][1].Shutdown().Error(); err != nil {
		t.Fatal(err)
	}
	asked.Store(0)
	eventually(t, "votes are asked for", func() bool {
		for _, i := range []int{silent, other} {
			if rc.replicas[i][1].State() == raft.Leader {
				t.Fatalf("node %d leads", i)
			}
		}
		return asked.Load() >= 4
	})
	abstains.Store(false)
	rc.leader(t, 1, l)
}
