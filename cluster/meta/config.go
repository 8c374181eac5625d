package meta

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/cluster"
)

// Group is the id of the meta group on the transport and in the log.
const Group uint32 = 0

// appendEntriesMax is how many entries one message to a follower has at most.
const appendEntriesMax = 64

// Config of the meta group. Durations are wall time.
type Config struct {
	// Peer is this node's peer id. Required.
	Peer string
	// ClusterID is the cluster the data directory has adopted, "" until then.
	// When the group turns out to be another one, WaitReady says so.
	ClusterID string
	// ElectionTimeout is raft's heartbeat and election timeout. Default 1.5 s.
	// Shorter ones cause elections when the CPU is busy; a fast fail-over comes
	// from LeaderDown and Stand.
	ElectionTimeout time.Duration
	// CommitTimeout is how often an idle leader tells the others what is
	// committed, and so how late their State may be. Default 100 ms.
	CommitTimeout time.Duration
	// SnapshotInterval is how often the log is looked at. Default 1 min.
	SnapshotInterval time.Duration
	// SnapshotThreshold is the number of entries that is worth a snapshot, and
	// TrailingLogs how many stay behind it so that a follower which was away
	// for a moment needs no snapshot. Default 256 each.
	SnapshotThreshold uint64
	TrailingLogs      uint64
	// VotersMax bounds the voters. Default 5: two may be lost at once, and more
	// would only make each commit wait for more disks.
	VotersMax int
	// ReconcileInterval is how often the leader compares raft's members with the
	// registry when nothing tells it to. Default 1 s.
	ReconcileInterval time.Duration
}

// DefaultConfig fills in every default.
func DefaultConfig(peer string) Config {
	return Config{
		Peer:              peer,
		ElectionTimeout:   1500 * time.Millisecond,
		CommitTimeout:     100 * time.Millisecond,
		SnapshotInterval:  time.Minute,
		SnapshotThreshold: 256,
		TrailingLogs:      256,
		VotersMax:         5,
		ReconcileInterval: time.Second,
	}
}

// Validate reports every problem at once.
func (c Config) Validate() error {
	var errs []error
	if _, _, err := cluster.SplitPeer(c.Peer); err != nil {
		errs = append(errs, fmt.Errorf("peer: %w", err))
	}
	for _, d := range []struct {
		name string
		v    time.Duration
	}{
		{"election timeout", c.ElectionTimeout}, {"commit timeout", c.CommitTimeout},
		{"snapshot interval", c.SnapshotInterval}, {"reconcile interval", c.ReconcileInterval},
	} {
		if d.v < 10*time.Millisecond { // below that raft refuses or spins
			errs = append(errs, fmt.Errorf("%s is %v, less than 10ms", d.name, d.v))
		}
	}
	if c.CommitTimeout > c.ElectionTimeout/2 {
		errs = append(errs, fmt.Errorf("commit timeout %v is more than half of the election timeout %v", c.CommitTimeout, c.ElectionTimeout))
	}
	if c.VotersMax < 1 {
		errs = append(errs, fmt.Errorf("voters max is %d, less than 1", c.VotersMax))
	}
	return errors.Join(errs...)
}

// Stores is the durable log and vote of the group. The caller closes it, after
// Meta.
type Stores interface {
	raft.LogStore
	raft.StableStore
}

// Forwarder carries a request to the meta group of another node, which passes it
// to HandleForward, and returns its answer. It must return when ctx ends and may
// be called from many goroutines.
type Forwarder interface {
	Forward(ctx context.Context, peer string, body []byte) ([]byte, error)
}

// Poker makes this node's own raft group stand for election at once.
type Poker interface {
	Poke(group uint32) error
}

// Deps are what the group runs on; those without a word on nil are required.
type Deps struct {
	Stores    Stores
	Snapshots raft.SnapshotStore
	Transport raft.Transport // its LocalAddr is Config.Peer; closed by Meta.Close
	Forwarder Forwarder
	// Poker, when nil, leaves elections to raft's timers.
	Poker Poker
	// Contacts lists peers that may know the leader when this node does not:
	// the live members of gossip; nil: nobody. It must not block.
	Contacts func() []string
	// Alive reports whether a peer is running as far as this node can tell; the
	// leader asks before it lets another incarnation take the peer's place. nil:
	// nobody is. It must not block.
	Alive func(peer string) bool
	// SlowDisk reports whether the disk of the log is slow lately, or not to be
	// trusted; this node does not lead then if another voter can. nil: not known. It
	// must not block.
	SlowDisk func() bool
}

func (d Deps) validate() error {
	if d.Stores == nil || d.Snapshots == nil || d.Transport == nil || d.Forwarder == nil {
		return errors.New("stores, snapshots, transport and forwarder are required")
	}
	return nil
}

func (c Config) raft() *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.Peer)
	rc.HeartbeatTimeout = c.ElectionTimeout
	rc.ElectionTimeout = c.ElectionTimeout
	rc.LeaderLeaseTimeout = c.ElectionTimeout * 2 / 3 // a cut-off leader steps down before others elect
	rc.CommitTimeout = c.CommitTimeout
	rc.SnapshotInterval = c.SnapshotInterval
	rc.SnapshotThreshold = c.SnapshotThreshold
	rc.TrailingLogs = c.TrailingLogs
	rc.MaxAppendEntries = appendEntriesMax
	rc.ShutdownOnRemove = false // an evicted node keeps answering State until its process is stopped
	rc.NoLegacyTelemetry = true
	return rc
}
