package placement

import (
	"slices"

	"github.com/sluice-iot/sluice/telemetry"
)

// balanceLeads gives every shard a preferred leader, keeping those that are
// still replicas, and evens out the leads per node: while there is a path from a
// node to one with at least two leads fewer, on which each node can give a shard
// to the next, the shards move along it. No such path left means optimal
// (Harvey, Ladner, Lovasz and Tamir, "Semi-matchings for bipartite graphs and
// load balancing", 2003).
func balanceLeads(t Table) {
	l := newLeads(t)
	for s := range t {
		if !t[s].Has(t[s].Preferred) {
			l.lead(s, l.lightest(s))
		}
	}
	for l.improve() {
	}
}

type leads struct {
	table Table
	ids   []telemetry.NodeID // sorted
	index map[telemetry.NodeID]int
	led   [][]int // shards that a node leads
}

func newLeads(t Table) *leads {
	l := &leads{table: t, index: map[telemetry.NodeID]int{}}
	for _, p := range t {
		l.ids = append(l.ids, p.Replicas...)
	}
	slices.Sort(l.ids)
	l.ids = slices.Compact(l.ids)
	for i, id := range l.ids {
		l.index[id] = i
	}
	l.led = make([][]int, len(l.ids))
	for s, p := range t {
		if p.Has(p.Preferred) {
			n := l.index[p.Preferred]
			l.led[n] = append(l.led[n], s)
		}
	}
	return l
}

// lightest is the replica of s with the fewest leads, -1 when s has none. Ties
// are broken by a different replica for each shard.
func (l *leads) lightest(s int) int {
	best := -1
	r := l.table[s].Replicas
	for i := range r {
		n := l.index[r[(i+s)%len(r)]]
		if best < 0 || len(l.led[n]) < len(l.led[best]) {
			best = n
		}
	}
	return best
}

func (l *leads) lead(s, n int) {
	if n < 0 {
		l.table[s].Preferred = ""
		return
	}
	l.table[s].Preferred = l.ids[n]
	l.led[n] = append(l.led[n], s)
}

// improve shifts leads along one cost-reducing path and reports whether there
// was one. It searches from the most loaded node down.
func (l *leads) improve() bool {
	order := make([]int, len(l.ids))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return len(l.led[b]) - len(l.led[a]) })
	for _, from := range order {
		if l.improveFrom(from) {
			return true
		}
	}
	return false
}

func (l *leads) improveFrom(from int) bool {
	via := make([]int, len(l.ids)) // shard through which a node was reached
	for i := range via {
		via[i] = -1
	}
	queue := []int{from}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		for _, s := range l.led[n] {
			for _, id := range l.table[s].Replicas {
				next := l.index[id]
				if next == from || via[next] >= 0 || next == n {
					continue
				}
				via[next] = s
				if len(l.led[next])+2 <= len(l.led[from]) {
					l.shift(from, next, via)
					return true
				}
				queue = append(queue, next)
			}
		}
	}
	return false
}

// shift moves one lead along each step of the path from -> ... -> to.
func (l *leads) shift(from, to int, via []int) {
	for to != from {
		s := via[to]
		giver := l.index[l.table[s].Preferred]
		l.led[giver] = slices.DeleteFunc(l.led[giver], func(x int) bool { return x == s })
		l.lead(s, to)
		to = giver
	}
}
