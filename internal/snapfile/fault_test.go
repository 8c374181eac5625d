package snapfile

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/bench/faults/disk"
)

func mount(t *testing.T) (*disk.Disk, string) {
	t.Helper()
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
	return d, filepath.Join(at, "shards", "00001")
}

// take opens the store of dir and takes a snapshot whose content is its index.
func take(dir string, index uint64) error {
	s, err := Open(dir, 2, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	w, err := s.Create(1, index, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, content(index)); err != nil {
		return errors.Join(err, w.Cancel())
	}
	return w.Close()
}

func content(index uint64) string { return fmt.Sprintf("the state at %d", index) }

// latest is the newest snapshot that opens, which is what raft begins with.
func latest(dir string) (uint64, error) {
	s, err := Open(dir, 2, hclog.NewNullLogger())
	if err != nil {
		return 0, err
	}
	list, err := s.List()
	if err != nil {
		return 0, err
	}
	for _, meta := range list {
		_, rc, err := s.Open(meta.ID)
		if err != nil {
			continue
		}
		b, err := io.ReadAll(rc)
		if err := errors.Join(err, rc.Close()); err != nil {
			return 0, err
		}
		if string(b) != content(meta.Index) {
			return 0, fmt.Errorf("snapshot %d holds %q", meta.Index, b)
		}
		return meta.Index, nil
	}
	return 0, errors.New("no snapshot opens")
}

// check takes a third snapshot while strike's fault is there, has heal end it,
// and wants the latest one that was taken: the third for sure if it said so.
func check(t *testing.T, dir string, strike func(), heal func()) (done bool) {
	t.Helper()
	for i := range uint64(2) {
		if err := take(dir, i+1); err != nil {
			t.Fatal(err)
		}
	}
	strike()
	err := take(dir, 3)
	heal()
	got, openErr := latest(dir)
	if openErr != nil || got < 2 || (err == nil && got != 3) {
		t.Fatalf("third snapshot: %v; the latest afterwards is %d (%v)", err, got, openErr)
	}
	if err := take(dir, 4); err != nil {
		t.Fatalf("the next snapshot: %v", err)
	}
	if got, err := latest(dir); err != nil || got != 4 {
		t.Fatalf("the latest is %d (%v), want 4", got, err)
	}
	return err == nil
}

func TestPowerLossAtEveryOperationLeavesASnapshot(t *testing.T) {
	for n := 0; ; n++ {
		over := true
		for seed := range uint64(4) {
			rng := rand.New(rand.NewPCG(seed, uint64(n)))
			if seed == 0 {
				rng = nil // all that was not synced is gone
			}
			t.Run(fmt.Sprintf("change=%d/seed=%d", n, seed), func(t *testing.T) {
				d, dir := mount(t)
				heal := func() {
					over = over && !d.IsCut()
					d.Cut() // also right after the last change
					if _, err := d.Restore(rng); err != nil {
						t.Fatal(err)
					}
				}
				check(t, dir, func() { d.CutAfter(n) }, heal)
			})
			if t.Failed() {
				return
			}
		}
		if over {
			if n < 10 {
				t.Fatalf("a snapshot takes %d changes, which is not believable", n)
			}
			return
		}
	}
}

func TestFaultAtEveryWriteAndSyncLeavesASnapshot(t *testing.T) {
	for _, f := range []disk.Fault{
		{Op: disk.OpWrite, Errno: syscall.EIO}, {Op: disk.OpWrite, Errno: syscall.ENOSPC}, {Op: disk.OpSync, Errno: syscall.EIO},
	} {
		for struck := true; struck && !t.Failed(); f.After++ {
			t.Run(fmt.Sprintf("op=%d/%v/after=%d", f.Op, f.Errno, f.After), func(t *testing.T) {
				d, dir := mount(t)
				done := check(t, dir, func() { d.Inject(f) }, func() {
					d.Heal()
					struck = d.Stats().Failed > 0
				})
				if done == struck {
					t.Errorf("a snapshot with a fault said done=%t", done)
				}
			})
		}
		if f.After < 3 {
			t.Errorf("op %d, %v: only %d operations were there to fail", f.Op, f.Errno, f.After-1)
		}
	}
}
