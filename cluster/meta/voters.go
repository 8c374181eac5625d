package meta

import (
	"cmp"
	"slices"

	"github.com/sluice-iot/sluice/telemetry"
)

// chooseVoters picks the nodes that should vote: as many as most allows and an
// odd number, spread over the zones so that no zone holds a majority where there
// are at least three zones. Of equals, those that vote already stay, then nodes
// that are not draining, then the smaller id. Two nodes both vote: the group
// stops when either stops, but loses nothing when one loses its disk.
func chooseVoters(nodes map[telemetry.NodeID]Node, votes func(peer string) bool, most int) []Node {
	all := make([]Node, 0, len(nodes))
	for _, n := range nodes {
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b Node) int {
		if c := prefer(votes(a.Peer()), votes(b.Peer())); c != 0 {
			return c
		}
		if c := prefer(!a.Draining, !b.Draining); c != 0 {
			return c
		}
		return cmp.Compare(a.ID, b.ID)
	})
	if len(all) <= 2 {
		return all[:min(len(all), most)]
	}
	zones := map[telemetry.Zone]bool{}
	for _, n := range all {
		zones[n.Zone] = true
	}
	for k := oddAtMost(min(most, len(all))); k > 3; k -= 2 {
		if chosen, worst := spread(all, k); 2*worst < k || len(zones) < 3 {
			return chosen
		}
	}
	chosen, _ := spread(all, oddAtMost(min(most, 3)))
	return chosen
}

func oddAtMost(n int) int { return n - (n+1)%2 }

func prefer(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

// spread takes k nodes in order, always from a zone with the fewest taken, and
// returns how many the fullest zone gave.
func spread(all []Node, k int) (chosen []Node, worst int) {
	taken := map[telemetry.Zone]int{}
	left := slices.Clone(all)
	for len(chosen) < k && len(left) > 0 {
		best := 0
		for i, n := range left {
			if taken[n.Zone] < taken[left[best].Zone] {
				best = i
			}
		}
		n := left[best]
		left = slices.Delete(left, best, best+1)
		taken[n.Zone]++
		worst = max(worst, taken[n.Zone])
		chosen = append(chosen, n)
	}
	return chosen, worst
}
