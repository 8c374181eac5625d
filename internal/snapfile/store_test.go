package snapfile

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

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
