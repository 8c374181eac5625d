package shard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sluice-iot/sluice/telemetry"
)

// A replica that has left its node leaves its term and its vote behind, and comes
// back, if ever, as its next incarnation: raft notes votes by the address, which is
// the same, so it must not ask or vote twice in a term. Before
// anything is removed they are written, durably, into a file beside the replica's
// directory; while that file is there the replica is not opened until the removal
// is complete. So a crash inside leaves either the whole replica or none of it.

// retirement is the content of that file.
type retirement struct {
	Version  int    `json:"version"`
	Term     uint64 `json:"term"`
	VoteTerm uint64 `json:"vote_term"`
	Vote     []byte `json:"vote"`
	Rows     bool   `json:"rows"` // the store's rows go too
	// Aside is where the directory goes instead of being removed.
	Aside string `json:"aside"`
	// Incarnation is what the replica is when it comes back.
	Incarnation uint32 `json:"incarnation"`
}

const retirementVersion = 2

// Keys of hashicorp/raft 1.8.0 in its stable store.
var (
	keyTerm     = []byte("CurrentTerm")
	keyVoteTerm = []byte("LastVoteTerm")
	keyVote     = []byte("LastVoteCand")
)

func (h *Host) dir(id telemetry.ShardID) string {
	return filepath.Join(h.cfg.Dir, fmt.Sprintf("%05d", id))
}

func (h *Host) retirementFile(id telemetry.ShardID) string { return h.dir(id) + ".retired" }

// retire closes a replica that the cluster has moved away, and lets go of what
// it holds.
func (h *Host) retire(s *hosted) error {
	if !h.detach(s) {
		return nil // being opened again: the next Reconcile finds it
	}
	if err := s.close(); err != nil {
		s.logger.Error("close replica that has moved away", "err", err)
	}
	if err := h.beginRetirement(s.id, s.log, retirement{Rows: true}); err != nil {
		return err
	}
	if err := h.finishRetirement(s.id, s.log); err != nil {
		return err
	}
	s.logger.Info("replica has moved away")
	return nil
}

// detach takes a replica off the list; false when it is not the one there.
func (h *Host) detach(s *hosted) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.shards[s.id] != s {
		return false
	}
	delete(h.shards, s.id)
	delete(h.builds, s.id)
	delete(h.rotten, s.id)
	return true
}

func (h *Host) beginRetirement(id telemetry.ShardID, log Log, r retirement) (err error) {
	if _, err := os.Stat(h.retirementFile(id)); !errors.Is(err, fs.ErrNotExist) {
		return err // it has begun: the log may have forgotten by now what is written there
	}
	r.Version = retirementVersion
	incarnation, err := incarnationOf(log)
	if err != nil {
		return fmt.Errorf("read incarnation of shard %d: %w", id, err)
	}
	r.Incarnation = incarnation + 1
	if r.Term, err = log.GetUint64(keyTerm); err != nil {
		return fmt.Errorf("read term of shard %d: %w", id, err)
	}
	if r.VoteTerm, err = log.GetUint64(keyVoteTerm); err != nil {
		return fmt.Errorf("read vote of shard %d: %w", id, err)
	}
	if r.VoteTerm > 0 {
		if r.Vote, err = log.Get(keyVote); err != nil {
			return fmt.Errorf("read vote of shard %d: %w", id, err)
		}
	}
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode retirement of shard %d: %w", id, err)
	}
	if err := writeSynced(h.retirementFile(id), b); err != nil {
		return fmt.Errorf("record retirement of shard %d: %w", id, err)
	}
	return nil
}

// finishRetirement removes what a retired replica has left, if there is one.
func (h *Host) finishRetirement(id telemetry.ShardID, log Log) error {
	b, err := os.ReadFile(h.retirementFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read retirement of shard %d: %w", id, err)
	}
	var r retirement
	if err := json.Unmarshal(b, &r); err != nil || r.Version != retirementVersion {
		return fmt.Errorf("decode retirement of shard %d: version %d, this program reads %d: %w", id, r.Version, retirementVersion, err)
	}
	group, ok := log.(interface{ Remove() error })
	if !ok {
		return fmt.Errorf("retire shard %d: %w", id, errNotRemovable)
	}
	if err := group.Remove(); err != nil {
		return fmt.Errorf("remove shard %d from the log: %w", id, err)
	}
	if err := r.remember(log); err != nil {
		return fmt.Errorf("keep the vote of shard %d: %w", id, err)
	}
	if r.Aside != "" {
		if err := os.Rename(h.dir(id), filepath.Join(h.cfg.Dir, r.Aside)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set aside snapshots of shard %d: %w", id, err)
		}
	} else if err := os.RemoveAll(h.dir(id)); err != nil {
		return fmt.Errorf("remove snapshots of shard %d: %w", id, err)
	}
	if r.Rows && h.deps.Drop != nil {
		if err := h.deps.Drop(id); err != nil {
			return fmt.Errorf("remove rows of shard %d: %w", id, err)
		}
	}
	if err := errors.Join(os.Remove(h.retirementFile(id)), syncDir(h.cfg.Dir)); err != nil {
		return fmt.Errorf("end retirement of shard %d: %w", id, err)
	}
	return nil
}

// remember stores incarnation, term and vote in the emptied log.
func (r *retirement) remember(log Log) error {
	if err := log.SetUint64(keyIncarnation, uint64(r.Incarnation)); err != nil {
		return err
	}
	if r.VoteTerm > 0 {
		if err := errors.Join(log.SetUint64(keyVoteTerm, r.VoteTerm), log.Set(keyVote, r.Vote)); err != nil {
			return err
		}
	}
	if r.Term > 0 {
		return log.SetUint64(keyTerm, r.Term)
	}
	return nil
}

// writeSynced makes a file with a content appear whole or not at all.
func writeSynced(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
