package node

import (
	"fmt"
	"testing"

	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/cluster/placement"
	"github.com/sluice-iot/sluice/telemetry"
)

// settle carries out what is planned until nothing is, the way the cluster does,
// and returns how many replicas travelled.
func settle(t *testing.T, st *meta.State, leaving map[telemetry.NodeID]bool) (moves int) {
	t.Helper()
	for range 10_000 {
		todo := planMoves(st, leaving)
		if todo.leads != nil {
			st.Table = todo.leads
		}
		busy := map[telemetry.NodeID]int{}
		for _, c := range todo.moves {
			busy[c.From]++
			busy[c.To]++
			st.Moves[c.Shard] = c.Move
			moves++
		}
		for id, n := range busy {
			if id != "" && n > movesPerNode {
				t.Fatalf("%s takes part in %d moves at once", id, n)
			}
		}
		if len(todo.moves) == 0 && todo.leads == nil {
			return moves
		}
		st.Table = st.Table.Clone()
		for id := range st.Moves {
			p := &st.Table[id]
			if p.Replicas = st.Target(id); !p.Has(p.Preferred) {
				p.Preferred = p.Replicas[0]
			}
			delete(st.Moves, id)
		}
	}
	t.Fatal("the table does not settle")
	return 0
}

func clusterOf(zones string) *meta.State {
	st := &meta.State{ClusterID: "C1", Shards: 24, Replicas: 3, Nodes: map[telemetry.NodeID]meta.Node{}, Moves: map[telemetry.ShardID]meta.Move{}}
	for i, z := range zones {
		join(st, i, z)
	}
	st.Table = placement.Seed(st.PlacementNodes(true), st.Shards, st.Replicas)
	return st
}

func join(st *meta.State, i int, zone rune) telemetry.NodeID {
	id := telemetry.NodeID(fmt.Sprintf("n%d", i))
	st.Nodes[id] = meta.Node{ID: id, Incarnation: fmt.Sprintf("%08x", i+1), Zone: telemetry.Zone(zone)}
	return id
}

func TestNewNodeIsGivenItsShareAndDrainTakesItBack(t *testing.T) {
	st := clusterOf("abc")
	id := join(st, 3, 'd')
	if moves := settle(t, st, nil); held(st, id) < 17 || held(st, id) > 19 || moves > 20 {
		t.Errorf("%d moves gave %s %d of 72 replicas", moves, id, held(st, id))
	}
	if !placement.ZoneSafe(st.Table, st.PlacementNodes(true)) {
		t.Error("not zone safe after the join")
	}
	if settle(t, st, map[telemetry.NodeID]bool{id: true}); held(st, id) != 0 {
		t.Errorf("%s keeps %d replicas", id, held(st, id))
	}
	if !placement.ZoneSafe(st.Table, st.PlacementNodes(true)) {
		t.Error("not zone safe after the drain")
	}
}

func TestDrainMovesNothingThatNobodyCanTake(t *testing.T) {
	for name, c := range map[string]struct {
		zones   string
		leaving []telemetry.NodeID
	}{
		"three nodes, three replicas":     {"abc", []telemetry.NodeID{"n1"}},
		"the only node of a third zone":   {"aabc", []telemetry.NodeID{"n2"}},
		"everybody, as at a planned stop": {"abcd", []telemetry.NodeID{"n0", "n1", "n2", "n3"}},
	} {
		st := clusterOf(c.zones)
		leaving := map[telemetry.NodeID]bool{}
		for _, id := range c.leaving {
			leaving[id] = true
		}
		if moves := settle(t, st, leaving); moves != 0 {
			t.Errorf("%s: %d moves", name, moves)
		}
	}
}

func TestReplicasOfAnEvictedNodeMoveOrAreGivenUp(t *testing.T) {
	st := clusterOf("abcd")
	delete(st.Nodes, "n1")
	settle(t, st, nil)
	for i, p := range st.Table {
		if p.Has("n1") || len(p.Replicas) != 3 {
			t.Errorf("shard %d is on %v", i, p.Replicas)
		}
	}
	delete(st.Nodes, "n2")
	settle(t, st, nil)
	for i, p := range st.Table {
		if p.Has("n2") || len(p.Replicas) != 2 {
			t.Errorf("shard %d is on %v", i, p.Replicas)
		}
	}
	join(st, 2, 'c') // comes back as another incarnation
	settle(t, st, nil)
	for i, p := range st.Table {
		if len(p.Replicas) != 3 {
			t.Errorf("shard %d is on %v", i, p.Replicas)
		}
	}
}

func TestOnlyFoundersStartAGroup(t *testing.T) {
	st := clusterOf("abc")
	st.TableVersion = 1
	st.Founders = map[telemetry.NodeID]string{}
	for id, n := range st.Nodes {
		st.Founders[id] = n.Peer()
	}
	n1 := st.Nodes["n1"]
	old := n1.Peer()
	n1.Incarnation = "0000beef"
	st.Nodes["n1"] = n1 // replaced
	if seed := replicasOf(st, n1.Peer())[0].Seed; seed != nil {
		t.Errorf("the new incarnation would start a group with %v", seed)
	}
	for _, self := range []string{st.Nodes["n0"].Peer(), st.Nodes["n2"].Peer()} {
		r := replicasOf(st, self)[0]
		if len(r.Seed) != 3 || r.Seed[1] != old || !r.Here || r.Left {
			t.Errorf("founder %s: %+v, want the founders as seed", self, r)
		}
	}
	if r := replicasOf(st, old)[0]; r.Here || r.Left {
		t.Errorf("a peer that is not registered is told of its place: %+v", r)
	}
}
