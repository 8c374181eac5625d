package node

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/cluster/meta"
)

// A sound node begins another life in its process, as the same incarnation, where
// that is simpler than to change what it is made of while it runs.

// errAnew is wrapped by what ends a life for that.
var errAnew = errors.New("the node begins anew")

var (
	// errDrainEnded ends the life of a drained node that is to be used again. Drained,
	// it has no client and leads nothing, so that beginning anew costs nobody
	// anything, and there is one way in which a node begins to serve.
	errDrainEnded = fmt.Errorf("the drain was ended: %w", errAnew)
	// errMetaReplaced ends a life whose raft of the meta group is of no use any more,
	// see watchMetaSnapshots.
	errMetaReplaced = fmt.Errorf("a snapshot has replaced the log of the meta group: %w", errAnew)
)

// nextLife says what follows a life that ended with err: another one, which begins
// with the damage that this one has found, or none.
func (d *damages) nextLife(err error) (damage error, again bool) {
	if errors.Is(err, errAnew) {
		return nil, true
	}
	var found *damageError
	if !errors.As(err, &found) {
		return nil, false
	}
	d.note(damageKind(found), found.cause.Error())
	return found, true
}

// watchMetaSnapshots refuses snapshots of the meta group that hold nothing new,
// and begins anew after one that has replaced a log that reached as far: raft
// 1.8.0 goes on with the cached end of a log that it has emptied
// (hashicorp/raft#697), would never accept an append again, and the node would
// never hear of a change of the table. Shards are opened again one by one; the
// meta group is under everything else, so that the node goes with it. It happens
// to a leader that died with what nobody else has, and hardly ever then.
func (n *node) watchMetaSnapshots() {
	group := n.log.Group(meta.Group)
	var end atomic.Uint64 // of the log when a snapshot was offered
	n.peers.OnSnapshot(meta.Group, func(r *raft.InstallSnapshotRequest) bool {
		if last, err := group.LastIndex(); err == nil {
			end.Store(last)
		}
		return n.meta.KnowsSnapshot(r)
	}, func(r *raft.InstallSnapshotRequest) {
		if end.Load() >= r.LastLogIndex {
			n.logger.Warn("a snapshot has replaced the log of the meta group, which reached further: this node begins anew", "snapshot", r.LastLogIndex, "log", end.Load())
			n.fail(errMetaReplaced)
		}
	})
}
