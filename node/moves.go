package node

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/sluice-iot/sluice/cluster/gossip"
	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/cluster/placement"
	"github.com/sluice-iot/sluice/telemetry"
)

const (
	movesEvery = time.Second
	// movesPerNode bounds the moves that a node takes part in: each costs the one
	// that builds a snapshot and a store to read from others, under load.
	movesPerNode = 2
	// drainGrace is how long a node drains before its replicas move: a planned
	// stop or restart needs no moves.
	drainGrace = 10 * time.Second
	// moveAbandon is how long a node may be away before the moves towards it are
	// given up.
	moveAbandon = time.Minute
	moveMax     = 5 * time.Second // one proposal
)

// mover runs on every node and acts on the one that leads the meta group. It
// remembers nothing that matters: the intents are in the meta state, each command
// fails when the state has changed meanwhile, and two movers that believe they
// lead do no harm.
type mover struct {
	logger   *slog.Logger
	meta     *meta.Meta
	present  func() map[telemetry.NodeID]bool // nodes that are alive
	led      func(context.Context) bool       // every shard has a leader
	draining map[telemetry.NodeID]time.Time   // since when, as seen here
	away     map[telemetry.NodeID]time.Time
	idle     uint64 // version of the state for which there was nothing to do
}

func (n *node) newMover() *mover {
	return &mover{
		logger: n.logger, meta: n.meta, present: n.present, led: n.everyShardLed,
		draining: map[telemetry.NodeID]time.Time{}, away: map[telemetry.NodeID]time.Time{},
	}
}

// run acts until ctx ends.
func (m *mover) run(ctx context.Context) {
	tick := time.NewTicker(movesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if !m.meta.IsLeader() {
				clear(m.draining)
				clear(m.away)
				m.idle = 0
				continue
			}
			if err := m.act(ctx, now); err != nil && ctx.Err() == nil {
				m.logger.Warn("shards not moved, trying again", "err", err)
			}
		}
	}
}

// act starts what may be started now, and gives up what cannot end.
func (m *mover) act(ctx context.Context, now time.Time) error {
	st := m.meta.State()
	if !st.Initialized() {
		return nil
	}
	ready := m.look(st, now)
	if len(m.away) > 0 {
		return m.abandon(ctx, st, now)
	}
	if m.idle == st.Version {
		return nil
	}
	todo := planMoves(st, ready)
	if len(todo.moves) == 0 && todo.leads == nil {
		if len(ready) == countDraining(st) && len(st.Moves) == 0 {
			m.idle = st.Version
		}
		return nil
	}
	if !m.led(ctx) {
		return nil
	}
	for _, c := range todo.moves {
		if err := m.propose(ctx, c); err != nil {
			return fmt.Errorf("move shard %d from %q to %q: %w", c.Shard, c.From, c.To, err)
		}
		m.logger.Info("replica begins to move", "shard", c.Shard, "from", c.From, "to", c.To)
	}
	if todo.leads != nil {
		if err := m.propose(ctx, meta.SetTable{Expect: st.TableVersion, Table: todo.leads}); err != nil {
			return fmt.Errorf("spread the leaders: %w", err)
		}
	}
	return nil
}

func (m *mover) propose(ctx context.Context, c meta.Command) error {
	ctx, cancel := context.WithTimeout(ctx, moveMax)
	defer cancel()
	return m.meta.Propose(ctx, c)
}

// look notes who drains and who is away, and returns the nodes that have drained
// for long enough to lose their replicas.
func (m *mover) look(st *meta.State, now time.Time) (ready map[telemetry.NodeID]bool) {
	present := m.present()
	ready = map[telemetry.NodeID]bool{}
	for id, n := range st.Nodes {
		since(m.draining, id, n.Draining, now)
		since(m.away, id, !present[id], now)
		if t, ok := m.draining[id]; ok && now.Sub(t) >= drainGrace {
			ready[id] = true
		}
	}
	for _, seen := range []map[telemetry.NodeID]time.Time{m.draining, m.away} {
		for id := range seen {
			if _, ok := st.Nodes[id]; !ok {
				delete(seen, id)
			}
		}
	}
	return ready
}

func since(seen map[telemetry.NodeID]time.Time, id telemetry.NodeID, now bool, t time.Time) {
	if _, ok := seen[id]; !now {
		delete(seen, id)
	} else if !ok {
		seen[id] = t
	}
}

func countDraining(st *meta.State) (n int) {
	for _, node := range st.Nodes {
		if node.Draining {
			n++
		}
	}
	return n
}

// abandon gives up moves towards nodes that have been away for long: their shards
// go back to where the table has them.
func (m *mover) abandon(ctx context.Context, st *meta.State, now time.Time) error {
	for id, move := range st.Moves {
		t, away := m.away[move.To]
		if !away || now.Sub(t) < moveAbandon {
			continue
		}
		if err := m.propose(ctx, meta.EndMove{Shard: id, Move: move}); err != nil {
			return fmt.Errorf("give up the move of shard %d to %s: %w", id, move.To, err)
		}
		m.logger.Warn("move given up, its destination is away", "shard", id, "to", move.To)
	}
	return nil
}

// planned is what could be proposed now.
type planned struct {
	moves []meta.StartMove
	leads placement.Table // the table with leaders spread again; nil: as it is
}

// planMoves is pure: the next moves towards the table that placement wants, as
// many as the nodes may take part in.
func planMoves(st *meta.State, leaving map[telemetry.NodeID]bool) planned {
	now := st.Table.Clone()
	busy := map[telemetry.NodeID]int{}
	for id, m := range st.Moves {
		now[id].Replicas = st.Target(id)
		if !now[id].Has(now[id].Preferred) {
			now[id].Preferred = now[id].Replicas[0]
		}
		busy[m.From]++
		busy[m.To]++
	}
	want := placement.Rebalance(now, staying(st, now, leaving), st.Replicas)
	var out planned
	for i := range want {
		id := telemetry.ShardID(i)
		if _, moving := st.Moves[id]; moving {
			continue
		}
		m, ok := nextMove(st, now[i], want[i])
		if !ok || m.From != "" && busy[m.From] >= movesPerNode || m.To != "" && busy[m.To] >= movesPerNode {
			continue
		}
		if m.From != "" {
			busy[m.From]++
		}
		if m.To != "" {
			busy[m.To]++
		}
		out.moves = append(out.moves, meta.StartMove{Shard: id, Move: m})
	}
	if len(out.moves) == 0 && len(st.Moves) == 0 && placement.Moves(now, want) == 0 && !want.Equal(now) {
		out.leads = want
	}
	return out
}

// staying lists the nodes that should hold replicas: without those that leave, if
// the others can take what they hold and no shard is less safe for it.
func staying(st *meta.State, now placement.Table, leaving map[telemetry.NodeID]bool) []placement.Node {
	all := st.PlacementNodes(true)
	rest := slices.DeleteFunc(slices.Clone(all), func(n placement.Node) bool { return leaving[n.ID] })
	if len(rest) < len(all) && !canLeave(st, now, all, rest) {
		return all
	}
	return rest
}

func canLeave(st *meta.State, now placement.Table, all, rest []placement.Node) bool {
	if len(rest) < min(st.Replicas, len(all)) {
		return false
	}
	return !placement.ZoneSafe(now, all) || placement.ZoneSafe(placement.Rebalance(now, rest, st.Replicas), rest)
}

// nextMove is one replica on its way from what a shard has to what it should
// have, within a zone if that can be.
func nextMove(st *meta.State, now, want placement.Placement) (m meta.Move, ok bool) {
	from := slices.DeleteFunc(slices.Clone(now.Replicas), want.Has)
	to := slices.DeleteFunc(slices.Clone(want.Replicas), now.Has)
	switch {
	case len(from) == 0 && len(to) == 0:
		return m, false
	case len(from) == 0:
		return meta.Move{To: to[0]}, true
	case len(to) == 0:
		return meta.Move{From: from[0]}, len(now.Replicas) > 1
	}
	// A replica on a node that is not registered any more goes first.
	slices.SortStableFunc(from, func(a, b telemetry.NodeID) int {
		return cmp.Compare(registered(st, a), registered(st, b))
	})
	m = meta.Move{From: from[0], To: to[0]}
	for _, id := range to {
		if st.Nodes[id].Zone == st.Nodes[m.From].Zone {
			m.To = id
		}
	}
	return m, true
}

func registered(st *meta.State, id telemetry.NodeID) int {
	if _, ok := st.Nodes[id]; ok {
		return 1
	}
	return 0
}

// present lists the nodes that answer, as gossip and the transport see it.
func (n *node) present() map[telemetry.NodeID]bool {
	out := map[telemetry.NodeID]bool{n.identity.Node(): true}
	st := n.meta.State()
	for _, m := range n.gossip.Members() {
		if m.State == gossip.Alive && st.Nodes[m.Node].Peer() == m.Peer && n.mux.Connected(m.Peer) {
			out[m.Node] = true
		}
	}
	return out
}

// everyShardLed asks the nodes whether all shards have leaders, and all voters
// that they should have: what is under repair is not moved.
func (n *node) everyShardLed(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, moveMax)
	defer cancel()
	views, err := n.router.Status(ctx, false)
	if err != nil {
		return false
	}
	st := n.meta.State()
	for id, p := range st.Table {
		sh := shardStatus(st, telemetry.ShardID(id), p, views)
		if sh.Leader == "" {
			return false
		}
		for _, r := range sh.Replicas {
			if _, known := st.Nodes[r.Node]; known && r.Role == "nonvoter" && st.Moves[sh.ID].To != r.Node {
				return false
			}
		}
	}
	return true
}
