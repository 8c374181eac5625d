package shard

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/wal"
)

// The traps of installing snapshots with hashicorp/raft 1.8.0, on real logs,
// sockets and replicas.

// survivorsGoOn publishes until the logs of all other nodes begin behind entry
// last, so that a node that has no more than that needs a snapshot.
func (c *testCluster) survivorsGoOn(p *publisher, down *testNode, last uint64) {
	eventually(c.t, "the survivors' logs begin behind the dead node's", func() bool {
		p.publish(20)
		for _, n := range c.nodes {
			if n == down {
				continue
			}
			if first, _ := n.log.Group(GroupOf(p.id)).FirstIndex(); first <= last+1 {
				return false
			}
		}
		return true
	})
}

// TestDivergentFollowerWithALongerLogAcceptsAppendsAfterASnapshot is
// hashicorp/raft#697: a deposed leader comes back with entries of its own that
// nobody else has, more than the snapshot covers. Raft empties its log and goes
// on with the end of it that it remembers; it would refuse every append.
func TestDivergentFollowerWithALongerLogAcceptsAppendsAfterASnapshot(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	p.publish(20)
	p.check(c.nodes[1])
	down := c.leader(0)
	if down == nil {
		t.Fatal("nobody leads after publishing")
	}
	down.kill()
	last := down.appendAlone(t, 1)
	p.publish(1)
	c.survivorsGoOn(p, down, last)
	var ahead uint64
	for _, n := range c.nodes {
		if n != down {
			ahead = max(ahead, n.status(0).Applied)
		}
	}
	last = down.appendAlone(t, ahead+5000-last) // far behind where the others will be when it is back
	down.start()
	eventually(t, "the node is installed and has caught up", func() bool {
		st := down.status(0)
		return st.Applied > ahead && st.Applied >= c.mostApplied(down)
	})
	var l raft.Log
	if err := down.log.Group(GroupOf(0)).GetLog(last, &l); err == nil && string(l.Data) == "alone" {
		t.Fatalf("entry %d, which nobody acknowledged, is still there", last)
	}
	for range 5 {
		p.publish(3)
		eventually(t, "the node goes on accepting appends", func() bool { return down.status(0).Applied >= c.mostApplied(down) })
	}
	eventually(t, "it has fetched what it lacks", func() bool { return len(down.files.Missing(0, down.host.Stored()[0])) == 0 })
	p.check(down)
	c.sameDigests(0)
}

// appendAlone adds entries to the log of a node that is down, as a leader does
// that has lost its followers, and returns the last index.
func (n *testNode) appendAlone(t *testing.T, count uint64) uint64 {
	t.Helper()
	log, err := wal.Open(quiet(), nil, wal.Config{Dir: filepath.Join(n.dir, "wal"), Node: n.peer, SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	g := log.Group(GroupOf(0))
	last, err := g.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	var e raft.Log
	if err := g.GetLog(last, &e); err != nil {
		t.Fatal(err)
	}
	for ; count > 0; count -= min(count, 500) {
		var logs []*raft.Log
		for range min(count, 500) {
			last++
			logs = append(logs, &raft.Log{Index: last, Term: e.Term, Type: raft.LogCommand, Data: []byte("alone")})
		}
		if err := g.StoreLogs(logs); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return last
}

func (c *testCluster) mostApplied(except *testNode) (index uint64) {
	for _, n := range c.nodes {
		if n != except {
			index = max(index, n.status(0).Applied)
		}
	}
	return index
}

// TestDuplicateOfASnapshotThatComesLateChangesNothing sends a follower a snapshot
// of what it has long committed. Installed, it would throw away entries that
// count as acknowledged; refused, its sender would send it for ever.
func TestDuplicateOfASnapshotThatComesLateChangesNothing(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	p.publish(30)
	leader := c.leader(0)
	if leader == nil {
		t.Fatal("nobody leads after publishing")
	}
	follower := c.nodes[0]
	if follower == leader {
		follower = c.nodes[1]
	}
	eventually(t, "the follower has everything", func() bool {
		s, _ := follower.host.Shard(0)
		return s.raft.CommitIndex() >= leader.status(0).Applied && follower.status(0).Applied >= leader.status(0).Applied
	})
	g := follower.log.Group(GroupOf(0))
	first, _ := g.FirstIndex()
	last, _ := g.LastIndex()
	applied := follower.status(0).Applied
	ls, _ := leader.host.Shard(0)
	self := []byte(leader.peer)
	for _, index := range []uint64{applied, applied / 2, 1} {
		garbage := bytes.Repeat([]byte("not a snapshot at all"), 100)
		request := &raft.InstallSnapshotRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: self, Addr: self}, SnapshotVersion: 1, Term: ls.raft.CurrentTerm(),
			LastLogIndex: index, LastLogTerm: 1, Size: int64(len(garbage)),
			Configuration: raft.EncodeConfiguration(ls.raft.GetConfiguration().Configuration()), ConfigurationIndex: 1,
		}
		resp := new(raft.InstallSnapshotResponse)
		err := leader.mux.Group(GroupOf(0)).InstallSnapshot("", raft.ServerAddress(follower.peer), request, resp, bytes.NewReader(garbage))
		if err != nil || !resp.Success {
			t.Errorf("duplicate of a snapshot at %d: %+v, %v", index, resp, err)
		}
	}
	if f, _ := g.FirstIndex(); f < first { // it may have been compacted meanwhile
		t.Errorf("the log begins at %d, it did at %d", f, first)
	}
	if l, _ := g.LastIndex(); l < last {
		t.Errorf("the log ends at %d, it did at %d", l, last)
	}
	if st := follower.status(0); st.Applied < applied {
		t.Errorf("%d is applied, %d was", st.Applied, applied)
	}
	p.publish(5)
	eventually(t, "the follower goes on", func() bool { return follower.status(0).Applied >= leader.status(0).Applied })
	p.check(follower)
	c.sameDigests(0)
}

// TestRaftReplaysNothingBeforeItsStateMachineRuns: with RestoreCommittedLogs raft
// 1.8.0 queues the replay before anything takes from the queue, and NewRaft never
// returns once there are more than 128 batches. The log stores the commit index
// all the same (wal.Group.StageCommitIndex).
func TestRaftReplaysNothingBeforeItsStateMachineRuns(t *testing.T) {
	if rc := raftConfig(quiet(), "n0.00000001", Limits{}.withDefaults()); rc.RestoreCommittedLogs {
		t.Error("RestoreCommittedLogs is on")
	}
}
