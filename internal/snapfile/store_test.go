package snapfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/bench/faults/disk"
)

func TestSnapshotSurvivesAPowerLossOnceItIsClosed(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "mnt")
	d, err := disk.Mount(filepath.Join(dir, "backing"), at)
	if errors.Is(err, disk.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	open := func() *Store {
		s, err := Open(filepath.Join(at, "shards", "00001"), 2, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	take := func(s *Store, index uint64, content string) raft.SnapshotSink {
		w, err := s.Create(1, index, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
		return w
	}
	s := open()
	for i, content := range []string{"first", "second", "third"} {
		if err := take(s, uint64(i+1), content).Close(); err != nil {
			t.Fatal(err)
		}
	}
	unfinished := take(s, 4, "unfinished")
	t.Cleanup(func() { _ = unfinished.Cancel() }) // its directory is gone
	d.Cut()
	if _, err := d.Restore(nil); err != nil {
		t.Fatal(err)
	}
	s = open()
	list, err := s.List()
	if err != nil || len(list) != 2 || list[0].Index != 3 {
		t.Fatalf("after the power loss: %d snapshots (%v), want the latest two that were closed", len(list), err)
	}
	_, rc, err := s.Open(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(rc)
	if err := errors.Join(err, rc.Close()); err != nil || string(b) != "third" {
		t.Errorf("the latest holds %q (%v)", b, err)
	}
}

// A snapshot that is damaged anywhere must be refused: raft then takes the one
// before it, or does not start.
func TestSnapshotWithAnyByteChangedOrCutIsRefused(t *testing.T) {
	s, err := Open(t.TempDir(), 2, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Create(1, 7, 3, raft.Configuration{}, 5, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "the state of a shard"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"meta.json", "meta.sum", "state.bin"} {
		path := filepath.Join(s.dir, w.ID(), file)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range whole {
			changed := append([]byte(nil), whole...)
			changed[i] ^= 1 << (i % 8)
			for what, b := range map[string][]byte{"changed": changed, "last": whole[:i]} {
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
				if _, rc, err := s.Open(w.ID()); err == nil {
					_ = rc.Close()
					t.Errorf("%s with byte %d %s was opened", file, i, what)
				}
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, rc, err := s.Open(w.ID()); err != nil {
		t.Errorf("whole again: %v", err)
	} else if err := rc.Close(); err != nil {
		t.Error(err)
	}
}
