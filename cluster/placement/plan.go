package placement

import (
	"math"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/sluice-iot/sluice/telemetry"
)

// plan is what Seed and Rebalance share: nodes and zones as indexes, and how
// much each may hold.
type plan struct {
	shards   int
	replicas int // per shard, at most the number of nodes
	nodes    []Node
	hash     []uint64 // per node
	zone     []int    // zone of each node
	zones    []zone
}

type zone struct {
	hash    uint64
	members []int   // nodes
	most    int     // replicas of one shard it may hold
	share   float64 // replicas of all shards it should hold
	fair    float64 // share per member
	bound   int     // replicas of all shards one member may hold
}

func newPlan(nodes []Node, shards uint32, replicas int) *plan {
	p := &plan{shards: int(shards), nodes: canonical(nodes)}
	p.replicas = max(0, min(replicas, len(p.nodes)))
	byName := map[telemetry.Zone]int{}
	for i, n := range p.nodes {
		z, ok := byName[n.Zone]
		if !ok {
			z = len(p.zones)
			byName[n.Zone] = z
			p.zones = append(p.zones, zone{hash: xxhash.Sum64String(string(n.Zone))})
		}
		p.zone = append(p.zone, z)
		p.hash = append(p.hash, xxhash.Sum64String(string(n.ID)))
		p.zones[z].members = append(p.zones[z].members, i)
	}
	p.limitZones()
	p.shareOut()
	return p
}

// limitZones finds the smallest number of replicas per zone and shard with which
// the zones together can hold all replicas of a shard.
func (p *plan) limitZones() {
	for most := 1; most <= p.replicas; most++ {
		room := 0
		for i := range p.zones {
			p.zones[i].most = min(most, len(p.zones[i].members))
			room += p.zones[i].most
		}
		if room >= p.replicas {
			return
		}
	}
}

// shareOut gives every node the same share, except that a zone cannot hold more
// than most x shards: what exceeds that goes to the other zones (water filling).
func (p *plan) shareOut() {
	left := float64(p.shards * p.replicas)
	open := make([]int, len(p.zones))
	for i := range open {
		open[i] = i
	}
	for len(open) > 0 {
		members := 0
		for _, z := range open {
			members += len(p.zones[z].members)
		}
		level := left / float64(members)
		full := slices.IndexFunc(open, func(z int) bool {
			return level*float64(len(p.zones[z].members)) > float64(p.zones[z].most*p.shards)
		})
		if full < 0 {
			for _, z := range open {
				p.zones[z].share = level * float64(len(p.zones[z].members))
			}
			break
		}
		z := &p.zones[open[full]]
		z.share = float64(z.most * p.shards)
		left -= z.share
		open = slices.Delete(open, full, full+1)
	}
	for i := range p.zones {
		z := &p.zones[i]
		z.fair = z.share / float64(len(z.members))
		z.bound = int(math.Ceil(LoadBound*z.fair - 1e-9))
	}
}

// weight is the rendezvous weight of a node or zone for a shard: two rounds of
// the finalizer of splitmix64 (Steele, Lea and Flood, 2014).
func weight(shard int, hash uint64) uint64 {
	return mix(mix(uint64(shard)+0x9e3779b97f4a7c15) ^ hash)
}

func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// table turns node indexes into a table without preferred leaders.
func (p *plan) table(held [][]int) Table {
	t := make(Table, len(held))
	for s, nodes := range held {
		ids := make([]telemetry.NodeID, len(nodes))
		for i, n := range nodes {
			ids[i] = p.nodes[n].ID
		}
		slices.Sort(ids)
		t[s].Replicas = ids
	}
	return t
}
