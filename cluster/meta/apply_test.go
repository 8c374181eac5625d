package meta

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/cluster/placement"
	"github.com/sluice-iot/sluice/telemetry"
)

func drawNode(t *rapid.T) Node {
	return Node{
		ID:          telemetry.NodeID(fmt.Sprintf("n%d", rapid.IntRange(0, 5).Draw(t, "id"))),
		Incarnation: fmt.Sprintf("%08x", rapid.IntRange(1, 3).Draw(t, "incarnation")),
		Zone:        telemetry.Zone(rapid.SampledFrom([]string{"a", "b", "c", ""}).Draw(t, "zone")),
		HTTP:        rapid.SampledFrom([]string{"h1", "h2"}).Draw(t, "http"),
	}
}

func drawTable(t *rapid.T, shards uint32) placement.Table {
	var nodes []placement.Node
	for i := range rapid.IntRange(0, 6).Draw(t, "placed nodes") {
		nodes = append(nodes, placement.Node{ID: telemetry.NodeID(fmt.Sprintf("n%d", i)), Zone: telemetry.Zone(rune('a' + i%3))})
	}
	return placement.Seed(nodes, shards, 3)
}

func drawCommand(t *rapid.T) Command {
	peer := func() string { return drawNode(t).Peer() }
	expect := func() uint64 { return rapid.Uint64Range(0, 4).Draw(t, "expect") }
	switch rapid.IntRange(1, 11).Draw(t, "kind") {
	case 1:
		table := drawTable(t, 4)
		return initCluster{ClusterID: rapid.SampledFrom([]string{"", "C1", "C2"}).Draw(t, "cluster"), Shards: 4, Replicas: 3,
			Nodes: rapid.SliceOfN(rapid.Custom(drawNode), 0, 4).Draw(t, "nodes"), Table: table}
	case 2:
		return RegisterNode{Node: drawNode(t)}
	case 3:
		return SetDraining{Node: drawNode(t).ID, Draining: rapid.Bool().Draw(t, "draining")}
	case 4:
		return SetTable{Expect: expect(), Table: drawTable(t, rapid.Uint32Range(3, 4).Draw(t, "shards"))}
	case 5:
		return SetPlacement{Expect: expect(), Shard: telemetry.ShardID(rapid.IntRange(0, 5).Draw(t, "shard")), Placement: drawTable(t, 1)[0]}
	case 6:
		return SetFeature{Level: rapid.Uint32Range(0, 3).Draw(t, "level")}
	case 7:
		return Evict{Peer: peer()}
	case 8:
		return ReplaceNode{Node: drawNode(t), Old: peer()}
	case 9:
		return StartMove{Shard: telemetry.ShardID(rapid.IntRange(0, 5).Draw(t, "shard")), Move: drawMove(t)}
	case 10:
		return EndMove{Shard: telemetry.ShardID(rapid.IntRange(0, 5).Draw(t, "shard")), Move: drawMove(t), Done: rapid.Bool().Draw(t, "done")}
	default:
		return nextEpoch{Peer: peer()}
	}
}

func drawMove(t *rapid.T) Move {
	id := func(name string) telemetry.NodeID {
		return rapid.SampledFrom([]telemetry.NodeID{"", "n0", "n1", "n2", "n3", "n4", "n5"}).Draw(t, name)
	}
	return Move{From: id("from"), To: id("to")}
}

// feed applies a command as a log entry, the way raft does.
func feed(t *rapid.T, f *fsm, c Command) result {
	b, err := encodeCommand(c)
	if err != nil {
		t.Fatal(err)
	}
	return f.Apply(&raft.Log{Type: raft.LogCommand, Data: b}).(result)
}

func TestCommandsAppliedTwiceHaveTheEffectOfOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		once, twice := newFSM(), newFSM()
		for range rapid.IntRange(0, 40).Draw(t, "commands") {
			c := drawCommand(t)
			before, version := *twice.state.Load(), twice.state.Load().Version
			kept, _ := encodeSnapshot(&before)
			r1 := feed(t, once, c)
			r2 := feed(t, twice, c)
			if _, counts := c.(nextEpoch); !counts {
				r2 = feed(t, twice, c)
			}
			if r1.Code != r2.Code {
				t.Fatalf("%+v answers %+v once and %+v the second time", c, r1, r2)
			}
			s := twice.state.Load()
			if r1.Code != codeOK && s.Version != version {
				t.Fatalf("refused %+v (%+v) changed the state", c, r1)
			}
			if now, _ := encodeSnapshot(&before); !bytes.Equal(kept, now) {
				t.Fatalf("%+v wrote into a published state", c)
			}
			checkState(t, s)
		}
		if !reflect.DeepEqual(once.state.Load(), twice.state.Load()) {
			t.Fatalf("once: %+v\ntwice: %+v", once.state.Load(), twice.state.Load())
		}
	})
}

// checkState states what holds for every state that commands lead to.
func checkState(t *rapid.T, s *State) {
	if uint32(len(s.Table)) != s.Shards {
		t.Fatalf("table of %d, %d shards", len(s.Table), s.Shards)
	}
	for id, n := range s.Nodes {
		if id != n.ID || s.Evicted[n.Peer()] {
			t.Fatalf("registered under %q: %+v (evicted: %v)", id, n, s.Evicted)
		}
		if got, ok := s.ByPeer(n.Peer()); !ok || got != n {
			t.Fatalf("%s is found as %+v", n.Peer(), got)
		}
	}
	for shard, p := range s.Table {
		id := telemetry.ShardID(shard)
		if _, moving := s.Moves[id]; len(p.Replicas) > 0 && len(s.Target(id)) == 0 || moving && slices.Equal(s.Target(id), p.Replicas) {
			t.Fatalf("shard %d on %v moves to %v", shard, p.Replicas, s.Target(id))
		}
	}
}

func TestSnapshotKeepsTheStateAndIsCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := newFSM(), newFSM()
		for range rapid.IntRange(0, 30).Draw(t, "commands") {
			feed(t, a, drawCommand(t))
		}
		first, err := encodeSnapshot(a.state.Load())
		if err != nil {
			t.Fatal(err)
		}
		changed := b.watch()
		if err := b.Restore(io.NopCloser(bytes.NewReader(first))); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
		default:
			t.Fatal("restore told no watcher")
		}
		second, err := encodeSnapshot(b.state.Load())
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%v\n%s\n%s", err, first, second)
		}
		if !reflect.DeepEqual(a.state.Load(), b.state.Load()) {
			t.Fatalf("%+v\n%+v", a.state.Load(), b.state.Load())
		}
	})
}

func TestRefusedEntriesChangeNothing(t *testing.T) {
	f := newFSM()
	before := f.state.Load()
	for _, b := range [][]byte{nil, {1}, {2, 1, 0, 0, 0, 0, '{', '}'}, {1, 9, 0, 0, 0, 0, '{', '}'}, {1, 2, 1, 0, 0, 0, '{', '}'}, {1, 2, 0, 0, 0, 0, '{'}} {
		r := f.Apply(&raft.Log{Data: b}).(result)
		if r.Code != codeInvalid || r.err() == nil || f.state.Load() != before {
			t.Errorf("entry %x: %+v", b, r)
		}
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for _, c := range []Command{
		initCluster{ClusterID: "C1", Shards: 1, Replicas: 1, Nodes: []Node{{ID: "n0", Incarnation: "00000001", Zone: "a"}}, Table: placement.Table{{Replicas: []telemetry.NodeID{"n0"}, Preferred: "n0"}}},
		RegisterNode{Node: Node{ID: "n0", Incarnation: "00000001", Zone: "a"}}, SetDraining{Node: "n0", Draining: true},
		SetTable{Expect: 1, Table: placement.Table{}}, SetPlacement{Expect: 1, Shard: 1 << 31}, SetFeature{Level: 1}, Evict{Peer: "n0.00000001"}, nextEpoch{Peer: "n0.00000001"},
		ReplaceNode{Node: Node{ID: "n0", Incarnation: "00000002", Zone: "a"}, Old: "n0.00000001"},
		StartMove{Shard: 1, Move: Move{From: "n0", To: "n1"}}, EndMove{Shard: 1, Move: Move{From: "n0"}, Done: true},
	} {
		b, err := encodeCommand(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add([]byte{1, 4, 0, 0, 0, 0, 'n', 'u', 'l', 'l'})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCommand(b)
		if err != nil {
			return
		}
		for _, s := range []*State{(&State{}).clone(), someState(t)} {
			apply(s, c) // must not panic, whatever it holds
		}
		again, err := encodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeCommand(again); err != nil {
			t.Fatalf("%q decodes to %+v, which does not decode: %v", b, c, err)
		}
	})
}

func someState(t *testing.T) *State {
	n := Node{ID: "n0", Incarnation: "00000001", Zone: "a"}
	s, r := apply((&State{}).clone(), initCluster{ClusterID: "C1", Shards: 2, Replicas: 1, Nodes: []Node{n},
		Table: placement.Seed([]placement.Node{{ID: "n0", Zone: "a"}}, 2, 1)})
	if r.Code != codeOK {
		t.Fatal(r.err())
	}
	return s
}

func FuzzDecodeSnapshot(f *testing.F) {
	b, err := encodeSnapshot((&State{}).clone())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{1, 0, 0, 0, 0, '{', '}'})
	f.Add([]byte{1, 0, 0, 0, 0})
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSnapshot(b)
		if err != nil {
			return
		}
		first, err := encodeSnapshot(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeSnapshot(first)
		if err != nil {
			t.Fatal(err)
		}
		if second, _ := encodeSnapshot(again); !bytes.Equal(first, second) {
			t.Fatalf("%s\n%s", first, second)
		}
	})
}

func TestVotersAreSpreadOddAndSticky(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := map[telemetry.NodeID]Node{}
		zones := map[telemetry.Zone]int{}
		count := rapid.IntRange(0, 12).Draw(t, "nodes")
		spread := rapid.IntRange(1, 5).Draw(t, "zones")
		for i := range count {
			n := Node{ID: telemetry.NodeID(fmt.Sprintf("n%02d", i)), Incarnation: "00000001", Zone: telemetry.Zone(rune('a' + rapid.IntRange(0, spread-1).Draw(t, "zone")))}
			nodes[n.ID] = n
			zones[n.Zone]++
		}
		nobody := func(string) bool { return false }
		chosen := chooseVoters(nodes, nobody, 5)
		want := min(count, 2)
		if count > 2 && len(chosen)%2 == 0 || len(chosen) > 5 || len(chosen) < want {
			t.Fatalf("%d voters of %d nodes", len(chosen), count)
		}
		held, votes := map[telemetry.Zone]int{}, map[string]bool{}
		for _, n := range chosen {
			held[n.Zone]++
			votes[n.Peer()] = true
		}
		if len(votes) != len(chosen) {
			t.Fatalf("a node votes twice: %v", chosen)
		}
		for z, n := range held {
			if len(zones) >= 3 && 2*n > len(chosen) {
				t.Fatalf("zone %s has %d of %d votes, zones %v", z, n, len(chosen), zones)
			}
		}
		same := chooseVoters(maps.Clone(nodes), func(p string) bool { return votes[p] }, 5)
		for _, n := range same {
			if !votes[n.Peer()] {
				t.Fatalf("%s replaces a voter for no reason", n.Peer())
			}
		}
	})
}
