package placement

import (
	"cmp"
	"math"
	"slices"
)

// Seed places shards x min(replicas, len(nodes)) replicas. Nodes with an id that
// occurred before are ignored. O(shards x nodes log nodes): 90 ms for 4,096
// shards on 99 nodes.
func Seed(nodes []Node, shards uint32, replicas int) Table {
	p := newPlan(nodes, shards, replicas)
	quota := p.zoneQuotas()
	r := newRebalance(p)
	for s := range r.held {
		take := p.takeZones(s, quota)
		for z, n := range take {
			quota[z] -= n
			r.held[s] = p.pick(r.held[s], s, z, n, r.load)
		}
	}
	r.level()
	t := p.table(r.held)
	balanceLeads(t)
	return t
}

// zoneQuotas rounds the zones' shares to whole replicas that add up.
func (p *plan) zoneQuotas() []int {
	quota := make([]int, len(p.zones))
	left := p.shards * p.replicas
	for i, z := range p.zones {
		quota[i] = int(math.Floor(z.share + 1e-9))
		left -= quota[i]
	}
	for i := 0; left > 0; i = (i + 1) % len(quota) { // less than one round: the fractions lost
		if quota[i] < p.zones[i].most*p.shards {
			quota[i]++
			left--
		}
	}
	return quota
}

// takeZones decides how many replicas of shard s each zone gets. With m shards
// to go (this one included) and r replicas of a zone's quota left, the zone must
// take r - (m-1) x most now, or it could not use up its quota later. What is not
// forced goes by rendezvous. Because quotas add up to m x replicas, the forced
// parts never exceed a shard's replicas and the rest always finds room.
func (p *plan) takeZones(s int, quota []int) []int {
	later := p.shards - s - 1
	take := make([]int, len(p.zones))
	need := p.replicas
	order := make([]int, len(p.zones))
	for z := range p.zones {
		order[z] = z
		take[z] = max(0, quota[z]-later*p.zones[z].most)
		need -= take[z]
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Compare(weight(s, p.zones[b].hash), weight(s, p.zones[a].hash))
	})
	for need > 0 {
		before := need
		for _, z := range order {
			if need > 0 && take[z] < min(p.zones[z].most, quota[z]) {
				take[z]++
				need--
			}
		}
		if need == before {
			break
		}
	}
	return take
}

// pick appends n nodes of zone z to held, those with the highest weight among
// the ones below their bound. Where a zone must give two nodes at a time, the
// last shards can find only one below it; the least loaded is then the other.
func (p *plan) pick(held []int, s, z, n int, load []int) []int {
	if n == 0 {
		return held
	}
	order := slices.Clone(p.zones[z].members)
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Compare(weight(s, p.hash[b]), weight(s, p.hash[a]))
	})
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(max(0, load[a]-p.zones[z].bound+1), max(0, load[b]-p.zones[z].bound+1))
	})
	for _, i := range order[:n] {
		load[i]++
		held = append(held, i)
	}
	return held
}
