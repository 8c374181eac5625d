package node

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/cluster/detector"
	"github.com/sluice-iot/sluice/cluster/mux"
	"github.com/sluice-iot/sluice/pubsub"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// pubsubKinds are the frames of the hub as the mux numbers them. A pull waits for
// half a second and is small: it must not stand behind bulk.
var pubsubKinds = [...]mux.Kind{pubsub.FramePull: mux.KindUrgent + 3, pubsub.FrameForward: mux.KindApplication + 3, pubsub.FrameKick: mux.KindUrgent + 4}

// pubsubNet is the mux as the hub wants it.
type pubsubNet struct {
	*mux.Mux
	directory
}

// Call implements pubsub.Net.
func (p pubsubNet) Call(ctx context.Context, peer string, frame int, body []byte) ([]byte, error) {
	return p.Mux.Call(ctx, peer, pubsubKinds[frame], 0, body)
}

// shardSessions is the shards as the hub wants them.
type shardSessions struct {
	*shard.Router
	host *shard.Host
	dir  directory
}

// Count implements pubsub.Shards.
func (s shardSessions) Count() uint32 { return s.dir.Shards() }

// Leads implements pubsub.Shards.
func (s shardSessions) Leads(id telemetry.ShardID) bool { return s.host.Leads(id) }

// Fenced implements pubsub.Shards.
func (s shardSessions) Fenced(err error) bool { return errors.Is(err, shard.ErrNotFound) }

// lateSessions is the hub as the shards want it. It is made after the host, because
// it needs the number of this start, and before the first replica is opened.
type lateSessions struct{ hub atomic.Pointer[pubsub.Hub] }

func (l *lateSessions) Lead(id telemetry.ShardID, term uint64, filters []session.FilterChange) {
	if h := l.hub.Load(); h != nil {
		h.Lead(id, term, filters)
	}
}

func (l *lateSessions) Lost(id telemetry.ShardID) {
	if h := l.hub.Load(); h != nil {
		h.Lost(id)
	}
}

func (l *lateSessions) Effects(id telemetry.ShardID, e session.Effects) {
	if h := l.hub.Load(); h != nil {
		h.Effects(id, e)
	}
}

func (l *lateSessions) Hints(id telemetry.ShardID, hints []session.Hint) {
	if h := l.hub.Load(); h != nil {
		h.Hints(id, hints)
	}
}

func (l *lateSessions) Wills(id telemetry.ShardID, wills []session.Will) {
	if h := l.hub.Load(); h != nil {
		h.Wills(id, wills)
	}
}

func (l *lateSessions) Gone(o session.Owner, ledSince time.Time) bool {
	h := l.hub.Load()
	return h != nil && h.Gone(o, ledSince)
}

func (l *lateSessions) Astray(id telemetry.ShardID) bool {
	h := l.hub.Load()
	return h != nil && h.Astray(id)
}

func (l *lateSessions) Settled(ctx context.Context, id telemetry.ShardID) error {
	if h := l.hub.Load(); h != nil {
		return h.Settled(ctx, id)
	}
	return nil
}

// syncMax bounds the wait for other nodes' subscriptions before clients are served;
// flushMax the wait for the shards to hear that they are gone.
const (
	syncMax  = 3 * time.Second
	flushMax = 3 * time.Second
)

// openPubsub makes this node's part of the cluster-wide broker; messages come and
// go when the broker serves.
func (n *node) openPubsub(epoch uint64) error {
	dir := directory{n.meta}
	hub, err := pubsub.New(n.logger, n.registry, pubsub.Config{Self: n.identity.Peer(), Epoch: epoch}, pubsubNet{n.mux, dir},
		shardSessions{n.router, n.host, dir})
	if err != nil {
		return err
	}
	n.pubsub = hub
	n.sessions.hub.Store(hub)
	n.detector.Subscribe(func(e detector.Event) {
		if e.Down && (e.First == detector.Refused || e.Second == detector.Refused) {
			hub.Ended(e.Peer) // nobody listens at its door: the process is no more
		}
	})
	return registerSessions(n.registry, n.host)
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
	n.mux.Handle(pubsubKinds[pubsub.FrameKick], func(_ string, _ uint32, body []byte, reply func([]byte, error)) {
		n.pubsub.AcceptKick(body, reply)
	})
	ctx, cancel := context.WithTimeout(ctx, syncMax)
	defer cancel()
	if err := n.pubsub.Synced(ctx); err != nil {
		n.logger.Warn("serving before the subscriptions of all nodes are known", "err", err)
	}
}

// closePubsub ends the exchange with the other nodes.
func (n *node) closePubsub() error {
	for _, kind := range pubsubKinds {
		n.mux.Handle(kind, nil)
	}
	return n.pubsub.Close()
}

// flushSessions tells the shards which clients are gone, while leaders are there.
func (n *node) flushSessions() {
	ctx, cancel := context.WithTimeout(context.Background(), flushMax)
	defer cancel()
	if err := n.pubsub.Flush(ctx); err != nil {
		n.logger.Warn("the shards will find out by themselves which clients are gone", "err", err)
	}
}

// registerSessions exports the figures of the sessions in the shards that this node
// leads; the sum over all nodes is the cluster's.
func registerSessions(reg prometheus.Registerer, host *shard.Host) error {
	var errs []error
	for _, g := range []struct {
		name, help string
		value      func(session.Counts) float64
	}{
		{"sessions", "Sessions, connected or not.", func(c session.Counts) float64 { return float64(c.Sessions) }},
		{"sessions_connected", "Sessions whose client is connected to any node.", func(c session.Counts) float64 { return float64(c.Connected) }},
		{"queued_messages", "Messages that wait for an acknowledgement of a durable session.", func(c session.Counts) float64 { return float64(c.Queued) }},
		{"queued_bytes", "Their bytes.", func(c session.Counts) float64 { return float64(c.QueuedBytes) }},
		{"retained_messages", "Retained messages.", func(c session.Counts) float64 { return float64(c.Retained) }},
		{"wills_due", "Wills that are being sent.", func(c session.Counts) float64 { return float64(c.Wills) }},
		{"dropped_full", "Messages that did not fit into a queue, since the cluster began.", func(c session.Counts) float64 { return float64(c.Drops.Full) }},
		{"dropped_aged", "Messages that waited too long, since the cluster began.", func(c session.Counts) float64 { return float64(c.Drops.Aged) }},
		{"dropped_expired", "Messages whose expiry interval passed in a full queue, since the cluster began.", func(c session.Counts) float64 { return float64(c.Drops.Expired) }},
	} {
		opts := prometheus.GaugeOpts{Namespace: "sluice", Subsystem: "session", Name: g.name, Help: g.help + " Of the shards led here."}
		errs = append(errs, reg.Register(prometheus.NewGaugeFunc(opts, func() float64 { return g.value(host.SessionCounts()) })))
	}
	return errors.Join(errs...)
}
