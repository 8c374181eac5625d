package snapfile

import (
	"fmt"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// subdir is where raft's store keeps its snapshots.
const subdir = "snapshots"

// Store is a raft.SnapshotStore.
type Store struct {
	*raft.FileSnapshotStore
	dir string
}

// Open makes the directory, durably, and keeps the latest retain snapshots in it.
func Open(dir string, retain int, logger hclog.Logger) (*Store, error) {
	if retain < 2 {
		return nil, fmt.Errorf("open snapshots: %d are to be kept, want at least 2: one that is being made needs one to fall back on", retain)
	}
	dir = filepath.Join(dir, subdir)
	if err := (vfs.OS{}).MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("make snapshot directory: %w", err)
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(filepath.Dir(dir), retain, logger)
	if err != nil {
		return nil, err
	}
	return &Store{FileSnapshotStore: files, dir: dir}, nil
}

// Create implements raft.SnapshotStore.
func (s *Store) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, configurationIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	files, err := s.FileSnapshotStore.Create(version, index, term, c, configurationIndex, t)
	if err != nil {
		return nil, err
	}
	return &sink{files, s.dir}, nil
}

type sink struct {
	raft.SnapshotSink
	dir string
}

// Close implements raft.SnapshotSink.
func (s *sink) Close() error {
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	if err := (vfs.OS{}).SyncDir(filepath.Join(s.dir, s.ID())); err != nil {
		return fmt.Errorf("sync snapshot %s: %w", s.ID(), err)
	}
	return nil
}
