package faults

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/telemetry"
)

// Nodes that come and go under load. What the table of shards says is followed
// all the way: voters, leaders, no move left over.

const (
	// placedMax bounds the moves of all replicas of a node, two at a time, on a
	// busy machine.
	placedMax = 4 * time.Minute
	// moreMoved is how many times the share of a node may be moved for it: the
	// placement rounds, and balances to 1.05.
	moreMoved = 1.25
	// slowestMax is what no machine excuses; the table has the figure, which is to
	// be below a second.
	slowestMax = 20 * time.Second
)

const replicasCount = shardsCount * nodesCount // of all shards

// addNode gives a fourth node its share.
func addNode(ctx context.Context, r *Run) error {
	before, err := r.table(ctx)
	if err != nil {
		return err
	}
	r.strikes()
	began := time.Now()
	n, err := r.join(ctx, "d")
	if err != nil {
		return err
	}
	return r.accountFor(ctx, before, n.ID+" joined", began)
}

// removeNode drains, stops and evicts one node of four.
func removeNode(ctx context.Context, r *Run) error {
	if _, err := r.join(ctx, "d"); err != nil {
		return err
	}
	most, err := r.busiest(ctx)
	if err != nil {
		return err
	}
	leaver := r.Cluster.Nodes()[most]
	before, err := r.table(ctx)
	if err != nil {
		return err
	}
	r.strikes()
	began := time.Now()
	err = r.asking(ctx, leaver, func(ctx context.Context, cl *client.Client) error {
		return cl.Drain(ctx, telemetry.NodeID(leaver.ID))
	})
	if err != nil {
		return fmt.Errorf("drain %s: %w", leaver.ID, err)
	}
	empty := func(st *api.Status, holds map[string]int) bool { return holds[leaver.ID] == 0 }
	if err := r.placed(ctx, leaver.ID+" is empty", empty); err != nil {
		return err
	}
	if err := leaver.Terminate(); err != nil {
		return err
	}
	if err := r.evict(ctx, leaver); err != nil {
		return err
	}
	return r.accountFor(ctx, before, leaver.ID+" left", began)
}

// replaceNode loses a node for good while another one takes its place.
func replaceNode(ctx context.Context, r *Run) error {
	victim := r.rng.IntN(nodesCount)
	old := r.Cluster.Nodes()[victim]
	before, err := r.table(ctx)
	if err != nil {
		return err
	}
	r.strikes()
	began := time.Now()
	if err := r.kill(victim); err != nil {
		return err
	}
	n, err := r.add(old.Zone)
	if err != nil {
		return err
	}
	if err := r.evict(ctx, old); err != nil {
		return err
	}
	full := func(st *api.Status, holds map[string]int) bool { return holds[n.ID] == shardsCount }
	if err := r.placed(ctx, n.ID+" has the replicas of "+old.ID, full); err != nil {
		return err
	}
	return r.accountFor(ctx, before, n.ID+" replaced "+old.ID, began)
}

// join adds a node and waits until it has its share.
func (r *Run) join(ctx context.Context, zone string) (*devcluster.Node, error) {
	n, err := r.add(zone)
	if err != nil {
		return nil, err
	}
	share := replicasCount / len(r.nodes())
	return n, r.placed(ctx, n.ID+" has its share", func(st *api.Status, holds map[string]int) bool {
		return holds[n.ID] >= share-1 && holds[n.ID] <= share+1 && st.ZoneSafe
	})
}

func (r *Run) add(zone string) (*devcluster.Node, error) {
	r.members.Lock()
	defer r.members.Unlock()
	n, err := r.Cluster.Add(zone)
	if err != nil {
		return nil, fmt.Errorf("add a node: %w", err)
	}
	return n, nil
}

// evict makes the cluster forget a node that has stopped.
func (r *Run) evict(ctx context.Context, n *devcluster.Node) error {
	r.members.Lock()
	r.gone = append(r.gone, n)
	r.members.Unlock()
	var err error
	// It has to be known as dead first, and a leader of the meta group to exist.
	for end := time.Now().Add(rebuiltMax); time.Now().Before(end); sleep(ctx, 300*time.Millisecond) {
		err = r.asking(ctx, n, func(ctx context.Context, cl *client.Client) error { return cl.Evict(ctx, telemetry.NodeID(n.ID)) })
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("evict %s: %w", n.ID, err)
	}
	return r.placed(ctx, n.ID+" is forgotten", func(st *api.Status, _ map[string]int) bool {
		return !slices.ContainsFunc(st.Nodes, func(x api.Node) bool { return string(x.ID) == n.ID })
	})
}

// asking asks one of the other nodes.
func (r *Run) asking(ctx context.Context, not *devcluster.Node, f func(context.Context, *client.Client) error) error {
	err := errors.New("no other node runs")
	for _, n := range r.nodes() {
		if n == not || !n.Running() {
			continue
		}
		var cl *client.Client
		if cl, err = n.Client(); err != nil {
			return err
		}
		one, cancel := context.WithTimeout(ctx, statusMax)
		err = f(one, cl)
		cancel()
		cl.Close()
		if err == nil {
			return nil
		}
	}
	return err
}

// table is which nodes hold which shard.
func (r *Run) table(ctx context.Context) (map[string]bool, error) {
	st, err := r.status(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, s := range st.Shards {
		for _, p := range s.Replicas {
			out[fmt.Sprintf("shard %d on %s", s.ID, p.Node)] = true
		}
	}
	return out, nil
}

// accountFor judges what a change of members has cost: replicas that moved, and
// the longest that an acknowledged message has waited meanwhile.
func (r *Run) accountFor(ctx context.Context, before map[string]bool, what string, began time.Time) error {
	now, err := r.table(ctx)
	if err != nil {
		return err
	}
	moved := 0
	for p := range now {
		if !before[p] {
			moved++
		}
	}
	slowest := r.fleet.probes.latency(began, time.Now(), 1).Round(time.Millisecond)
	r.note = fmt.Sprintf("%s: %d of %d replicas moved in %v, slowest acknowledgement %v",
		what, moved, replicasCount, time.Since(began).Round(100*time.Millisecond), slowest)
	var errs []error
	if most := moreMoved * replicasCount / float64(len(r.nodes())); float64(moved) > most {
		errs = append(errs, fmt.Errorf("%d replicas moved, %.0f would do", moved, most))
	}
	if slowest > slowestMax {
		errs = append(errs, fmt.Errorf("a publish waited %v for its acknowledgement", slowest))
	}
	return errors.Join(errs...)
}

// placed waits until the table, all voters and all leaders are as they should be.
func (r *Run) placed(ctx context.Context, what string, ok func(st *api.Status, holds map[string]int) bool) error {
	last := ""
	for end := time.Now().Add(placedMax); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 250*time.Millisecond) {
		st, err := r.status(ctx)
		if err != nil {
			last = err.Error()
			continue
		}
		holds, waiting := map[string]int{}, 0
		for _, sh := range st.Shards {
			for _, p := range sh.Replicas {
				holds[string(p.Node)]++
			}
			if sh.Leader == "" || slices.ContainsFunc(sh.Replicas, func(p api.Replica) bool { return p.Role == api.RoleNonvoter }) {
				waiting++
			}
		}
		last = fmt.Sprintf("replicas %v, %d shards without leader or voters, %d moves, alarms %q", holds, waiting, len(st.Moves), st.Alarms)
		if waiting == 0 && len(st.Moves) == 0 && len(st.Shards) == shardsCount && ok(&st, holds) {
			return nil
		}
	}
	return fmt.Errorf("not within %v: %s: %s", placedMax, what, last)
}
