package shard

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// abstentions is how often replicas of a node have kept out of an election.
func (n *testNode) abstentions() float64 { return testutil.ToFloat64(n.host.metrics.abstentions) }

// asksForVote asks a replica for its vote and its pre-vote in the name of another
// node, in a term and with a log that nobody could refuse.
func (n *testNode) asksForVote(of *testNode) (vote, pre error) {
	self := []byte(n.peer)
	h := raft.RPCHeader{ProtocolVersion: 3, ID: self, Addr: self}
	to := raft.ServerAddress(of.peer)
	t := n.mux.Group(GroupOf(0))
	pre = t.RequestPreVote("", to, &raft.RequestPreVoteRequest{RPCHeader: h, Term: 1000, LastLogIndex: 1 << 40, LastLogTerm: 1000}, new(raft.RequestPreVoteResponse))
	vote = t.RequestVote("", to, &raft.RequestVoteRequest{RPCHeader: h, Term: 1000, LastLogIndex: 1 << 40, LastLogTerm: 1000, LeadershipTransfer: true}, new(raft.RequestVoteResponse))
	return vote, pre
}

// twoLeft kills the leader of a group of three, after one of the others has found
// damage. Without that one's vote the third cannot be elected.
func twoLeft(t *testing.T, abstain time.Duration) (c *testCluster, p *publisher, damaged, whole *testNode) {
	c = makeTestCluster(t, 3, 1)
	c.abstain = abstain
	c.start()
	p = c.publisher(0)
	p.publish(5)
	var a *testNode
	eventually(t, "somebody leads", func() bool { a = c.leader(0); return a != nil })
	rest := slices.DeleteFunc(slices.Clone(c.nodes), func(n *testNode) bool { return n == a })
	damaged, whole = rest[0], rest[1]
	damaged.rottenRows.Store(true)
	a.kill()
	return c, p, damaged, whole
}

// TestReplicaWhoseRowsHaveRottedGivesNoVoteUntilTheyAreBack: two of three are left,
// and one of them has damaged rows. Neither is elected: not the whole one, which
// needs the other's vote, and not the damaged one, to which the whole one would
// give its own. With the rows back the shard goes on.
func TestReplicaWhoseRowsHaveRottedGivesNoVoteUntilTheyAreBack(t *testing.T) {
	c, p, damaged, _ := twoLeft(t, time.Hour)
	eventually(t, "votes are withheld", func() bool {
		if l := c.leader(0); l != nil {
			t.Fatalf("%s leads with the vote of a damaged replica", l.peer)
		}
		return damaged.abstentions() >= 5
	})
	if got := testutil.ToFloat64(damaged.host.metrics.abstaining); got != 1 {
		t.Errorf("%v replicas are said to abstain, want 1", got)
	}
	damaged.rottenRows.Store(false)
	p.publish(3)
	p.check(damaged)
}

// TestDamagedReplicaVotesWhereNobodyElseCan: the only other one left cannot lead
// without it, and nobody could repair it. Its log and its vote are whole.
func TestDamagedReplicaVotesWhereNobodyElseCan(t *testing.T) {
	c, p, damaged, whole := twoLeft(t, 100*time.Millisecond)
	whole.rottenRows.Store(true) // both of them: somebody must lead all the same
	p.publish(3)
	eventually(t, "somebody leads", func() bool { return c.leader(0) != nil })
	damaged.rottenRows.Store(false)
	whole.rottenRows.Store(false)
	p.publish(1)
	p.check(damaged)
	p.check(whole)
}

// TestReplicaWithARottenSnapshotGivesNoVoteUntilItIsReplaced: of a running one.
func TestReplicaWithARottenSnapshotGivesNoVoteUntilItIsReplaced(t *testing.T) {
	c := makeTestCluster(t, 3, 1)
	c.abstain = time.Hour
	c.start()
	p := c.publisher(0)
	var n *testNode
	eventually(t, "the leader has a snapshot", func() bool {
		p.publish(1)
		if n = c.leader(0); n == nil {
			return false
		}
		s, ok := n.host.Shard(0)
		return ok && s.snapIndex.Load() > 0
	})
	rotSnapshots(t, n.dir, "state.bin")
	hs := n.host.all()[0]
	damage := &DamageError{Shard: 0, Snapshot: "2-40-1700000000000", Err: os.ErrInvalid}
	if !n.host.noteRotten(hs, damage) {
		t.Fatal("the replica does not run")
	}
	eventually(t, "it does not lead any more", func() bool { return hs.raft.State() != raft.Leader })
	other := c.nodes[0]
	if other == n {
		other = c.nodes[1]
	}
	term := hs.raft.CurrentTerm()
	vote, pre := other.asksForVote(n)
	for what, err := range map[string]error{"vote": vote, "pre-vote": pre} {
		if err == nil || !strings.Contains(err.Error(), errAbstains.Error()) || !strings.Contains(err.Error(), damage.Snapshot) {
			t.Errorf("%s of a replica with a damaged snapshot: %v", what, err)
		}
	}
	if now := hs.raft.CurrentTerm(); now >= 1000 {
		t.Errorf("raft has heard of the vote that was asked for: term %d, it was %d", now, term)
	}
	if !n.host.scrubSnapshots(t.Context()) || len(n.host.Rotten()) != 0 {
		t.Fatalf("not replaced: %v", n.host.Rotten())
	}
	if _, pre = other.asksForVote(n); pre != nil {
		t.Errorf("pre-vote after it was replaced: %v", pre)
	}
	p.publish(3)
	p.check(n)
}
