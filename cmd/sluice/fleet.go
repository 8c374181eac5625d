package main

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/cluster/detector"
	"github.com/sluice-iot/sluice/cluster/mux"
	"github.com/sluice-iot/sluice/pubsub"
)

// pubsubKinds are the frames of the hub as the mux numbers them. A pull waits for
// half a second and is small: it must not stand behind bulk.
var pubsubKinds = [...]mux.Kind{pubsub.FramePull: mux.KindUrgent + 3, pubsub.FrameForward: mux.KindApplication + 3}

// pubsubNet is the mux as the hub wants it.
type pubsubNet struct {
	*mux.Mux
	directory
}

// Call implements pubsub.Net.
func (p pubsubNet) Call(ctx context.Context, peer string, frame int, body []byte) ([]byte, error) {
	return p.Mux.Call(ctx, peer, pubsubKinds[frame], 0, body)
}

// syncMax bounds the wait for other nodes' subscriptions before clients are served.
const syncMax = 3 * time.Second

// openPubsub makes this node's part of the cluster-wide broker; messages come and
// go when the broker serves.
func (n *node) openPubsub(epoch uint64) error {
	var err error
	n.pubsub, err = pubsub.New(n.logger, n.registry, pubsub.Config{Self: n.identity.Peer(), Epoch: epoch}, pubsubNet{n.mux, directory{n.meta}})
	if err != nil {
		return err
	}
	n.detector.Subscribe(func(e detector.Event) {
		if e.Down && (e.First == detector.Refused || e.Second == detector.Refused) {
			n.pubsub.Gone(e.Peer) // nobody listens at its door: the process is no more
		}
	})
	return nil
}

// joinPubsub lets messages flow between the nodes and waits, for a moment, until
// the subscriptions of the others are known.
func (n *node) joinPubsub(ctx context.Context, local pubsub.Local) {
	n.pubsub.Start(local)
	n.mux.Handle(pubsubKinds[pubsub.FramePull], func(from string, _ uint32, body []byte, reply func([]byte, error)) {
		n.pubsub.AcceptPull(from, body, reply)
	})
	n.mux.Handle(pubsubKinds[pubsub.FrameForward], func(from string, _ uint32, body []byte, reply func([]byte, error)) {
		n.pubsub.AcceptForward(from, body, reply)
	})
	ctx, cancel := context.WithTimeout(ctx, syncMax)
	defer cancel()
	if err := n.pubsub.Synced(ctx); err != nil {
		n.logger.Warn(fmt.Sprintf("serving before the subscriptions of all nodes are known: %v", err))
	}
}

// closePubsub ends the exchange with the other nodes.
func (n *node) closePubsub() error {
	for _, kind := range pubsubKinds {
		n.mux.Handle(kind, nil)
	}
	return n.pubsub.Close()
}
