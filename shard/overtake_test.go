package shard

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestAReplicaThatIsAheadOvertakesACandidateThatCannotWin: whoever knows no leader and refuses its vote
// stands for election itself, and nobody else does.
func TestAReplicaThatIsAheadOvertakesACandidateThatCannotWin(t *testing.T) {
	for range 20 { // raft's own timer may be faster, where the machine is busy
		c := makeTestCluster(t, 3, 1)
		c.seed = c.peers()
		n := c.nodes[0] // alone: no election has a winner, and nobody is asked
		n.start()
		s := n.host.all()[0]
		ahead, term := s.raft.LastIndex(), s.raft.CurrentTerm()
		stands := func() float64 { return testutil.ToFloat64(n.host.metrics.stands) }
		n.host.overtake(s, raft.RequestVoteRequest{Term: term, LastLogTerm: term, LastLogIndex: ahead})         // no shorter than ours
		n.host.overtake(s, raft.RequestVoteRequest{Term: term, LastLogTerm: term + 1, LastLogIndex: 0})         // a later term
		n.host.overtake(s, raft.RequestVoteRequest{Term: term + 1, LastLogTerm: term, LastLogIndex: ahead - 1}) // of another election
		if got := stands(); got > 0 {
			t.Fatalf("it stood %v times against candidates that could win", got)
		}
		n.host.overtake(s, raft.RequestVoteRequest{Term: term, LastLogTerm: term, LastLogIndex: ahead - 1})
		stood, late := stands() == 1, s.raft.CurrentTerm() != term || s.raft.State() != raft.Follower
		n.kill()
		if stood {
			return
		}
		if !late {
			t.Fatal("it did not stand against a candidate that is behind")
		}
	}
	t.Fatal("raft's own timer was faster in all attempts")
}

// TestTheFirstInLineThatLagsIsOvertaken: a vote that is refused in a real election brings the one that is
// ahead to stand.
func TestTheFirstInLineThatLagsIsOvertaken(t *testing.T) {
	for attempt := range 5 {
		if overtaken(t) {
			return
		}
		t.Logf("attempt %d: raft's own timer was faster, or the first in line had caught up", attempt)
	}
	t.Skip("in no attempt the one that was ahead was asked for its vote before its own timer ran out: the machine is busy")
}

// overtaken lets one of two survivors stand with a log that lags, with nothing but votes to bring the other
// to stand.
func overtaken(t *testing.T) bool {
	c := newTestCluster(t, 3, 1)
	lagging, ahead := c.nodes[1], c.nodes[2]
	p := c.publisher(0)
	p.publish(1)
	if c.leader(0) != c.nodes[0] {
		return false
	}
	lagging.kill()
	p.publish(3)
	ahead.cancel() // it looks after no leaderships any more
	c.nodes[0].kill()
	lagging.start()
	lagging.cancel()
	s := lagging.host.all()[0]
	for end := time.Now().Add(20 * time.Second); !lagging.mux.Connected(ahead.peer) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	before := testutil.ToFloat64(ahead.host.metrics.stands)
	lagging.host.stand(s)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && ahead.host.all()[0].raft.State() != raft.Leader; {
		time.Sleep(time.Millisecond)
	}
	if ahead.host.all()[0].raft.State() != raft.Leader {
		t.Fatal("the replica that is ahead does not lead")
	}
	return testutil.ToFloat64(ahead.host.metrics.stands) == before+1
}
