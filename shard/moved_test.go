package shard

import (
	"errors"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// TestCallsEndWhenAnotherLeaderIsKnown: a call is settled once, by its answer or by the
// word of another leader, and not by the absence of one.
func TestCallsEndWhenAnotherLeaderIsKnown(t *testing.T) {
	leaders := map[telemetry.ShardID]string{1: "a", 2: "a", 3: "a", 4: "a"}
	u := underway{leader: func(id telemetry.ShardID) string { return leaders[id] }, timer: true} // looks when it is told to
	got := map[telemetry.ShardID][]error{}
	answer := map[telemetry.ShardID]func([]byte, error){}
	for id := range leaders {
		answer[id] = u.follow(id, "a", func(_ []byte, err error) { got[id] = append(got[id], err) })
	}
	look := func() {
		u.look()
		u.mu.Lock()
		defer u.mu.Unlock()
		u.timer = true
	}
	answer[1](nil, nil)
	leaders[1], leaders[2], leaders[3] = "b", "b", ""
	look()
	answer[2](nil, nil) // too late
	look()
	for id, want := range map[telemetry.ShardID]error{1: nil, 2: ErrMoved} {
		if len(got[id]) != 1 || !errors.Is(got[id][0], want) {
			t.Errorf("call to shard %d ended with %v, want %v once", id, got[id], want)
		}
	}
	if n := len(got[3]) + len(got[4]); n != 0 {
		t.Errorf("%d calls ended that nobody else is known to lead: %v", n, got)
	}
	leaders[3] = "c"
	look()
	if len(got[3]) != 1 || !errors.Is(got[3][0], ErrMoved) {
		t.Errorf("call to shard 3 ended with %v, want %v", got[3], ErrMoved)
	}
	answer[4](nil, nil)
}

// TestABatchGoesToTheNextLeaderAndIsAppliedOnce: the leader has applied it, its answer
// never comes although the connection is well, and another node takes over.
func TestABatchGoesToTheNextLeaderAndIsAppliedOnce(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	var old *testNode
	eventually(t, "there is a leader", func() bool { old = c.leader(0); return old != nil })
	applied := make(chan []byte, 100)
	old.mux.Handle(frameTestSession, func(_ string, group uint32, b []byte, _ func([]byte, error)) {
		old.host.AcceptSession(group, b, func(answer []byte) { applied <- answer })
	})
	var from *testNode
	for _, n := range c.nodes {
		if n != old {
			from = n
		}
	}
	eventually(t, "the leader is known", func() bool { return from.router.Leader(0) == old.peer })
	connect := session.Connect{Client: "c", Durable: true, Node: from.peer, NodeEpoch: 1, Expiry: 3600e6, QueueMax: 10, QueueBytes: 1000}
	batch := session.AppendBatch(nil, from.peer, 1, 1, [][]byte{connect.Append(nil)})
	type outcome struct {
		answer []byte
		err    error
	}
	submit := func() chan outcome {
		ch := make(chan outcome, 1)
		from.router.Submit(0, batch, func(answer []byte, err error) { ch <- outcome{answer, err} })
		return ch
	}
	first := submit()
	select {
	case <-applied:
	case <-time.After(30 * time.Second):
		t.Fatal("the batch was not applied within 30s")
	}
	eventually(t, "another node leads", func() bool {
		if s, ok := old.host.Shard(0); ok && c.leader(0) == old {
			_ = s.HandOver("") // tried again
		}
		l := c.leader(0)
		return l != nil && l != old
	})
	select {
	case o := <-first:
		if !errors.Is(o.err, ErrMoved) {
			t.Fatalf("the batch ended with %v, want %v", o.err, ErrMoved)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the batch still waits for the old leader after 30s")
	}
	if !from.mux.Connected(old.peer) {
		t.Log("the connection to the old leader broke, which ended the call anyway")
	}
	var answer []byte
	eventually(t, "the next leader answers", func() bool {
		select {
		case o := <-submit():
			answer = o.answer
			return o.err == nil
		case <-time.After(5 * time.Second):
			return false // back at the old leader
		}
	})
	list, err := session.DecodeAnswers(answer)
	if err != nil || len(list) != 1 || list[0].Status != session.StatusOK {
		t.Fatalf("answer %v, %v", list, err)
	}
	got, err := session.DecodeConnected(list[0].Body)
	if err != nil || got.Present {
		t.Errorf("the session was there when it was made: %+v, %v: the batch was applied twice", got, err)
	}
}
