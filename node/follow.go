package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// followRetry is the pause after a replica could not be opened or closed.
const followRetry = time.Second

// follow keeps what runs here what the meta state says, until ctx ends.
func (n *node) follow(ctx context.Context) {
	for {
		changed := n.meta.Watch()
		st := n.meta.State()
		n.mux.SetEvicted(st.Evicted)
		if st.Evicted[n.identity.Peer()] {
			n.fail(fmt.Errorf("%w (peer %s)", meta.ErrEvicted, n.identity.Peer()))
			return
		}
		var again <-chan time.Time
		if err := n.host.Reconcile(replicasOf(st, n.identity.Peer())); err != nil {
			n.logger.Error("replicas do not follow the shard table, trying again", "err", err)
			again = time.After(followRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
		}
	}
}

// replicasOf is the shard table as the node of self should carry it out.
func replicasOf(st *meta.State, self string) []shard.Replica {
	me, registered := st.ByPeer(self)
	out := make([]shard.Replica, len(st.Table))
	for i, p := range st.Table {
		id := telemetry.ShardID(i)
		move, moving := st.Moves[id]
		r := shard.Replica{Shard: id, Peers: peersOf(st, st.Target(id)), Moving: moving}
		if p.Preferred != move.From || !moving {
			r.Preferred = st.Nodes[p.Preferred].Peer()
		}
		r.Here = registered && (p.Has(me.ID) || moving && move.To == me.ID)
		// A node that is not registered knows nothing of its place.
		r.Left = registered && !r.Here
		r.Seed = seedOf(st, id, self)
		out[i] = r
	}
	return out
}

// seedOf lists the peers that start a shard's group together: the founders that
// have it in the first table, and for anybody else nobody. They are the same on
// every founder, whatever has become of some of them since.
func seedOf(st *meta.State, id telemetry.ShardID, self string) []string {
	if st.TableVersion != 1 {
		return nil
	}
	var out []string
	for _, node := range st.Table[id].Replicas {
		peer, ok := st.Founders[node]
		if !ok {
			return nil
		}
		out = append(out, peer)
	}
	if !slices.Contains(out, self) {
		return nil
	}
	return out
}

// settleMax bounds the report that a shard has moved; it is repeated.
const settleMax = 5 * time.Second

// settled tells the meta group that a shard's group has the voters of its move.
func (n *node) settled(ctx context.Context, r shard.Replica) {
	st := n.meta.State()
	move, moving := st.Moves[r.Shard]
	if !moving || !slices.Equal(peersOf(st, st.Target(r.Shard)), r.Peers) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settleMax)
	defer cancel()
	if err := n.meta.Propose(ctx, meta.EndMove{Shard: r.Shard, Move: move, Done: true}); err != nil {
		n.logger.Warn("end of a move not recorded, trying again", "shard", r.Shard, "err", err)
		return
	}
	n.logger.Info("replica moved", "shard", r.Shard, "from", move.From, "to", move.To)
}
