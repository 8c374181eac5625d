package mux

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/serverid"
)

// everyRequest sends each kind of raft's messages to an incarnation of a peer's
// replica, in a term far ahead, and returns what came of them.
func everyRequest(from *Transport, to string, incarnation uint32) map[string]error {
	const term = 100
	id, target := serverid.Of(to, incarnation), raft.ServerAddress(to)
	h := raft.RPCHeader{ProtocolVersion: 3, ID: from.m.self, Addr: from.m.self}
	out := map[string]error{
		"append": from.AppendEntries(id, target, &raft.AppendEntriesRequest{
			RPCHeader: h, Term: term, Entries: []*raft.Log{{Index: 1, Term: term, Data: []byte("x")}},
		}, new(raft.AppendEntriesResponse)),
		"heartbeat":   from.AppendEntries(id, target, &raft.AppendEntriesRequest{RPCHeader: h, Term: term}, new(raft.AppendEntriesResponse)),
		"pre-vote":    from.RequestPreVote(id, target, &raft.RequestPreVoteRequest{RPCHeader: h, Term: term}, new(raft.RequestPreVoteResponse)),
		"vote":        from.RequestVote(id, target, &raft.RequestVoteRequest{RPCHeader: h, Term: term, LastLogTerm: term}, new(raft.RequestVoteResponse)),
		"timeout now": from.TimeoutNow(id, target, &raft.TimeoutNowRequest{RPCHeader: h}, new(raft.TimeoutNowResponse)),
	}
	s := snapshotOf(from.m, 1, 10, 10)
	s.Term = term
	out["snapshot"] = from.InstallSnapshot(id, target, s, new(raft.InstallSnapshotResponse), strings.NewReader("0123456789"))
	p, err := from.AppendEntriesPipeline(id, target)
	if err != nil {
		out["pipeline"] = err
		return out
	}
	f, err := p.AppendEntries(&raft.AppendEntriesRequest{RPCHeader: h, Term: term, PrevLogEntry: 1}, new(raft.AppendEntriesResponse))
	if err == nil {
		err = f.Error()
	}
	out["pipeline"] = errors.Join(err, p.Close())
	return out
}

// refused reports whether a peer has answered that another incarnation runs there.
func refused(err error) bool {
	return errors.Is(err, ErrNotConnected) && strings.Contains(err.Error(), "another incarnation")
}

func connected(t *testing.T, m *Mux, peer string) {
	t.Helper()
	m.Connect(peer)
	eventually(t, "a connection to "+peer, func() bool { return m.Connected(peer) })
}

// TestMessagesForAnotherIncarnationOfAReplicaNeverReachIt: whatever the group's old
// members still send to the one that was here before, and whatever of it was delayed,
// changes neither term nor vote nor log of the one that is here now.
func TestMessagesForAnotherIncarnationOfAReplicaNeverReachIt(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	r := &replica{fsm: &recorder{}, store: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore()}
	conf := raftConfig(string(serverid.Of(peerID(1), 3)))
	var err error
	if r.Raft, err = raft.NewRaft(conf, r.fsm, r.store, r.store, r.snaps, b.GroupAs(1, 3)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Shutdown().Error() }()
	connected(t, a, peerID(1))
	for _, other := range []uint32{1, 2, 4} {
		for kind, err := range everyRequest(a.Group(1), peerID(1), other) {
			if !refused(err) {
				t.Errorf("%s for incarnation %d: %v", kind, other, err)
			}
		}
	}
	vote, _ := r.store.GetUint64([]byte("LastVoteTerm"))
	if last, _ := r.store.LastIndex(); r.CurrentTerm() != 0 || vote != 0 || last != 0 || r.State() != raft.Follower {
		t.Errorf("they have reached raft: %v in term %d, its vote in %d, its log ends at %d", r.State(), r.CurrentTerm(), vote, last)
	}
	if _, err := a.Group(1).AppendEntriesPipeline(serverid.Of(peerID(2), 3), raft.ServerAddress(peerID(1))); err == nil {
		t.Error("a server id of another peer is taken")
	}
	for kind, err := range everyRequest(a.Group(1), peerID(1), 3) {
		if refused(err) {
			t.Errorf("%s for the one that is here: %v", kind, err)
		}
	}
	if r.CurrentTerm() < 100 {
		t.Errorf("the one that is here is in term %d", r.CurrentTerm())
	}
}

// TestRequestThatWaitedForAnotherIncarnationIsNotItsSuccessors: it came while the one
// before was still open, and raft had not taken it.
func TestRequestThatWaitedForAnotherIncarnationIsNotItsSuccessors(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	old := b.Group(1) // whose raft never comes
	connected(t, a, peerID(1))
	answer := make(chan error, 1)
	go func() {
		h := raft.RPCHeader{ProtocolVersion: 3, ID: a.self, Addr: a.self}
		answer <- a.Group(1).RequestVote(raft.ServerID(peerID(1)), raft.ServerAddress(peerID(1)), &raft.RequestVoteRequest{RPCHeader: h, Term: 2}, new(raft.RequestVoteResponse))
	}()
	eventually(t, "the request to wait for raft", func() bool { return len(old.consumer) == 1 })
	if b.Group(1) != old || b.GroupAs(1, 1) != old {
		t.Fatal("the group was opened again")
	}
	next := b.GroupAs(1, 2)
	select {
	case err := <-answer:
		if err == nil {
			t.Error("the request was answered with success")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the request is not answered")
	}
	if next == old || len(next.consumer) != 0 {
		t.Errorf("%d requests wait for the next one", len(next.consumer))
	}
}
