package snapfile

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
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
	return &sink{SnapshotSink: files, dir: s.dir}, nil
}

// Open implements raft.SnapshotStore. Raft's own checksum covers the state; who
// is a member, and at which index, stands in the other file.
func (s *Store) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, err := os.ReadFile(filepath.Join(s.dir, id, metaFile))
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot: %w", err)
	}
	sum, err := os.ReadFile(filepath.Join(s.dir, id, sumFile))
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot: %w", err)
	}
	if string(sum) != sumOf(meta) {
		return nil, nil, fmt.Errorf("snapshot %s is damaged: %s has not the checksum in %s", id, metaFile, sumFile)
	}
	return s.FileSnapshotStore.Open(id)
}

// Finished reports whether the snapshot id below dir was taken to its end: Close
// has written its last file. One that was not may be forgotten.
func Finished(dir, id string) bool {
	_, err := os.Stat(filepath.Join(dir, subdir, id, sumFile))
	return !errors.Is(err, fs.ErrNotExist)
}

// The files of a snapshot that are looked at here.
const (
	metaFile = "meta.json"
	sumFile  = "meta.sum" // sumOf of metaFile
)

func sumOf(meta []byte) string {
	return fmt.Sprintf("crc32c %08x\n", crc32.Checksum(meta, crc32.MakeTable(crc32.Castagnoli)))
}

type sink struct {
	raft.SnapshotSink
	dir  string
	done bool
}

// Close implements raft.SnapshotSink.
func (s *sink) Close() error {
	if s.done {
		return nil
	}
	s.done = true
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, s.ID())
	meta, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		return fmt.Errorf("finish snapshot: %w", err)
	}
	if err := writeSynced(filepath.Join(dir, sumFile), sumOf(meta)); err != nil {
		return fmt.Errorf("finish snapshot: %w", err)
	}
	if err := (vfs.OS{}).SyncDir(dir); err != nil {
		return fmt.Errorf("sync snapshot %s: %w", s.ID(), err)
	}
	return nil
}

// Cancel implements raft.SnapshotSink.
func (s *sink) Cancel() error {
	s.done = true
	return s.SnapshotSink.Cancel()
}

func writeSynced(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
