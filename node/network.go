package node

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sluice-iot/sluice/cluster/detector"
	"github.com/sluice-iot/sluice/cluster/gossip"
	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/cluster/mux"
)

// appendHold is how long replication to a peer that is away waits for it before
// raft's own backoff, which nothing can wake, takes over: 30 s covers a restart.
const appendHold = 30 * time.Second

// lateResolver finds peers by what gossip says; the mux is open before gossip
// is, because gossip tells the mux's address.
type lateResolver struct{ gossip atomic.Pointer[gossip.Gossip] }

// Resolve implements mux.Resolver.
func (r *lateResolver) Resolve(peer string) (string, error) {
	if g := r.gossip.Load(); g != nil {
		return g.Resolve(peer)
	}
	return "", fmt.Errorf("membership is not open yet, %s is not known", peer)
}

func (n *node) openNetwork(context.Context) (func() error, error) {
	c := n.cfg.Cluster
	cfg := mux.Config{
		Self: n.identity.Peer(), Listen: c.Listen, Dial: n.sys.dial, Secret: []byte(c.Secret), ClusterID: n.identity.ClusterID(),
		AppendHold: appendHold, SnapshotBytesPerSecond: int64(c.SnapshotMiB) << 20,
	}
	var err error
	if n.sys.listen != nil {
		if cfg.Listener, err = n.sys.open(c.Listen); err != nil {
			return nil, inUse("cluster.listen", err)
		}
	}
	n.mux, err = mux.New(n.logger, n.registry, cfg, &n.resolver)
	if err != nil {
		return nil, inUse("cluster.listen", err)
	}
	n.peers = newPeers(n.mux, n.log.Full)
	n.gossip, err = gossip.New(n.logger, n.registry, gossip.Config{Bind: c.Gossip, Seeds: c.Seeds, Secret: []byte(c.Secret), Self: n.self(), Transport: n.sys.gossip})
	if err != nil {
		return n.mux.Close, inUse("cluster.gossip", err)
	}
	n.resolver.gossip.Store(n.gossip)
	watch := detector.DefaultConfig()
	watch.Dial = n.sys.dial
	n.detector, err = detector.New(n.logger, n.registry, watch, n.gossip)
	if err != nil {
		return func() error { return errors.Join(n.gossip.Close(), n.mux.Close()) }, err
	}
	n.mux.Subscribe(n.observeMux)
	n.gossip.Subscribe(n.observeGossip)
	return func() error {
		err := n.mux.Close() // waits for the handlers, which use everything above it
		n.peers.running.Wait()
		return errors.Join(err, n.detector.Close(), n.gossip.Close())
	}, nil
}

// self is what this node tells the others.
func (n *node) self() gossip.Member {
	return gossip.Member{
		Peer: n.identity.Peer(), Node: n.identity.Node(), Zone: n.identity.Zone(), Mux: n.mux.Addr().String(),
		MQTT: n.cfg.MQTT.Advertise, HTTP: n.cfg.HTTP.Advertise, ClusterID: n.identity.ClusterID(),
	}
}

func (n *node) observeMux(e mux.Event) {
	switch e.Kind {
	case mux.Refused:
		if refused := (*mux.RefusedError)(nil); errors.As(e.Err, &refused) && refused.Evicted {
			n.fail(fmt.Errorf("%w (peer %s, by the word of %s)", meta.ErrEvicted, n.identity.Peer(), e.Peer))
		}
	case mux.Up:
		n.detector.Observe(e.Peer, detector.Connected)
	case mux.Quiet:
		n.detector.Observe(e.Peer, detector.Quiet)
	case mux.Silent:
		n.detector.Observe(e.Peer, detector.Silent)
	case mux.Down:
		if errors.Is(e.Err, syscall.ECONNREFUSED) {
			n.detector.Observe(e.Peer, detector.Refused)
		} else {
			n.detector.Observe(e.Peer, detector.Reset)
		}
	}
}

func (n *node) observeGossip(e gossip.Event) {
	m := e.Member
	if m.Peer == n.identity.Peer() {
		return
	}
	switch m.State {
	case gossip.Alive:
		n.mux.Connect(m.Peer) // so that its death is noticed at once
		n.detector.Observe(m.Peer, detector.Heard)
	default:
		n.detector.Observe(m.Peer, detector.Suspected)
	}
}
