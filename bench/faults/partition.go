package faults

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/bench"
)

// Partitions, with a network namespace per node. Clients reach every node
// throughout: a node without a quorum has to be the one that says no.

const (
	partitionLong = 8 * time.Second
	// quorumGone is when the last acknowledgement that was under way has arrived,
	// and a leader without its quorum has noticed.
	quorumGone = 3 * time.Second
)

// cutOff separates a node from the other nodes.
func (r *Run) cutOff(node int) {
	for i := range nodesCount {
		if i != node {
			r.Zones.Cut(i, node)
			r.Zones.Cut(node, i)
		}
	}
}

// silent reports an error if a node that is cut off acknowledges anything.
func (r *Run) silent(ctx context.Context, node int, length time.Duration) error {
	sleep(ctx, quorumGone)
	lone := r.fleet.lone(fmt.Sprintf("lone-%d", node), r.Cluster.Nodes()[node].MQTT)
	sleep(ctx, length)
	return acknowledgedAlone(lone, r.Cluster.Nodes()[node].ID)
}

func acknowledgedAlone(lone *bench.Survivor, node string) error {
	if n := lone.Acked(); n > 0 {
		return fmt.Errorf("%s acknowledged %d publishes without a quorum", node, n)
	}
	return nil
}

func isolate(ctx context.Context, r *Run) error {
	node, err := r.busiest(ctx)
	if err != nil {
		return err
	}
	r.strikes()
	r.cutOff(node)
	err = r.silent(ctx, node, partitionLong)
	r.note = fmt.Sprintf("%d packets dropped", r.Zones.Dropped())
	r.Zones.Heal()
	return err
}

func loseZone(ctx context.Context, r *Run) error {
	node, err := r.busiest(ctx)
	if err != nil {
		return err
	}
	r.strikes()
	r.cutOff(node)
	err = r.silent(ctx, node, away)
	err = errors.Join(err, r.kill(node))
	sleep(ctx, r.upTo(away))
	r.Zones.Heal()
	return errors.Join(err, r.startNodes(node))
}

func breakRing(ctx context.Context, r *Run) error {
	a := r.rng.IntN(nodesCount)
	b := (a + 1) % nodesCount
	r.strikes()
	r.Zones.Cut(a, b)
	r.Zones.Cut(b, a)
	sleep(ctx, partitionLong)
	r.note = fmt.Sprintf("%d packets dropped", r.Zones.Dropped())
	r.Zones.Heal()
	return nil
}

func oneWay(ctx context.Context, r *Run) error {
	from, err := r.busiest(ctx)
	if err != nil {
		return err
	}
	r.strikes()
	r.Zones.Cut(from, (from+1+r.rng.IntN(nodesCount-1))%nodesCount)
	sleep(ctx, partitionLong)
	r.note = fmt.Sprintf("%d packets dropped", r.Zones.Dropped())
	r.Zones.Heal()
	return nil
}

// roughLinks loses and delays what passes between nodes, and clogs directions
// one by one and frees them in another order.
func roughLinks(ctx context.Context, r *Run) error {
	r.strikes()
	r.Zones.Rough(0.2, 25*time.Millisecond, 125*time.Millisecond)
	for range 3 {
		var links [][2]int
		for a := range nodesCount {
			for b := range nodesCount {
				if a != b && r.rng.IntN(3) == 0 {
					links = append(links, [2]int{a, b})
				}
			}
		}
		for _, l := range links {
			r.Zones.Cut(l[0], l[1])
			sleep(ctx, r.upTo(500*time.Millisecond))
		}
		r.rng.Shuffle(len(links), func(i, k int) { links[i], links[k] = links[k], links[i] })
		for _, l := range links {
			sleep(ctx, r.upTo(time.Second))
			r.Zones.Join(l[0], l[1])
		}
	}
	sleep(ctx, away)
	r.note = fmt.Sprintf("%d packets dropped", r.Zones.Dropped())
	r.Zones.Heal()
	return nil
}
