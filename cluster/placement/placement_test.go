package placement_test

import (
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/cluster/placement"
	"github.com/sluice-iot/sluice/telemetry"
)

func cluster(n, zones int) []placement.Node {
	ns := make([]placement.Node, n)
	for i := range ns {
		ns[i] = placement.Node{ID: telemetry.NodeID(fmt.Sprintf("n%d", i)), Zone: telemetry.Zone(rune('a' + i%zones))}
	}
	return ns
}

type figures struct{ max, mean, leadMax, leadMean float64 }

func measure(t placement.Table, nodes []placement.Node) figures {
	load, leads := map[telemetry.NodeID]float64{}, map[telemetry.NodeID]float64{}
	var f figures
	for _, p := range t {
		for _, id := range p.Replicas {
			load[id]++
			f.max = max(f.max, load[id])
			f.mean++
		}
		leads[p.Preferred]++
		f.leadMax = max(f.leadMax, leads[p.Preferred])
	}
	f.mean /= float64(len(nodes))
	f.leadMean = float64(len(t)) / float64(len(nodes))
	return f
}

// check states the invariants of doc.go that hold for any set of nodes.
func check(t interface{ Fatalf(string, ...any) }, table placement.Table, nodes []placement.Node, replicas int) {
	zone, members := map[telemetry.NodeID]telemetry.Zone{}, map[telemetry.Zone]int{}
	for _, n := range nodes {
		zone[n.ID] = n.Zone
		members[n.Zone]++
	}
	want := min(replicas, len(nodes))
	most := 0
	for room := 0; room < want; {
		most++
		room = 0
		for _, n := range members {
			room += min(n, most)
		}
	}
	for s, p := range table {
		seen, zones := map[telemetry.NodeID]bool{}, map[telemetry.Zone]int{}
		for _, id := range p.Replicas {
			z, ok := zone[id]
			if !ok || seen[id] {
				t.Fatalf("shard %d has replica %q twice or on no node: %v of %v", s, id, p, nodes)
			}
			seen[id] = true
			if zones[z]++; zones[z] > most {
				t.Fatalf("shard %d has %d replicas in zone %s, %d suffice: %v of %v", s, zones[z], z, most, p, nodes)
			}
		}
		if len(p.Replicas) != want {
			t.Fatalf("shard %d has %d replicas, want %d: %v of %v", s, len(p.Replicas), want, p, nodes)
		}
		if want > 0 && !p.Has(p.Preferred) {
			t.Fatalf("shard %d prefers %q, no replica of it: %v", s, p.Preferred, p)
		}
	}
	if want == 3 && len(table) > 0 && placement.ZoneSafe(table, nodes) != (len(members) >= 3) {
		t.Fatalf("zone safe is %v with %d zones", placement.ZoneSafe(table, nodes), len(members))
	}
}

// boundedAnywhere states the load bound for any zones: with as many replicas per
// shard and zone as needed (most), no node holds more than LoadBound x the level
// to which all nodes must be filled, found here by bisection; and one for
// rounding a zone's share.
func boundedAnywhere(t interface{ Fatalf(string, ...any) }, table placement.Table, nodes []placement.Node, replicas int) {
	members := map[telemetry.Zone]int{}
	for _, n := range nodes {
		members[n.Zone]++
	}
	want := min(replicas, len(nodes))
	most := 0
	for room := 0; room < want; {
		most++
		room = 0
		for _, n := range members {
			room += min(n, most)
		}
	}
	lo, hi := 0.0, float64(len(table))
	for range 60 {
		level, held := (lo+hi)/2, 0.0
		for _, n := range members {
			held += min(float64(n)*level, float64(min(n, most)*len(table)))
		}
		if held < float64(want*len(table)) {
			lo = level
		} else {
			hi = level
		}
	}
	load := map[telemetry.NodeID]int{}
	for _, p := range table {
		for _, id := range p.Replicas {
			load[id]++
		}
	}
	for _, n := range nodes {
		if limit := math.Ceil(placement.LoadBound*hi-1e-6) + 1; float64(load[n.ID]) > limit {
			t.Fatalf("node %s holds %d replicas, level %.3f, limit %.0f, of zones %v, %d shards, %d replicas", n.ID, load[n.ID], hi, limit, members, len(table), replicas)
		}
	}
}

// bounded states the load bound for three zones that differ by a node at most,
// and three replicas: then no zone is too small for an equal share, except by
// that one node.
func bounded(t interface{ Fatalf(string, ...any) }, table placement.Table, nodes []placement.Node) {
	members := map[telemetry.Zone]int{}
	for _, n := range nodes {
		members[n.Zone]++
	}
	load := map[telemetry.NodeID]int{}
	for _, p := range table {
		for _, id := range p.Replicas {
			load[id]++
		}
	}
	for _, n := range nodes {
		fair := float64(len(table)) / float64(members[n.Zone])
		if float64(load[n.ID]) > math.Ceil(placement.LoadBound*fair) {
			t.Fatalf("node %s holds %d replicas, fair is %.2f of %d nodes, %d shards", n.ID, load[n.ID], fair, len(nodes), len(table))
		}
	}
}

func TestSeedIsZoneSafeAndBoundedAtEverySize(t *testing.T) {
	for _, n := range []int{3, 4, 5, 6, 7, 9, 12, 30, 60, 99} {
		for _, shards := range []uint32{1, 24, 64, 256, 4096} {
			nodes := cluster(n, 3)
			table := placement.Seed(nodes, shards, 3)
			check(t, table, nodes, 3)
			bounded(t, table, nodes)
			f := measure(table, nodes)
			if n%3 == 0 && f.max > math.Ceil(placement.LoadBound*f.mean) {
				t.Errorf("%d nodes, %d shards: max %.0f, mean %.2f", n, shards, f.max, f.mean)
			}
			if n%3 == 0 && f.leadMax > math.Ceil(f.leadMean) {
				t.Errorf("%d nodes, %d shards: a node leads %.0f, mean %.2f", n, shards, f.leadMax, f.leadMean)
			}
		}
	}
}

func TestSeedReplicatesAsManyAsExist(t *testing.T) {
	for n := range 4 {
		nodes := cluster(n, 3)
		table := placement.Seed(nodes, 24, 3)
		if len(table) != 24 {
			t.Fatalf("%d nodes: table of %d shards", n, len(table))
		}
		check(t, table, nodes, 3)
		if got, want := placement.ZoneSafe(table, nodes), n == 3; got != want {
			t.Errorf("%d nodes: zone safe is %v, want %v", n, got, want)
		}
	}
}

func TestJoinMovesNearTheIdeal(t *testing.T) {
	for _, n := range []int{3, 6, 12, 30, 60, 98} {
		for _, zones := range []int{3, 4} {
			before := cluster(n, zones)
			after := cluster(n+1, zones)
			t0 := placement.Seed(before, 4096, 3)
			t1 := placement.Rebalance(t0, after, 3)
			check(t, t1, after, 3)
			joined := after[n]
			got := 0.0
			for _, p := range t1 {
				if p.Has(joined.ID) {
					got++
				}
			}
			moves := float64(placement.Moves(t0, t1))
			t.Logf("%2d nodes in %d zones: join moves %.0f, the joined node holds %.0f (%.2fx), ideal %.0f", n, zones, moves, got, moves/got, 3*4096.0/float64(n+1))
			if moves > 1.19*got+1 {
				t.Errorf("%d nodes in %d zones: %.0f moves for a node that then holds %.0f", n, zones, moves, got)
			}
		}
	}
}

func TestLossMovesNearTheIdeal(t *testing.T) {
	for _, n := range []int{6, 12, 30, 99} {
		before := cluster(n, 3)
		after := append(append([]placement.Node{}, before[:n/2]...), before[n/2+1:]...)
		t0 := placement.Seed(before, 4096, 3)
		t1 := placement.Rebalance(t0, after, 3)
		check(t, t1, after, 3)
		bounded(t, t1, after)
		lost := 0.0
		for _, p := range t0 {
			if p.Has(before[n/2].ID) {
				lost++
			}
		}
		moves := float64(placement.Moves(t0, t1))
		t.Logf("%2d nodes: loss moves %.0f for %.0f lost replicas (%.2fx)", n, moves, lost, moves/lost)
		if moves > 1.19*lost+1 {
			t.Errorf("%d nodes: %.0f moves for %.0f lost replicas", n, moves, lost)
		}
	}
}

func TestRebalanceOfAGoodTableChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 0, 30)
		shards := rapid.Uint32Range(1, 128).Draw(t, "shards")
		replicas := rapid.IntRange(1, 5).Draw(t, "replicas")
		once := placement.Rebalance(placement.Seed(nodes, shards, replicas), nodes, replicas)
		twice := placement.Rebalance(once, nodes, replicas)
		if !once.Equal(twice) {
			t.Fatalf("moved %d replicas again\n%v\n%v", placement.Moves(once, twice), once, twice)
		}
	})
}

func drawNodes(t *rapid.T, least, most int) []placement.Node {
	n := rapid.IntRange(least, most).Draw(t, "nodes")
	zones := rapid.IntRange(1, 5).Draw(t, "zones")
	ns := make([]placement.Node, n)
	for i := range ns {
		z := rapid.IntRange(0, zones-1).Draw(t, "zone")
		ns[i] = placement.Node{ID: telemetry.NodeID(fmt.Sprintf("n%d", i)), Zone: telemetry.Zone(rune('a' + z))}
	}
	return ns
}

func TestSeedHoldsItsInvariantsForAnyZones(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 0, 99)
		shards := rapid.SampledFrom([]uint32{0, 1, 2, 3, 24, 64, 100, 256, 1024}).Draw(t, "shards")
		replicas := rapid.IntRange(1, 5).Draw(t, "replicas")
		table := placement.Seed(nodes, shards, replicas)
		check(t, table, nodes, replicas)
		boundedAnywhere(t, table, nodes, replicas)
		for i, j := 0, len(nodes)-1; i < j; i, j = i+1, j-1 {
			nodes[i], nodes[j] = nodes[j], nodes[i]
		}
		if again := placement.Seed(nodes, shards, replicas); !again.Equal(table) {
			t.Fatalf("the order of nodes changes the table")
		}
	})
}

func TestTableStaysSoundThroughJoinsAndLosses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		next := 0
		var nodes []placement.Node
		join := func() {
			nodes = append(nodes, placement.Node{ID: telemetry.NodeID(fmt.Sprintf("n%d", next)), Zone: telemetry.Zone(rune('a' + len(nodes)%3))})
			next++
		}
		for range rapid.IntRange(1, 12).Draw(t, "nodes") {
			join()
		}
		table := placement.Seed(nodes, rapid.Uint32Range(1, 256).Draw(t, "shards"), 3)
		t.Repeat(map[string]func(*rapid.T){
			"join": func(t *rapid.T) { join(); table = placement.Rebalance(table, nodes, 3) },
			"lose": func(t *rapid.T) {
				if len(nodes) > 1 { // the last to join, so that zones stay even
					nodes = nodes[:len(nodes)-1]
					table = placement.Rebalance(table, nodes, 3)
				}
			},
			"": func(t *rapid.T) {
				check(t, table, nodes, 3)
				if len(nodes) >= 3 {
					bounded(t, table, nodes)
				}
			},
		})
	})
}

func TestTableStaysSoundForAnyChangeOfNodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := placement.Seed(drawNodes(t, 0, 20), rapid.Uint32Range(1, 200).Draw(t, "shards"), rapid.IntRange(1, 4).Draw(t, "replicas"))
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			nodes := drawNodes(t, 0, 20) // others, and the same in other zones
			replicas := rapid.IntRange(1, 4).Draw(t, "replicas")
			next := placement.Rebalance(table, nodes, replicas)
			check(t, next, nodes, replicas)
			boundedAnywhere(t, next, nodes, replicas)
			if again := placement.Rebalance(next, nodes, replicas); !again.Equal(next) {
				t.Fatalf("the second rebalance moves %d more replicas of %d", placement.Moves(next, again), len(next)*replicas)
			}
			table = next
		}
	})
}

func BenchmarkSeed(b *testing.B) {
	nodes := cluster(99, 3)
	for b.Loop() {
		placement.Seed(nodes, 4096, 3)
	}
}

func BenchmarkRebalanceJoin(b *testing.B) {
	table := placement.Seed(cluster(98, 3), 4096, 3)
	nodes := cluster(99, 3)
	for b.Loop() {
		placement.Rebalance(table, nodes, 3)
	}
}
