package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/cluster/gossip"
	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/telemetry"
)

// Defaults and bounds of the one thing that cannot be changed later.
const (
	replicasDefault = 3
	shardsMax       = 4096
)

// initCluster makes the cluster out of the nodes that are alive, or of those
// the request names.
func (n *node) initCluster(ctx context.Context, req api.InitRequest) error {
	if req.Shards == 0 || req.Shards > shardsMax {
		return fmt.Errorf("shards is %d, use 1 to %d (24 for three nodes): %w", req.Shards, shardsMax, api.ErrInvalid)
	}
	alive := map[telemetry.NodeID]gossip.Member{}
	for _, m := range n.gossip.Members() {
		if m.State == gossip.Alive {
			alive[m.Node] = m
		}
	}
	want := req.Nodes
	if len(want) == 0 {
		for id := range alive {
			want = append(want, id)
		}
	}
	slices.Sort(want)
	spec := meta.InitSpec{Shards: req.Shards, Replicas: req.Replicas}
	if spec.Replicas == 0 {
		spec.Replicas = min(replicasDefault, len(want))
	}
	for _, id := range want {
		m, ok := alive[id]
		if !ok {
			return fmt.Errorf("node %s is not alive: start it first, or leave it out: %w", id, api.ErrInvalid)
		}
		_, incarnation, err := cluster.SplitPeer(m.Peer)
		if err != nil {
			return err
		}
		spec.Nodes = append(spec.Nodes, meta.Node{ID: id, Incarnation: incarnation, Zone: m.Zone, Mux: m.Mux, MQTT: m.MQTT, HTTP: m.HTTP})
	}
	err := n.meta.Init(ctx, spec)
	if errors.Is(err, meta.ErrInitialized) {
		return fmt.Errorf("%w: %w", api.ErrConflict, err)
	}
	return err
}

// ready is nil when this node takes publishes and every shard it knows has a
// leader.
func (n *node) ready() error {
	st := n.meta.State()
	switch {
	case !st.Initialized() && n.clusterExists():
		return errors.New("the node waits to be part of the cluster")
	case !st.Initialized():
		return errors.New("the cluster is not initialised: run `sluice cluster init` once")
	case n.drained.Load():
		return errors.New("the node is drained")
	case n.draining.Load():
		return errors.New("the node is draining")
	case !n.serving.Load():
		return errors.New("the node is starting")
	case n.noRoom() != "":
		return fmt.Errorf("%s; intake resumes by itself", n.noRoom())
	}
	missing := 0
	for id := range st.Shards {
		if n.router.Leader(telemetry.ShardID(id)) == "" {
			missing++
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d of %d shards have no leader", missing, st.Shards)
	}
	return nil
}

// refusedAskMax bounds the wait for other nodes' counts, which are best effort.
const refusedAskMax = time.Second

// refused adds up the messages that the nodes refused since they started.
func (n *node) refused(ctx context.Context) uint64 {
	ctx, cancel := context.WithTimeout(ctx, refusedAskMax)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	total := n.refusedHere()
	for _, peer := range (directory{n.meta}).Peers() {
		if peer == n.identity.Peer() || !n.mux.Connected(peer) {
			continue
		}
		wg.Go(func() {
			b, err := n.mux.Call(ctx, peer, frameRefused, 0, nil)
			if err != nil || len(b) != 8 {
				n.logger.Debug("refusals of a node not counted", "peer", peer, "err", err)
				return
			}
			mu.Lock()
			total += binary.LittleEndian.Uint64(b)
			mu.Unlock()
		})
	}
	wg.Wait()
	return total
}

func (n *node) refusedHere() uint64 {
	total := n.intake.refused.Load()
	if pl := n.intake.pipeline.Load(); pl != nil {
		total += pl.Refused()
	}
	if b := n.broker.Load(); b != nil {
		total += b.Stats().Refused
	}
	return total
}

func (n *node) serveRefused() {
	n.mux.Handle(frameRefused, func(_ string, _ uint32, _ []byte, reply func([]byte, error)) {
		reply(binary.LittleEndian.AppendUint64(nil, n.refusedHere()), nil)
	})
}
