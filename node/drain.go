package node

import (
	"context"
	"time"
)

// Stopping is bounded: what has no outcome by then is unknown to its client,
// who will send it again.
const (
	drainMax    = 10 * time.Second
	handOverMax = 3 * time.Second
)

// watchDraining drains the node when an operator wants it, and begins another life
// when the operator has changed their mind.
func (n *node) watchDraining(ctx context.Context) {
	drained := false
	for {
		changed := n.meta.Watch()
		draining := n.meta.State().Nodes[n.identity.Node()].Draining
		if draining && n.draining.CompareAndSwap(false, true) {
			n.drain()
			drained = true
		} else if !draining && drained && ctx.Err() == nil {
			n.logger.Info("the drain was ended: this node begins to serve again")
			n.fail(errDrainEnded)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// drain answers what is in flight, disconnects the clients and gives away the
// leaderships. The node goes on as a replica.
func (n *node) drain() {
	n.serving.Store(false)
	if n.broker.Load() == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainMax)
	defer cancel()
	if err := n.broker.Load().Drain(ctx); err != nil {
		n.logger.Warn("drain broker", "err", err)
	}
	if err := n.intake.pipeline.Load().Drain(ctx); err != nil {
		n.logger.Warn("drain ingest", "err", err)
	}
	n.flushSessions()
	if n.othersServe() {
		ctx, cancel := context.WithTimeout(context.Background(), handOverMax)
		defer cancel()
		if err := n.host.HandOverAll(ctx); err != nil {
			n.logger.Debug("leaderships not handed over", "err", err)
		}
	}
	n.drained.Store(true)
	n.logger.Info("node drained")
}

// othersServe reports whether any other node could take leaderships: when the
// whole cluster stops, handing them around would only make elections.
func (n *node) othersServe() bool {
	for id, other := range n.meta.State().Nodes {
		if id != n.identity.Node() && !other.Draining && n.mux.Connected(other.Peer()) {
			return true
		}
	}
	return false
}

// peerDraining reports whether a peer gives its leaderships away.
func (n *node) peerDraining(peer string) bool {
	for _, other := range n.meta.State().Nodes {
		if other.Peer() == peer {
			return other.Draining
		}
	}
	return false
}

// stopServing is the first part of a planned stop.
func (n *node) stopServing() {
	if n.draining.CompareAndSwap(false, true) {
		n.drain()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := n.meta.HandOver(ctx); err != nil {
		n.logger.Debug("leadership of the meta group not handed over", "err", err)
	}
	if err := n.gossip.Leave(ctx); err != nil {
		n.logger.Debug("leave not announced", "err", err)
	}
}
