package shard

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/obs"
	"github.com/sluice-iot/sluice/internal/snapfile"
	"github.com/sluice-iot/sluice/telemetry"
)

// A replica whose latest snapshot cannot be read back has lost the state up to
// it, but neither its vote nor, for the log is another file, what it has
// acknowledged since. It is not started. It asks the leader to be removed from
// the group; when it is, it sets the snapshots aside, empties its log but for
// term and vote, and is built anew as its next incarnation, see incarnation.go.
// Until then it is silent: it counts for no quorum and stands in no election, but
// keeps its log, which may be one of two that have an entry.

// DamageError is a snapshot that cannot be read back.
type DamageError struct {
	Shard    telemetry.ShardID
	Snapshot string
	Err      error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("snapshot %s of shard %d is damaged: %v", e.Snapshot, e.Shard, e.Err)
}

func (e *DamageError) Unwrap() error { return e.Err }

// broken is a replica that is not started because of damage.
type broken struct {
	place       Replica
	err         *DamageError
	incarnation uint32
}

// checkSnapshots verifies the snapshot that a replica would start from.
func (h *Host) checkSnapshots(id telemetry.ShardID, dir string, log raft.LogStore) error {
	logger := h.logger.With("shard", id)
	name, err := CheckSnapshots(logger, dir, log, func(name string, err error) {
		h.reportDamage(logger, &DamageError{Shard: id, Snapshot: name, Err: err}, "snapshot is damaged: the replica starts from its log, which reaches back far enough")
	})
	if name != "" {
		return &DamageError{Shard: id, Snapshot: name, Err: err}
	}
	return err
}

// CheckSnapshots verifies the latest raft snapshot below dir; name is that of a
// damaged one that is needed, with the reason as err. One that is not needed,
// because the log reaches back to the one before it or to its own beginning, is
// told to spared and renamed: raft would start from an older one by itself, but
// not at all where every one is damaged. So is a snapshot that a crash has left
// unfinished: nothing was deleted because of it.
func CheckSnapshots(logger *slog.Logger, dir string, log raft.LogStore, spared func(name string, err error)) (name string, err error) {
	names, err := snapshotNames(dir)
	if len(names) == 0 || err != nil {
		return "", err
	}
	files, err := snapfile.Open(dir, snapshotsKept, obs.Hclog(logger, hclog.Error))
	if err != nil {
		return "", fmt.Errorf("open snapshots in %s: %w", dir, err)
	}
	var unfinished, damaged []string
	var damage error
	upTo, reach := uint64(0), uint64(0) // what can be started from, and what the log must reach without the damaged one
	for _, n := range names {
		if !snapfile.Finished(dir, n.id) {
			unfinished = append(unfinished, n.id)
			continue
		}
		meta, rc, err := files.Open(n.id) // verifies its checksums
		if err != nil {
			damaged = append(damaged, n.id)
			damage, reach = errors.Join(damage, err), max(reach, n.order[1])
			continue
		}
		if err := rc.Close(); err != nil {
			return "", fmt.Errorf("close snapshot %s: %w", n.id, err)
		}
		upTo = meta.Index
		break
	}
	if damage == nil && len(unfinished) == 0 {
		return "", nil
	}
	first, last, err := ends(log)
	if err != nil {
		return "", fmt.Errorf("look for what is behind snapshot %s: %w", names[0].id, err)
	}
	if first > upTo+1 || damage != nil && (first == 0 || last < reach) {
		return names[0].id, errors.Join(damage, fmt.Errorf("the log has entries %d to %d, and the snapshots are good up to %d", first, last, upTo))
	}
	logger.Warn("latest snapshot cannot be used, the log reaches back to the one before", "dir", dir, "snapshot", names[0].id, "err", damage)
	if damage != nil {
		spared(damaged[0], damage)
	}
	return "", errors.Join(ignore(dir, unfinished, ".tmp"), ignore(dir, damaged, ".damaged.tmp"))
}

// ignore renames snapshots so that raft does not see them; it skips names that
// end in .tmp.
func ignore(dir string, ids []string, suffix string) error {
	for _, id := range ids {
		path := filepath.Join(dir, "snapshots", id)
		if err := os.Rename(path, path+suffix); err != nil {
			return fmt.Errorf("set aside snapshot: %w", err)
		}
	}
	return nil
}

func ends(log raft.LogStore) (first, last uint64, err error) {
	if first, err = log.FirstIndex(); err != nil {
		return 0, 0, err
	}
	last, err = log.LastIndex()
	return first, last, err
}

// snapshotName is a snapshot by its directory; order is term, index and time.
type snapshotName struct {
	id    string
	order [3]uint64
}

// snapshotNames lists raft's snapshots, the latest first. It goes by the names,
// which a damaged description does not touch.
func snapshotNames(dir string) (out []snapshotName, err error) {
	entries, err := os.ReadDir(filepath.Join(dir, "snapshots"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	for _, e := range entries {
		n := snapshotName{id: e.Name()}
		if strings.HasSuffix(n.id, ".tmp") || !e.IsDir() {
			continue
		}
		if _, err := fmt.Sscanf(n.id, "%d-%d-%d", &n.order[0], &n.order[1], &n.order[2]); err != nil {
			continue // not raft's
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b snapshotName) int { return slices.Compare(b.order[:], a.order[:]) })
	return out, nil
}

// keepBroken remembers a replica that must not be started, until it has left.
func (h *Host) keepBroken(r Replica, err *DamageError) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.Left {
		delete(h.brokens, r.Shard)
		return nil
	}
	if b := h.brokens[r.Shard]; b != nil {
		b.place = r
		return nil
	}
	incarnation, ierr := incarnationOf(h.deps.Log(GroupOf(r.Shard)))
	if ierr != nil {
		return fmt.Errorf("read incarnation of shard %d: %w", r.Shard, ierr)
	}
	h.brokens[r.Shard] = &broken{place: r, err: err, incarnation: incarnation}
	h.reportDamage(h.logger.With("shard", r.Shard), err, "replica is damaged: it neither votes nor leads until it has been rebuilt from its peers")
	return nil
}

// Damaged lists the replicas here that are damaged and not rebuilt yet.
func (h *Host) Damaged() []error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var out []error
	for _, b := range h.brokens {
		out = append(out, b.err)
	}
	return out
}

// reopenBroken begins anew with a broken replica: a leader wants to add it, so
// the group has gone on without it.
func (h *Host) reopenBroken(id telemetry.ShardID) {
	h.mu.RLock()
	b := h.brokens[id]
	h.mu.RUnlock()
	if b == nil {
		return
	}
	h.opening.Lock()
	defer h.opening.Unlock()
	h.mu.RLock()
	again, closed, place := h.brokens[id], h.closed, b.place
	h.mu.RUnlock()
	if again != b || closed {
		return
	}
	err := h.setAside(id)
	if err == nil {
		err = h.open(place)
	}
	if err != nil { // the leader asks again
		h.logger.Error("rebuild damaged replica", "shard", id, "err", err)
		return
	}
	h.mu.Lock()
	delete(h.brokens, id)
	h.mu.Unlock()
	h.logger.Info("damaged replica set aside, it is being rebuilt", "shard", id)
}

// setAside keeps the damaged snapshots under another name, empties the log, and
// makes the replica its next incarnation.
func (h *Host) setAside(id telemetry.ShardID) error {
	log := h.deps.Log(GroupOf(id))
	aside := fmt.Sprintf("%s.damaged-%d", filepath.Base(h.dir(id)), h.cfg.Clock.Micros(time.Now()))
	if err := h.beginRetirement(id, log, retirement{Aside: aside}); err != nil {
		return err
	}
	return h.finishRetirement(id, log)
}
