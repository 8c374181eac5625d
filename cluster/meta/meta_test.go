package meta_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/cluster/placement"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestInitGivesEveryNodeTheSameState(t *testing.T) {
	ns := newWire().nodes(t, 3)
	initialised(t, ns, 3)
	for _, n := range ns {
		s := n.State()
		if s.ClusterID != "C1" || s.Shards != 24 || len(s.Nodes) != 3 || !placement.ZoneSafe(s.Table, s.PlacementNodes(true)) {
			t.Errorf("%s: cluster %q, %d shards, %d nodes", n.spec.ID, s.ClusterID, s.Shards, len(s.Nodes))
		}
		if !s.Table.Equal(ns[0].State().Table) {
			t.Errorf("%s has another table", n.spec.ID)
		}
	}
}

func TestEmptyNodeNeverBootstrapsByItself(t *testing.T) {
	w := newWire()
	n := w.node(t, spec(0, 1))
	n.tune = func(c *meta.Config) { c.ElectionTimeout, c.CommitTimeout = 100*time.Millisecond, 20*time.Millisecond }
	n.start()
	n.Stand() // not even when told to
	if err := n.WaitReady(within(t, 500*time.Millisecond)); !errors.Is(err, meta.ErrNotInitialized) {
		t.Fatalf("ready with %v", err)
	}
	if l, ms := n.Leader(), n.Members(); l != "" || len(ms) != 0 {
		t.Fatalf("leader %q, members %v", l, ms)
	}
	if err := n.Propose(within(t, 100*time.Millisecond), meta.SetFeature{Level: 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("proposed with %v", err)
	}
}

func TestInitIsRefusedWhereThereIsState(t *testing.T) {
	w := newWire()
	ns := w.nodes(t, 3)
	initialised(t, ns, 3)
	again := meta.InitSpec{Shards: 24, Replicas: 3, Nodes: specs(ns)}
	for _, n := range ns {
		if err := n.Init(within(t, 5*time.Second), again); !errors.Is(err, meta.ErrInitialized) {
			t.Errorf("%s: second init: %v", n.spec.ID, err)
		}
	}
	fresh := w.node(t, spec(3, 0x99))
	fresh.start()
	err := fresh.Init(within(t, 5*time.Second), meta.InitSpec{Shards: 24, Replicas: 3, Nodes: append(specs(ns), fresh.spec)})
	if !errors.Is(err, meta.ErrInitialized) {
		t.Errorf("init with members of another cluster: %v", err)
	}
	if ms := fresh.Members(); len(ms) != 0 {
		t.Errorf("refused init left the members %v", ms)
	}
}

func TestInitSpecIsCheckedAsAWhole(t *testing.T) {
	n := newWire().nodes(t, 1)[0]
	for what, s := range map[string]meta.InitSpec{
		"no shards":       {Replicas: 3, Nodes: []meta.Node{n.spec}},
		"no replicas":     {Shards: 1, Nodes: []meta.Node{n.spec}},
		"not itself":      {Shards: 1, Replicas: 3, Nodes: []meta.Node{spec(1, 1)}},
		"a node twice":    {Shards: 1, Replicas: 3, Nodes: []meta.Node{n.spec, n.spec}},
		"no zone":         {Shards: 1, Replicas: 3, Nodes: []meta.Node{n.spec, {ID: "n1", Incarnation: "00000001"}}},
		"no incarnation":  {Shards: 1, Replicas: 3, Nodes: []meta.Node{n.spec, {ID: "n1", Zone: "b"}}},
		"too many shards": {Shards: 5000, Replicas: 3, Nodes: []meta.Node{n.spec}},
	} {
		if err := n.Init(within(t, time.Second), s); err == nil {
			t.Errorf("init with %s is accepted", what)
		}
	}
	if ms := n.Members(); len(ms) != 0 {
		t.Errorf("refused init left the members %v", ms)
	}
}

func TestAnyNodeProposesAndEveryNodeSees(t *testing.T) {
	ns := newWire().nodes(t, 5)
	initialised(t, ns, 5)
	for i, n := range ns {
		changed := ns[0].Watch()
		if err := n.Propose(within(t, 5*time.Second), meta.SetDraining{Node: ns[i].spec.ID, Draining: true}); err != nil {
			t.Fatalf("%s: %v", n.spec.ID, err)
		}
		select {
		case <-changed:
		case <-time.After(5 * time.Second):
			t.Fatal("watcher was not told")
		}
		for _, o := range ns {
			if err := o.Sync(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			if !o.State().Nodes[n.spec.ID].Draining {
				t.Errorf("%s does not see what %s committed", o.spec.ID, n.spec.ID)
			}
		}
	}
	if err := ns[4].Propose(within(t, 5*time.Second), meta.SetDraining{Node: "n9"}); !errors.Is(err, meta.ErrUnknownNode) {
		t.Errorf("draining a stranger: %v", err)
	}
}

func TestTableChangesOnlyFromTheVersionSeen(t *testing.T) {
	ns := newWire().nodes(t, 3)
	initialised(t, ns, 3)
	ctx := within(t, 10*time.Second)
	s := ns[0].State()
	p := placement.Placement{Replicas: s.Table[5].Replicas[:2], Preferred: s.Table[5].Replicas[1]}
	move := meta.SetPlacement{Expect: s.TableVersion, Shard: 5, Placement: p}
	for range 2 { // a repeat is no conflict
		if err := ns[1].Propose(ctx, move); err != nil {
			t.Fatal(err)
		}
	}
	move.Shard = 6
	if err := ns[2].Propose(ctx, move); !errors.Is(err, meta.ErrVersion) {
		t.Errorf("change from an old version: %v", err)
	}
	if err := ns[2].Propose(ctx, meta.SetTable{Expect: s.TableVersion, Table: s.Table}); !errors.Is(err, meta.ErrVersion) {
		t.Errorf("table from an old version: %v", err)
	}
	if err := ns[0].Sync(ctx); err != nil {
		t.Fatal(err)
	}
	now := ns[0].State()
	if now.TableVersion != s.TableVersion+1 || !now.Table[5].Equal(p) || s.Table[5].Equal(p) {
		t.Errorf("version %d -> %d, shard 5 %v -> %v", s.TableVersion, now.TableVersion, s.Table[5], now.Table[5])
	}
	if err := ns[0].Propose(ctx, meta.SetTable{Expect: now.TableVersion, Table: s.Table}); err != nil {
		t.Error(err)
	}
}

func TestKilledLeaderIsReplacedAndNothingAcknowledgedIsLost(t *testing.T) {
	ns := newWire().nodes(t, 5)
	initialised(t, ns, 5)
	for round := range 2 { // five voters survive two losses
		leader := leaderOf(t, ns)
		if err := leader.Propose(within(t, 5*time.Second), meta.SetFeature{Level: uint32(round + 1)}); err != nil {
			t.Fatal(err)
		}
		gone := leader.spec.Peer()
		leader.stop()
		start := time.Now()
		var alive []*node
		for _, n := range ns {
			if n.Meta != nil {
				alive = append(alive, n)
				n.LeaderDown(gone)
			}
		}
		if err := alive[len(alive)-1].Propose(within(t, 10*time.Second), meta.SetDraining{Node: alive[0].spec.ID, Draining: round == 0}); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: committed %v after the leader was reported down", round, time.Since(start).Round(time.Millisecond))
		for _, n := range alive {
			if err := n.Sync(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			if got := n.State().Feature; got != uint32(round+1) {
				t.Errorf("%s lost the acknowledged level: %d", n.spec.ID, got)
			}
		}
	}
}

func TestFullRestartContinuesAndElectsWithoutWaitingForTimers(t *testing.T) {
	ns := newWire().nodes(t, 3)
	for _, n := range ns {
		// Far longer than the test may take: only standing at once helps.
		n.stop()
		n.tune = func(c *meta.Config) { c.ElectionTimeout = 20 * time.Second }
		n.start()
	}
	initialised(t, ns, 3)
	table := ns[0].State().Table
	first, err := ns[1].NextEpoch(within(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range ns {
		n.stop()
	}
	for _, n := range ns {
		n.start()
	}
	start := time.Now()
	for _, n := range ns {
		if err := n.WaitReady(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		if s := n.State(); !s.Table.Equal(table) || s.ClusterID != "C1" {
			t.Errorf("%s came back with cluster %q and another table", n.spec.ID, s.ClusterID)
		}
	}
	t.Logf("all ready %v after the last start", time.Since(start).Round(time.Millisecond))
	second, err := ns[1].NextEpoch(within(t, 5*time.Second))
	if err != nil || second <= first {
		t.Errorf("epoch %d after %d, %v", second, first, err)
	}
}

func TestMinorityCommitsNothing(t *testing.T) {
	ns := newWire().nodes(t, 3)
	initialised(t, ns, 3)
	ns[1].stop()
	ns[2].stop()
	if err := ns[0].Propose(within(t, 1500*time.Millisecond), meta.SetFeature{Level: 7}); err == nil {
		t.Fatal("a single node of three committed")
	}
	if ns[0].State().Feature != 0 {
		t.Fatal("a single node of three applied")
	}
	ns[1].start()
	if err := ns[0].Propose(within(t, 10*time.Second), meta.SetFeature{Level: 7}); err != nil {
		t.Fatalf("two of three: %v", err)
	}
}

func TestWipedNodeTakesThePlaceOfItsOldSelf(t *testing.T) {
	w := newWire()
	ns := w.nodes(t, 3)
	initialised(t, ns, 3)
	old := ns[2].spec
	ns[2].stop()
	wiped := w.node(t, spec(2, 0xbeef))
	wiped.start()
	if err := wiped.Join(within(t, 20*time.Second), wiped.spec, unexpected(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new incarnation votes instead of the old one", func() bool {
		v := ns[0].Voters()
		return len(v) == 3 && slices.Contains(v, wiped.spec.Peer()) && !slices.Contains(ns[0].Members(), old.Peer())
	})
	if s := wiped.State(); !s.Evicted[old.Peer()] || s.Nodes[old.ID].Peer() != wiped.spec.Peer() {
		t.Errorf("registered %+v, evicted %v", s.Nodes[old.ID], s.Evicted)
	}
	ns[2].start() // the old directory turns up again
	if err := ns[2].Join(within(t, 10*time.Second), old, unexpected(t)); !errors.Is(err, meta.ErrEvicted) {
		t.Errorf("evicted directory: %v", err)
	}
}

func TestIncarnationThatStillRunsIsNotReplaced(t *testing.T) {
	w := newWire()
	ns := w.nodes(t, 3)
	for _, n := range ns {
		n.stop()
		n.alive = func(peer string) bool { return w.runs(peer) }
		n.start()
	}
	initialised(t, ns, 3)
	twin := w.node(t, spec(2, 0xbeef)) // a second process with the node id of a running one
	twin.start()
	told := make(chan error, 64)
	joined := make(chan error, 1)
	go func() { joined <- twin.Join(within(t, 30*time.Second), twin.spec, func(err error) { told <- err }) }()
	if err := <-told; !errors.Is(err, meta.ErrAlive) {
		t.Errorf("told %v, want that the other one runs", err)
	}
	if s := ns[0].State(); s.Nodes["n2"].Peer() != ns[2].spec.Peer() || len(s.Evicted) != 0 {
		t.Errorf("registered %+v, evicted %v", s.Nodes["n2"], s.Evicted)
	}
	ns[2].stop()
	if err := <-joined; err != nil {
		t.Errorf("after the first one has ended: %v", err)
	}
}

// TestWipedNodeWaitsForAQuorum is the case in which its return would help to
// elect somebody who lacks what is committed: it is not let in.
func TestWipedNodeWaitsForAQuorum(t *testing.T) {
	w := newWire()
	ns := w.nodes(t, 3)
	initialised(t, ns, 3)
	ns[0].stop()
	ns[2].stop()
	wiped := w.node(t, spec(2, 0xbeef))
	wiped.start()
	if err := wiped.Join(within(t, 3*time.Second), wiped.spec, unexpected(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with one of three voters left: %v, want a wait", err)
	}
	if wiped.State().Initialized() || len(ns[1].State().Evicted) != 0 || ns[1].IsLeader() {
		t.Errorf("the wiped node has state %v, the survivor leads %v", wiped.State().Initialized(), ns[1].IsLeader())
	}
	ns[0].start()
	if err := wiped.Join(within(t, 30*time.Second), wiped.spec, unexpected(t)); err != nil {
		t.Errorf("with two of three voters back: %v", err)
	}
}

// unexpected is the progress of a Join that nothing should hold up.
func unexpected(t *testing.T) func(error) {
	return func(err error) { t.Errorf("join was held up: %v", err) }
}

func TestMovesAreRecordedCarriedOutAndGivenUp(t *testing.T) {
	ns := newWire().nodes(t, 4)
	if err := ns[0].Init(within(t, 10*time.Second), meta.InitSpec{ClusterID: "C1", Shards: 4, Replicas: 3, Nodes: specs(ns)}); err != nil {
		t.Fatal(err)
	}
	ctx := within(t, 20*time.Second)
	state := func() *meta.State {
		if err := ns[0].Sync(ctx); err != nil {
			t.Fatal(err)
		}
		return ns[0].State()
	}
	p := state().Table[1]
	var to telemetry.NodeID
	for id := range state().Nodes {
		if !p.Has(id) {
			to = id
		}
	}
	m := meta.Move{From: p.Replicas[0], To: to}
	for _, c := range []meta.StartMove{
		{Shard: 1, Move: meta.Move{From: to, To: p.Replicas[0]}}, {Shard: 9, Move: m}, {Shard: 1}, {Shard: 1, Move: meta.Move{To: "n9"}},
	} {
		if err := ns[0].Propose(ctx, c); err == nil {
			t.Errorf("%+v was accepted, the shard is on %v", c, p.Replicas)
		}
	}
	for range 2 { // a repeat is no error
		if err := ns[0].Propose(ctx, meta.StartMove{Shard: 1, Move: m}); err != nil {
			t.Fatal(err)
		}
	}
	if s := state(); !s.Table[1].Equal(p) || slices.Contains(s.Target(1), m.From) || !slices.Contains(s.Target(1), m.To) {
		t.Errorf("table %v, target %v, move %+v", s.Table[1], s.Target(1), m)
	}
	for range 2 {
		if err := ns[0].Propose(ctx, meta.EndMove{Shard: 1, Move: m, Done: true}); err != nil {
			t.Fatal(err)
		}
	}
	if q := state().Table[1]; q.Has(m.From) || !q.Has(m.To) || !q.Has(q.Preferred) || len(state().Moves) != 0 {
		t.Errorf("after the move: %+v, moves %v", q, state().Moves)
	}
	back := meta.Move{From: m.To, To: m.From}
	if err := ns[0].Propose(ctx, meta.StartMove{Shard: 1, Move: back}); err != nil {
		t.Fatal(err)
	}
	if err := ns[0].Propose(ctx, meta.Evict{Peer: state().Nodes[back.To].Peer()}); err != nil {
		t.Fatal(err)
	}
	if s := state(); len(s.Moves) != 0 || !s.Table[1].Has(m.To) {
		t.Errorf("the destination was evicted, but moves are %v and the table has %v", s.Moves, s.Table[1])
	}
}

func TestLateNodesJoinThroughAnyMemberAndFiveVote(t *testing.T) {
	w := newWire()
	ns := w.nodes(t, 3)
	initialised(t, ns, 3)
	for i := 3; i < 8; i++ {
		n := w.node(t, spec(i, 0x10+i))
		n.start()
		if err := n.Join(within(t, 10*time.Second), n.spec, unexpected(t)); err != nil {
			t.Fatal(err)
		}
		if _, ok := n.State().ByPeer(n.spec.Peer()); !ok {
			t.Fatalf("%s joined and does not see itself", n.spec.ID)
		}
		ns = append(ns, n)
	}
	eventually(t, "five voters of eight members", func() bool { return len(ns[0].Voters()) == 5 && len(ns[0].Members()) == 8 })
	moved := ns[7].spec
	moved.MQTT = "127.0.0.1:9999"
	if err := ns[7].Join(within(t, 5*time.Second), moved, unexpected(t)); err != nil { // a restart with another address
		t.Fatal(err)
	}
	if got := ns[7].State().Nodes["n7"].MQTT; got != moved.MQTT {
		t.Errorf("address is still %s", got)
	}
}

func TestSnapshotBringsALateNodeUpToDate(t *testing.T) {
	w := newWire()
	n := w.node(t, spec(0, 0x10))
	n.tune = func(c *meta.Config) { c.TrailingLogs = 1 }
	n.start()
	initialised(t, []*node{n}, 1)
	for i := range 20 {
		if err := n.Propose(within(t, 5*time.Second), meta.SetFeature{Level: uint32(i + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Snapshot(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	late := w.node(t, spec(1, 0x11))
	late.start()
	if err := late.Join(within(t, 10*time.Second), late.spec, unexpected(t)); err != nil {
		t.Fatal(err)
	}
	if !late.KnowsSnapshot(&raft.InstallSnapshotRequest{LastLogIndex: 20}) || late.KnowsSnapshot(&raft.InstallSnapshotRequest{LastLogIndex: 1 << 20}) {
		t.Error("a snapshot of what is committed is taken for a new one, or the other way round")
	}
	if got := late.State().Feature; got != 20 {
		t.Errorf("late node is at level %d", got)
	}
	n.stop()
	n.start() // from snapshot and log
	late.LeaderDown(n.spec.Peer())
	if err := n.WaitReady(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if s := n.State(); s.Feature != 20 || len(s.Nodes) != 2 {
		t.Errorf("restarted with level %d, %d nodes", s.Feature, len(s.Nodes))
	}
}

func TestEpochsAreNeverHandedOutTwice(t *testing.T) {
	ns := newWire().nodes(t, 3)
	initialised(t, ns, 3)
	seen := map[uint64]bool{}
	var last uint64
	for i := range 30 {
		if i == 10 {
			leader := leaderOf(t, ns)
			if leader == ns[2] {
				if err := leader.HandOver(within(t, 5*time.Second)); err != nil {
					t.Fatal(err)
				}
			}
		}
		e, err := ns[2].NextEpoch(within(t, 10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if seen[e] || e <= last {
			t.Fatalf("epoch %d after %d", e, last)
		}
		seen[e], last = true, e
	}
}

func TestHandOverMovesTheLeadership(t *testing.T) {
	ns := newWire().nodes(t, 3)
	initialised(t, ns, 3)
	old := leaderOf(t, ns)
	if err := old.HandOver(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if now := leaderOf(t, ns); now == old {
		t.Errorf("%s still leads", old.spec.ID)
	}
}

func TestLeaderLeavesASlowDisk(t *testing.T) {
	ns := newWire().nodes(t, 3)
	initialised(t, ns, 3)
	old := leaderOf(t, ns)
	others := slices.DeleteFunc(slices.Clone(ns), func(n *node) bool { return n == old })
	others[0].slow.Store(true)
	old.slow.Store(true)
	eventually(t, "the one whose disk is well leads", func() bool { return leaderOf(t, ns) == others[1] })
	if err := old.Propose(within(t, 20*time.Second), meta.SetFeature{Level: 2}); err != nil {
		t.Error(err)
	}
}

func TestEvictedLeaderResignsAndIsRemoved(t *testing.T) {
	ns := newWire().nodes(t, 4)
	initialised(t, ns, 3)
	old := leaderOf(t, ns)
	if err := old.Propose(within(t, 5*time.Second), meta.Evict{Peer: old.spec.Peer()}); err != nil {
		t.Fatal(err)
	}
	other := ns[slices.IndexFunc(ns, func(n *node) bool { return n != old })]
	eventually(t, "three others vote", func() bool {
		return len(other.Voters()) == 3 && !slices.Contains(other.Members(), old.spec.Peer())
	})
	if err := other.Propose(within(t, 5*time.Second), meta.SetFeature{Level: 2}); err != nil {
		t.Error(err)
	}
}

func TestForeignClusterIsNoticed(t *testing.T) {
	w := newWire()
	ns := w.nodes(t, 2)
	ns[1].stop()
	ns[1].tune = func(c *meta.Config) { c.ClusterID = "C0" }
	ns[1].start()
	if err := ns[0].Init(within(t, 5*time.Second), meta.InitSpec{ClusterID: "C1", Shards: 4, Replicas: 3, Nodes: specs(ns)}); err != nil {
		t.Fatal(err)
	}
	if err := ns[1].WaitReady(within(t, 10*time.Second)); !errors.Is(err, meta.ErrOtherCluster) {
		t.Errorf("got %v", err)
	}
	if err := ns[1].Init(within(t, time.Second), meta.InitSpec{Shards: 4, Replicas: 3, Nodes: specs(ns)}); !errors.Is(err, meta.ErrInitialized) {
		t.Errorf("init in a directory of a cluster: %v", err)
	}
}

func TestClosedGroupSaysSo(t *testing.T) {
	n := newWire().nodes(t, 1)[0]
	m := n.Meta
	n.stop()
	ctx := within(t, 5*time.Second)
	if err := m.Propose(ctx, meta.SetFeature{Level: 1}); !errors.Is(err, meta.ErrClosed) {
		t.Errorf("propose: %v", err)
	}
	if err := m.Sync(ctx); !errors.Is(err, meta.ErrClosed) {
		t.Errorf("sync: %v", err)
	}
	if err := m.WaitReady(ctx); !errors.Is(err, meta.ErrClosed) {
		t.Errorf("wait: %v", err)
	}
	m.HandleForward("n1.00000001", nil, func(_ []byte, err error) {
		if !errors.Is(err, meta.ErrClosed) {
			t.Errorf("forward: %v", err)
		}
	})
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
