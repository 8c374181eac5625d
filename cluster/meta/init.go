package meta

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/cluster/placement"
)

// InitSpec is the cluster to make.
type InitSpec struct {
	ClusterID string // random when empty
	Shards    uint32 // fixed for the life of the cluster
	Replicas  int    // per shard; a smaller cluster has as many as it has nodes
	Nodes     []Node // this node among them
}

// Validate reports every problem at once.
func (s InitSpec) Validate() error {
	var errs []error
	if s.Shards < 1 || s.Shards > 4096 {
		errs = append(errs, fmt.Errorf("%d shards: choose 1 to 4096", s.Shards))
	}
	if s.Replicas < 1 || s.Replicas > 7 {
		errs = append(errs, fmt.Errorf("%d replicas: choose 1 to 7", s.Replicas))
	}
	for i, n := range s.Nodes {
		if r := validNode(n); r.Code != codeOK {
			errs = append(errs, r.err())
		}
		if slices.ContainsFunc(s.Nodes[:i], func(o Node) bool { return o.ID == n.ID }) {
			errs = append(errs, fmt.Errorf("node %s is listed twice", n.ID))
		}
	}
	return errors.Join(errs...)
}

// statusTimeout is how long one node may take to say how it is.
const statusTimeout = time.Second

// Init makes the cluster: it bootstraps the group with this node as its only
// voter and commits registry and table in one entry. It returns when that is
// applied here; the leader then adds the other nodes as they can be reached (see
// Members and Voters).
//
// It is run once, on one node, by explicit request. On a node that has state, or
// when one of the nodes says that it belongs to a cluster, it returns
// ErrInitialized. After a crash in the middle it may be run again on the same
// node.
func (m *Meta) Init(ctx context.Context, spec InitSpec) error {
	m.initLock.Lock()
	defer m.initLock.Unlock()
	if err := m.checkInit(ctx, spec); err != nil {
		return fmt.Errorf("initialise cluster: %w", err)
	}
	if spec.ClusterID == "" {
		spec.ClusterID = rand.Text()
	}
	if err := m.bootstrap(); err != nil {
		return fmt.Errorf("initialise cluster: %w", err)
	}
	nodes := make([]placement.Node, len(spec.Nodes))
	for i, n := range spec.Nodes {
		nodes[i] = placement.Node{ID: n.ID, Zone: n.Zone}
	}
	err := m.proposeHere(ctx, initCluster{
		ClusterID: spec.ClusterID,
		Shards:    spec.Shards,
		Replicas:  spec.Replicas,
		Nodes:     spec.Nodes,
		Table:     placement.Seed(nodes, spec.Shards, spec.Replicas),
	})
	if err != nil {
		return fmt.Errorf("initialise cluster: %w", err)
	}
	m.logger.Info("cluster initialised", "cluster", spec.ClusterID, "shards", spec.Shards, "nodes", len(spec.Nodes))
	rouse(m.wake)
	return nil
}

// proposeHere commits a command in this node's own group: Init must not end up in
// another node's.
func (m *Meta) proposeHere(ctx context.Context, c Command) error {
	entry, err := encodeCommand(c)
	if err != nil {
		return err
	}
	for {
		err := errNoLeader
		if m.IsLeader() {
			var r result
			if r, err = m.applyHere(ctx, entry); err == nil {
				return r.err()
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last attempt: %w)", ctx.Err(), err)
		case <-m.closing:
			return ErrClosed
		case <-time.After(retryPause):
		}
	}
}

func (m *Meta) checkInit(ctx context.Context, spec InitSpec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	if m.cfg.ClusterID != "" {
		return fmt.Errorf("%w (this data directory is of cluster %s)", ErrInitialized, m.cfg.ClusterID)
	}
	if id := m.State().ClusterID; id != "" {
		return fmt.Errorf("%w (as %s)", ErrInitialized, id)
	}
	if !slices.ContainsFunc(spec.Nodes, func(n Node) bool { return n.Peer() == m.cfg.Peer }) {
		return fmt.Errorf("%w: this node (%s) is not among the nodes", ErrInvalid, m.cfg.Peer)
	}
	for _, n := range spec.Nodes {
		if n.Peer() == m.cfg.Peer {
			continue
		}
		if s, err := m.askStatus(ctx, n.Peer()); err == nil && s.ClusterID != "" {
			return fmt.Errorf("%w (node %s is of cluster %s)", ErrInitialized, n.ID, s.ClusterID)
		}
	}
	return nil
}

// bootstrap gives raft its first configuration. Where an earlier Init died
// behind this step, that configuration is found and kept.
func (m *Meta) bootstrap() error {
	self := raft.Server{ID: raft.ServerID(m.cfg.Peer), Address: raft.ServerAddress(m.cfg.Peer)}
	err := m.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{self}}).Error()
	if errors.Is(err, raft.ErrCantBootstrap) {
		if members := m.Members(); len(members) == 1 && members[0] == m.cfg.Peer {
			return nil
		}
		return fmt.Errorf("%w (this node holds state of a meta group)", ErrInitialized)
	}
	if err != nil {
		return fmt.Errorf("bootstrap meta group: %w", err)
	}
	m.stand() // nobody else could
	return nil
}

// replacePause is how long a new incarnation waits while its predecessor is
// still heard of.
const replacePause = time.Second

// Join registers this node, through any contact, and returns when it has become
// a member, its State shows so and it is as new as WaitReady promises. Until a
// cluster exists it waits. It is called at every start, whether the node is new
// or not: for a known node it only updates addresses. Where the node id is
// registered with another incarnation, whose data directory is then gone, it
// takes that one's place, as soon as that one is not running any more; progress
// hears why that takes its time. ErrEvicted comes back at once.
func (m *Meta) Join(ctx context.Context, self Node, progress func(error)) error {
	if self.Peer() != m.cfg.Peer {
		return fmt.Errorf("join cluster: %w: node %s is not this peer (%s)", ErrInvalid, self.Peer(), m.cfg.Peer)
	}
	for {
		r, err := m.propose(ctx, RegisterNode{Node: self})
		if errors.Is(err, ErrIncarnation) && r.Registered != "" {
			m.logger.Warn("node id belongs to an earlier data directory: taking its place", "old", r.Registered, "peer", m.cfg.Peer)
			_, err = m.propose(ctx, ReplaceNode{Node: self, Old: r.Registered})
		}
		if err == nil {
			break
		}
		if !errors.Is(err, ErrAlive) && !errors.Is(err, ErrIncarnation) {
			return fmt.Errorf("join cluster: %w", err)
		}
		progress(err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("join cluster: %w (%w)", err, ctx.Err())
		case <-m.closing:
			return ErrClosed
		case <-time.After(replacePause):
		}
	}
	for {
		changed := m.Watch()
		if _, ok := m.State().ByPeer(m.cfg.Peer); ok {
			return m.WaitReady(ctx)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("join cluster: registered, but the leader has not sent its state: %w", ctx.Err())
		case <-m.closing:
			return ErrClosed
		}
	}
}

func (m *Meta) askStatus(ctx context.Context, peer string) (status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	r, err := m.ask(ctx, peer, opStatus, 0, nil)
	if err != nil {
		return status{}, err
	}
	if r.Status == nil {
		return status{}, fmt.Errorf("ask %s: answered without a status", peer)
	}
	return *r.Status, nil
}
