package shard

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/sluice-iot/sluice/telemetry"
)

// awayStore is a store that can be away.
type awayStore struct {
	testFiles
	away *atomic.Bool
}

var errAway = errors.New("the store is away")

func (s awayStore) Write(ctx context.Context, b *telemetry.Batch) ([16]byte, error) {
	if s.away.Load() {
		return [16]byte{}, errAway
	}
	return s.testFiles.Write(ctx, b)
}

// entries is how many entries a node's log holds of a shard, and the first.
func (n *testNode) entries(id telemetry.ShardID) (count, first uint64) {
	group := n.log.Group(GroupOf(id))
	first, err := group.FirstIndex()
	if err != nil {
		n.c.t.Fatal(err)
	}
	last, err := group.LastIndex()
	if err != nil {
		n.c.t.Fatal(err)
	}
	return last + 1 - first, first
}

// stored waits until every store has what has been acknowledged so far.
func (c *testCluster) stored(id telemetry.ShardID) {
	c.t.Helper()
	applied := c.nodes[0].status(id).Applied
	for _, n := range c.nodes {
		eventually(c.t, n.peer+" stores what is acknowledged", func() bool { return n.status(id).Durable+16 >= applied })
	}
}

// TestLogGrowsWithTheOutageOfTheStoreAndNotWithUptime: a log that is flushed
// stays as short as it is, however many entries have gone through it; while the
// store is away it holds all that the store lacks, through snapshots as well; and
// shrinks again.
func TestLogGrowsWithTheOutageOfTheStoreAndNotWithUptime(t *testing.T) {
	const short, outage = 400, 600 // entries; a snapshot is due after about a hundred, see newTestCluster
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	bounded := func(when string, least uint64) {
		t.Helper()
		eventually(t, when+": every log is short", func() bool {
			p.publish(1) // only what grows is cut
			for _, n := range c.nodes {
				if count, first := n.entries(0); count > short || first+count < least {
					return false
				}
			}
			return true
		})
	}
	p.publish(200)
	bounded("early", 200)
	for range 8 {
		p.publish(100)
		c.stored(0) // the store keeps up
	}
	bounded("after five times as many entries", 1000)
	for _, n := range c.nodes {
		n.away.Store(true)
	}
	p.publish(outage)
	for _, n := range c.nodes {
		st := n.status(0)
		count, first := n.entries(0)
		if first > st.Durable+1 || count < outage/2 {
			t.Fatalf("%s: log begins at %d with %d entries, the store has up to %d", n.peer, first, count, st.Durable)
		}
	}
	leader := c.leader(0)
	if leader == nil {
		t.Fatal("nobody leads")
	}
	s, _ := leader.host.Shard(0)
	if err := s.snapshot(); err != nil {
		t.Fatal(err)
	}
	if _, first := leader.entries(0); first > leader.status(0).Durable+1 {
		t.Fatalf("a snapshot cut the log at %d, the store has up to %d", first, leader.status(0).Durable)
	}
	p.check(leader) // what the store lacks is in the answer
	for _, n := range c.nodes {
		n.away.Store(false)
	}
	bounded("after the outage", 1000+outage)
	for _, n := range c.nodes {
		p.check(n)
	}
	c.sameDigests(0)
}

// TestFollowerInstalledFromASnapshotFlushesWhatItCarries: the log behind the
// snapshot is gone, the stores of the others are away, so the rows that no store
// has yet can only come from the snapshot, through the new leader.
func TestFollowerInstalledFromASnapshotFlushesWhatItCarries(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	p.publish(20)
	var leader *testNode
	eventually(t, "somebody leads", func() bool { leader = c.leader(0); return leader != nil })
	var late *testNode
	for _, n := range c.nodes {
		if n != leader {
			late = n
		}
	}
	count, first := late.entries(0)
	last := first + count + 8 // a flush may be decided before it is gone
	late.kill()
	survivors := func(f func(n *testNode) bool) bool {
		for _, n := range c.nodes {
			if n != late && !f(n) {
				return false
			}
		}
		return true
	}
	eventually(t, "the survivors' logs begin behind the late node's", func() bool {
		p.publish(10)
		return survivors(func(n *testNode) bool { _, first := n.entries(0); return first > last+1 })
	})
	for _, n := range c.nodes {
		n.away.Store(n != late)
	}
	p.publish(40)
	for _, n := range c.nodes {
		if n == late {
			continue
		}
		s, _ := n.host.Shard(0)
		if err := s.snapshot(); err != nil {
			t.Fatal(err)
		}
	}
	late.start()
	carried := 0
	eventually(t, "it is installed from a snapshot with blocks that no store has", func() bool {
		s, ok := late.host.Shard(0)
		if !ok { // it is being opened again after the installation
			return false
		}
		// Until then it stands on a snapshot of its own; 0: its log is empty yet.
		if _, first := late.entries(0); first != 0 && first <= last+1 {
			return false
		}
		s.fsm.mu.Lock()
		defer s.fsm.mu.Unlock()
		carried = 0
		for _, b := range s.fsm.pending.blocks {
			if b.pinned {
				carried++
			}
		}
		return carried > 0 || s.fsm.pending.durable > last && len(s.fsm.pending.blocks) == 0
	})
	t.Logf("%d blocks came with the snapshot", carried)
	prefer := []string{late.peer} // or leadership goes back to a node that decides on no flush while its own store is away
	for _, n := range c.nodes {
		if n != late {
			prefer = append(prefer, n.peer)
		}
	}
	c.place(prefer, nil)
	eventually(t, "it leads", func() bool {
		if l := c.leader(0); l != nil && l != late {
			if ls, ok := l.host.Shard(0); ok {
				_ = ls.HandOver(late.peer) // tried again
			}
		}
		return c.leader(0) == late
	})
	p.publish(1)
	eventually(t, "its store has every row", func() bool {
		st := late.status(0)
		return st.PendingRows == 0 && st.Durable > last && len(late.files.Missing(0, st.Durable)) == 0 && st.Durable+8 >= st.Applied
	})
	p.check(late)
	for _, n := range c.nodes {
		n.away.Store(false)
	}
	for _, n := range c.nodes {
		p.check(n)
	}
	c.sameDigests(0)
}
