package placement

import (
	"cmp"
	"slices"

	"github.com/sluice-iot/sluice/telemetry"
)

// LoadBound is how much more than its fair share of replicas a node may hold.
// 1.05 costs little: looser bounds leave hot nodes, tighter ones push so many
// shards off their first choice that joins move up to 1.2x the ideal.
const LoadBound = 1.05

// Node is a candidate for replicas.
type Node struct {
	ID   telemetry.NodeID
	Zone telemetry.Zone
}

// Placement is where one shard lives.
type Placement struct {
	Replicas  []telemetry.NodeID `json:"r"` // sorted
	Preferred telemetry.NodeID   `json:"p"` // one of Replicas; "" when there are none
}

// Table holds the placement of every shard, indexed by shard.
type Table []Placement

// Clone copies the table and its replica lists.
func (t Table) Clone() Table {
	if t == nil {
		return nil
	}
	c := make(Table, len(t))
	for s, p := range t {
		c[s] = Placement{Replicas: slices.Clone(p.Replicas), Preferred: p.Preferred}
	}
	return c
}

// Equal reports whether both tables place every shard alike.
func (t Table) Equal(u Table) bool {
	return slices.EqualFunc(t, u, Placement.Equal)
}

// Equal reports whether both placements are the same.
func (p Placement) Equal(q Placement) bool {
	return p.Preferred == q.Preferred && slices.Equal(p.Replicas, q.Replicas)
}

// Has reports whether node holds a replica.
func (p Placement) Has(node telemetry.NodeID) bool {
	return slices.Contains(p.Replicas, node)
}

// ZoneSafe reports whether the loss of any one zone leaves every shard a quorum
// of its replicas: for three replicas, no two of them in one zone. A table with
// a replica on a node that is not listed is not safe, nor is an empty one.
func ZoneSafe(t Table, nodes []Node) bool {
	zones := make(map[telemetry.NodeID]telemetry.Zone, len(nodes))
	for _, n := range nodes {
		zones[n.ID] = n.Zone
	}
	for _, p := range t {
		if !zoneSafe(p, zones) {
			return false
		}
	}
	return len(t) > 0
}

func zoneSafe(p Placement, zones map[telemetry.NodeID]telemetry.Zone) bool {
	spare := (len(p.Replicas) - 1) / 2 // replicas that may be lost at once
	for _, id := range p.Replicas {
		z, ok := zones[id]
		if !ok {
			return false
		}
		same := 0
		for _, other := range p.Replicas {
			if zones[other] == z {
				same++
			}
		}
		if same > spare {
			return false
		}
	}
	return len(p.Replicas) > 0
}

// Moves counts the replicas of next that are not in prev: how many copies of a
// shard must travel.
func Moves(prev, next Table) int {
	moved := 0
	for s, p := range next {
		for _, id := range p.Replicas {
			if s >= len(prev) || !prev[s].Has(id) {
				moved++
			}
		}
	}
	return moved
}

// canonical sorts the nodes by id and drops all but the first of equal ids.
func canonical(nodes []Node) []Node {
	ns := slices.Clone(nodes)
	slices.SortStableFunc(ns, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	return slices.CompactFunc(ns, func(a, b Node) bool { return a.ID == b.ID })
}
