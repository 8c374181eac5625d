package snapfile

import (
	"errors"
	"io"
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
