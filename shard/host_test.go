package shard

import (
	"context"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/wal"
)

// TestFollowerInstalledFromASnapshotLeadsWithEveryRow kills a node, lets the
// others go on until their logs no longer reach back to what it has, and makes
// it the leader after its return.
func TestFollowerInstalledFromASnapshotLeadsWithEveryRow(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	p.publish(20)
	p.check(c.nodes[1])
	down := c.leader(0)
	if down == nil {
		t.Fatal("nobody leads after publishing")
	}
	last, err := down.log.Group(GroupOf(0)).LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	down.kill()
	p.publish(1)
	t.Logf("acknowledged again %v after the leader's death", time.Since(began))
	var other *testNode
	eventually(t, "the survivors' logs begin behind the dead node's", func() bool {
		p.publish(20)
		for _, n := range c.nodes {
			if n == down {
				continue
			}
			other = n
			if first, _ := n.log.Group(GroupOf(0)).FirstIndex(); first <= last+1 {
				return false
			}
		}
		return true
	})
	p.check(other)
	down.start()
	s, _ := down.host.Shard(0)
	eventually(t, "the node is installed and has caught up", func() bool {
		st, ref := s.Status(false), other.status(0)
		return st.Applied > last && st.Applied >= ref.Applied
	})
	if first, _ := down.log.Group(GroupOf(0)).FirstIndex(); first <= last {
		t.Fatalf("its log begins at %d, so it was not installed from a snapshot", first)
	}
	eventually(t, "it leads", func() bool {
		if l := c.leader(0); l != nil && l != down {
			if ls, ok := l.host.Shard(0); ok {
				_ = ls.HandOver(down.peer) // tried again
			}
		}
		return c.leader(0) == down
	})
	eventually(t, "it has fetched what it lacks", func() bool { return len(down.files.Missing(0, down.host.Stored()[0])) == 0 })
	p.check(down)
	p.publish(5)
	p.check(other)
	c.sameDigests(0)
}

func (n *testNode) status(id telemetry.ShardID) ReplicaStatus {
	s, ok := n.host.Shard(id)
	if !ok {
		return ReplicaStatus{}
	}
	return s.Status(false)
}

func TestRestartOfAllNodesLosesNothingAndIsQuick(t *testing.T) {
	c := newTestCluster(t, 3, 2)
	ps := []*publisher{c.publisher(0), c.publisher(1)}
	for _, p := range ps {
		p.publish(30)
	}
	for _, n := range c.nodes {
		n.kill()
	}
	for _, n := range c.nodes {
		n.start()
	}
	for _, p := range ps {
		p.publish(1)
		for _, n := range c.nodes {
			p.check(n)
		}
	}
	c.sameDigests(0)
	c.sameDigests(1)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	counts, err := c.nodes[0].router.Counts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range ps {
		got := counts[telemetry.ShardID(i)]
		if int(got.Applied) != p.acked || got.Duplicate != 0 || got.Flushed > got.Applied {
			t.Fatalf("shard %d: ledger %+v, want %d applied", i, got, p.acked)
		}
	}
}

func TestDrainedNodeDoesNotGetItsLeadershipsBack(t *testing.T) {
	c := newTestCluster(t, 3, 2)
	p := c.publisher(0)
	p.publish(5)
	preferred := c.nodes[0]
	eventually(t, "the preferred node leads shard 0", func() bool { return c.leader(0) == preferred })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := preferred.host.HandOverAll(ctx); err != nil {
		t.Fatal(err)
	}
	p.publish(5)
	// Its peers do not know that it drains and give it what it prefers at their
	// next turn; it must not keep it.
	time.Sleep(balanceEvery + balanceEvery/2)
	eventually(t, "another node leads", func() bool { l := c.leader(0); return l != nil && l != preferred })
	p.publish(5)
	p.check(c.nodes[2])
}

func TestReplicaOpenedAgainAfterASnapshotGoesOn(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	p.publish(10)
	leader := c.leader(0)
	for _, n := range c.nodes {
		if n == leader {
			continue
		}
		n.host.mu.RLock()
		hs := n.host.shards[0]
		n.host.mu.RUnlock()
		n.host.reopen(hs)
		p.publish(3)
	}
	for _, n := range c.nodes {
		p.check(n)
	}
	c.sameDigests(0)
}

// TestInstallationCutShortIsFinishedAtTheNextStart crashes between the snapshot
// and the end of the log that it replaces.
func TestInstallationCutShortIsFinishedAtTheNextStart(t *testing.T) {
	dir := t.TempDir()
	log, err := wal.Open(quiet(), nil, wal.Config{Dir: filepath.Join(dir, "wal"), SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	}()
	group := log.Group(1)
	files, err := raft.NewFileSnapshotStore(dir, 2, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := files.Create(1, 50, 3, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= 9; i++ {
		if err := group.StoreLog(&raft.Log{Index: i, Term: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := dropReplaced(group, files); err != nil {
		t.Fatal(err)
	}
	if err := group.StoreLog(&raft.Log{Index: 51, Term: 3}); err != nil {
		t.Fatalf("the entry behind the snapshot: %v", err)
	}
	if err := dropReplaced(group, files); err != nil {
		t.Fatal(err)
	}
	if last, _ := group.LastIndex(); last != 51 {
		t.Fatalf("the log ends at %d, want 51: it is not replaced by an older snapshot", last)
	}
}

// A leader whose raft refuses every entry because of a hand-over that does not end
// is opened again, and whoever leads then takes entries.
func TestReplicaWhoseHandOverNeverEndsIsOpenedAgain(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	p.publish(5)
	leader := c.leader(0)
	if leader == nil {
		t.Fatal("nobody leads after publishing")
	}
	s, _ := leader.host.Shard(0)
	s.took(raft.ErrLeadershipTransferInProgress)
	if s.refusing.Load() == nil {
		t.Fatal("a refused entry is not noted")
	}
	s.took(nil)
	if s.refusing.Load() != nil {
		t.Fatal("an entry that was taken does not end it")
	}
	long := time.Now().Add(-2 * handOverMax)
	eventually(t, "the replica is another one", func() bool {
		s.refusing.Store(&long) // again: an entry that is taken meanwhile ends it
		now, ok := leader.host.Shard(0)
		return ok && now != s
	})
	p.publish(20)
	p.check(leader)
	c.sameDigests(0)
}
