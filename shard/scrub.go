package shard

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/snapfile"
	"github.com/sluice-iot/sluice/telemetry"
)

// A snapshot of a shard that is idle lies on the disk for months, and is needed
// at the next start or when a follower is far behind. So snapshots are read back
// while the replica runs. One that has rotted has cost nothing yet: what it held
// is in memory. The replica writes another one in its place at once, and is as
// good as before; for that moment it stays out of elections, see abstain.go. Only
// if the node dies in between does the next start find the damage, and then the
// replica is rebuilt from its peers.

// Scrub says how snapshots are read back.
type Scrub struct {
	Every          time.Duration // how often everything is read; 0 is never
	BytesPerSecond int64         // 0 is as fast as may be
}

// scrubRetry is how soon a damaged snapshot that could not be replaced is tried
// again.
const scrubRetry = 2 * time.Second

// SnapshotDamage reads the latest finished snapshot below dir back. name is that of
// a damaged one, with the reason as err; an error without a name says nothing
// about the snapshot.
func SnapshotDamage(ctx context.Context, dir string, scrub Scrub) (name string, err error) {
	latest := func() (string, error) {
		names, err := snapshotNames(dir)
		for _, n := range names {
			if snapfile.Finished(dir, n.id) {
				return n.id, nil
			}
		}
		return "", err
	}
	id, err := latest()
	if id == "" || err != nil {
		return "", err
	}
	err = snapfile.Verify(dir, id, func(bytes int) error { return scrub.wait(ctx, bytes) })
	if err == nil || ctx.Err() != nil {
		return "", ctx.Err()
	}
	if now, lerr := latest(); lerr != nil || now != id {
		return "", lerr // replaced, or removed, while it was read
	}
	return id, err
}

func (c Scrub) wait(ctx context.Context, bytes int) error {
	if c.BytesPerSecond <= 0 || bytes == 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(float64(bytes) / float64(c.BytesPerSecond) * float64(time.Second))):
		return nil
	}
}

// Due runs look at once every c.Every, and after scrubRetry as long as it is not
// content.
func (c Scrub) Due(ctx context.Context, look func(context.Context) (content bool)) {
	if c.Every <= 0 {
		return
	}
	for next := c.Every; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
		if next = c.Every; !look(ctx) {
			next = min(c.Every, scrubRetry)
		}
	}
}

// scrubSnapshots looks at every replica here; false when one is still damaged.
func (h *Host) scrubSnapshots(ctx context.Context) bool {
	whole := true
	for _, s := range h.all() {
		name, err := SnapshotDamage(ctx, h.dir(s.id), h.cfg.Scrub)
		switch {
		case ctx.Err() != nil:
			return true
		case name != "":
			whole = h.replaceSnapshot(s, &DamageError{Shard: s.id, Snapshot: name, Err: err}) && whole
		case err != nil && !errors.Is(err, fs.ErrNotExist): // of descriptors, for example
			s.logger.Warn("snapshot not read back", "err", err)
		default:
			h.replaced(s)
		}
	}
	return whole
}

// replaceSnapshot puts a snapshot of the state in memory in the place of a damaged
// one, and reports whether it is there and whole.
func (h *Host) replaceSnapshot(s *hosted, damage *DamageError) bool {
	if !h.noteRotten(s, damage) {
		return true
	}
	if s.raft.State() == raft.Leader && s.readable.Load() != 0 {
		h.relieveOne(s)
	}
	err := s.snapshot()
	if err == nil {
		var name string
		if name, err = SnapshotDamage(h.ctx, h.dir(s.id), Scrub{}); name == "" && err == nil {
			h.replaced(s)
			s.logger.Info("damaged snapshot replaced by one of the state in memory", "snapshot", damage.Snapshot)
			return true
		}
	}
	s.logger.Error("damaged snapshot not replaced, trying again", "snapshot", damage.Snapshot, "err", err)
	return false
}

// replaced notes that the latest snapshot of a replica is whole.
func (h *Host) replaced(s *hosted) {
	h.mu.Lock()
	_, was := h.rotten[s.id]
	delete(h.rotten, s.id)
	h.mu.Unlock()
	if was {
		_ = h.abstains(s.id, s.ballot) // says that it is repaired
	}
}

// noteRotten reports a damaged snapshot of a running replica, once; false when the
// replica does not run any more.
func (h *Host) noteRotten(s *hosted, damage *DamageError) bool {
	h.mu.Lock()
	runs := h.shards[s.id] == s
	known := h.rotten[s.id]
	if runs {
		h.rotten[s.id] = damage
	}
	h.mu.Unlock()
	if runs && (known == nil || known.Snapshot != damage.Snapshot) {
		h.reportDamage(s.logger, damage, "snapshot is damaged: another one is taken of the state in memory")
		_ = h.abstains(s.id, s.ballot) // from now on; says so
	}
	return runs
}

func (h *Host) reportDamage(logger *slog.Logger, damage *DamageError, text string) {
	h.metrics.damaged.Inc()
	logger.Error(text, "err", damage)
	if h.deps.OnDamage != nil {
		h.deps.OnDamage(damage)
	}
}

// Rotten lists the damaged snapshots of replicas that run, until they have been
// replaced.
func (h *Host) Rotten() []error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	ids := make([]telemetry.ShardID, 0, len(h.rotten))
	for id := range h.rotten {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var out []error
	for _, id := range ids {
		out = append(out, h.rotten[id])
	}
	return out
}
