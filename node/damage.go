package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/sluice-iot/sluice/cluster/gossip"
	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/internal/obs"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/wal"
)

// A node whose log has lost or damaged anything must not go on under its name: it
// may have voted for what it does not remember. It sets aside what it has,
// deletes nothing, takes a new incarnation, asks the meta group to put that in
// the place of the old one, and is built from its peers. Where too few of those
// are left to commit that, it waits, says so, and keeps everything.

// damageError ends a life of the node; the next one begins with what is found.
type damageError struct{ cause error }

func (e *damageError) Error() string { return "data directory is damaged: " + e.cause.Error() }

func (e *damageError) Unwrap() error { return e.cause }

var errLogGone = errors.New("the log is gone")

// Run runs a node until ctx ends or something fatal happens. Damage is not fatal:
// the process goes on as another incarnation. version is what status and API say.
func Run(ctx context.Context, logger *slog.Logger, version string, cfg Config) error {
	return runOn(ctx, logger, version, cfg, system{})
}

// runOn runs a node on a system. What wraps errAnew is not fatal either: the node
// goes on as the same incarnation.
func runOn(ctx context.Context, logger *slog.Logger, version string, cfg Config, sys system) error {
	var damage error
	sys.found = newDamages()
	for {
		err := runLife(ctx, logger, version, cfg, sys, damage)
		next, again := sys.found.nextLife(err)
		if ctx.Err() != nil || !again {
			return err
		}
		if next != nil {
			logger.Error("data directory is damaged: this node stops voting and is rebuilt as a new incarnation", "node", cfg.Node.ID, "err", err)
		}
		damage = next
	}
}

// openLog opens the log, after setting aside what the last life ended with.
func (n *node) openLog() error {
	if n.damage != nil {
		if err := n.renew(n.damage); err != nil {
			return err
		}
	}
	err := n.tryLog()
	var rot *wal.CorruptError
	if errors.As(err, &rot) || errors.Is(err, errLogGone) {
		return &damageError{err} // the next life begins with setting it aside
	}
	return err
}

func (n *node) tryLog() error {
	keys, err := n.cfg.WAL.Encryption.Keys()
	if err != nil {
		return err
	}
	log, err := wal.Open(n.logger, n.registry, wal.Config{
		Dir: n.sys.logDir(n.cfg.Node.Data), FS: n.sys.log, Linger: n.sys.logLinger, Node: n.identity.Peer(), SegmentBytes: int64(n.cfg.WAL.SegmentMiB) << 20,
		SpareSegments: n.cfg.WAL.spares(), Encrypt: n.cfg.WAL.Encryption.Enabled, Keys: keys, OnDamage: n.onLogDamage,
		ScrubBytesPerSecond: int64(n.cfg.WAL.ScrubMiBPerSecond) << 20, ScrubEvery: n.cfg.WAL.ScrubEvery,
	})
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if n.identity.Joined() && len(log.Groups()) == 0 {
		return errors.Join(errLogGone, log.Close())
	}
	n.log = log
	return nil
}

// onLogDamage hears of rot that a reader or the scrubber has found.
func (n *node) onLogDamage(err *wal.CorruptError) { n.fail(&damageError{err}) }

// fail ends the life; the first reason counts.
func (n *node) fail(err error) {
	select {
	case n.failed <- err:
	default:
	}
}

// renew begins another incarnation.
func (n *node) renew(cause error) error {
	old := n.identity.Peer()
	aside, err := n.identity.Renew()
	if err != nil {
		return fmt.Errorf("set aside the damaged data directory: %w (%w)", err, cause)
	}
	n.logger.Error("data directory set aside, nothing is deleted; this node is rebuilt from its peers", "old", old, "peer", n.identity.Peer(), "aside", aside, "err", cause)
	return nil
}

// checkMetaSnapshots finds a meta group that could not start from its snapshot.
func (n *node) checkMetaSnapshots() error {
	name, err := shard.CheckSnapshots(n.logger, filepath.Join(n.cfg.Node.Data, "meta"), n.log.Group(meta.Group), func(name string, err error) {
		n.sys.found.note(kindSnapshot, fmt.Sprintf("snapshot %s of the meta group is damaged, its log reaches back far enough: %v", name, err))
	})
	if name != "" {
		return &damageError{fmt.Errorf("snapshot %s of the meta group: %w", name, err)}
	}
	return err
}

// alive reports whether an incarnation of a node runs as far as this node can
// tell; another one is not let in then.
func (n *node) alive(peer string) bool {
	if n.mux.Connected(peer) {
		return true
	}
	for _, m := range n.gossip.Members() {
		if m.Peer == peer && m.State == gossip.Alive {
			return true
		}
	}
	return false
}

// joinWarnEvery spaces the warnings of a node that waits to be let in.
const joinWarnEvery = 10 * time.Second

// join makes this node a member, however long that takes.
func (n *node) join(ctx context.Context, self meta.Node) error {
	why := "no quorum of the meta group has answered yet"
	n.setWaiting(why)
	defer n.setWaiting("")
	said := time.Time{}
	return n.meta.Join(ctx, self, func(err error) {
		n.setWaiting(obs.OneLine(err.Error()))
		if time.Since(said) > joinWarnEvery {
			said = time.Now()
			n.logger.Warn("waiting to take the place of an earlier incarnation", "peer", n.identity.Peer(), "err", err)
		}
	})
}

func (n *node) setWaiting(why string) { n.waiting.Store(&why) }

// clusterExists reports whether this node has heard of a cluster to be part of.
func (n *node) clusterExists() bool {
	if n.identity.ClusterID() != "" {
		return true
	}
	for _, m := range n.gossip.Members() {
		if m.ClusterID != "" {
			return true
		}
	}
	return false
}

// troubles are the alarms of this node alone.
func (n *node) troubles() (out []string) {
	id := n.identity.Node()
	if why := n.waiting.Load(); why != nil && *why != "" && n.clusterExists() {
		out = append(out, fmt.Sprintf("node %s waits to be part of the cluster: %s", id, *why))
	}
	if n.host != nil {
		for _, err := range n.host.Damaged() {
			out = append(out, fmt.Sprintf("node %s: %s; it waits for the shard's leader to rebuild it", id, obs.OneLine(err.Error())))
		}
		for _, err := range n.host.Rotten() {
			out = append(out, fmt.Sprintf("node %s: %s; another one is being taken, and the replica does not vote meanwhile", id, obs.OneLine(err.Error())))
		}
	}
	if name := n.rotten.Load(); name != nil {
		out = append(out, fmt.Sprintf("node %s: snapshot %s of the meta group is damaged; another one is being taken", id, *name))
	}
	out = append(out, n.segmentTroubles()...)
	if t := n.holdTrouble(); t != "" {
		out = append(out, t)
	}
	return out
}

// complete implements shard.Deps.Complete.
func (n *node) complete(id telemetry.ShardID, upTo uint64) bool {
	return n.fetcher == nil || n.fetcher.complete(id, upTo)
}
