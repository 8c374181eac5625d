package vfs

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// TestBothFileSystemsKeepTheContract runs the same script over both.
func TestBothFileSystemsKeepTheContract(t *testing.T) {
	for name, sys := range map[string]FS{"os": OS{}, "mem": NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "a", "b")
			must(t, sys.MkdirAll(dir))
			one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
			f, err := sys.Create(one)
			must(t, err)
			if _, err := sys.Create(one); !errors.Is(err, fs.ErrExist) {
				t.Errorf("second create: %v, want ErrExist", err)
			}
			_, err = f.WriteAt([]byte("hello"), 3)
			must(t, err)
			must(t, f.Fdatasync())
			must(t, f.Close())
			must(t, sys.Rename(one, two))
			must(t, sys.SyncDir(dir))
			if _, err := sys.Open(one); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("open of the old name: %v, want ErrNotExist", err)
			}
			f, err = sys.OpenRead(two)
			must(t, err)
			if n, err := f.Size(); n != 8 || err != nil {
				t.Errorf("size %d, %v, want 8", n, err)
			}
			buf := make([]byte, 5)
			if _, err := f.ReadAt(buf, 3); err != nil || string(buf) != "hello" {
				t.Errorf("read %q, %v", buf, err)
			}
			must(t, f.Close())
			names, err := sys.List(dir)
			must(t, err)
			if len(names) != 1 || names[0] != "two" {
				t.Errorf("list %v, want [two]", names)
			}
			must(t, sys.Remove(two))
		})
	}
}

func TestLockExcludesASecondHolder(t *testing.T) {
	for name, sys := range map[string]FS{"os": OS{}, "mem": NewMem()} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "lock")
			l, err := sys.Lock(path, false)
			must(t, err)
			for _, shared := range []bool{false, true} {
				if _, err := sys.Lock(path, shared); !errors.Is(err, ErrLocked) {
					t.Errorf("lock while held (shared %v): %v, want ErrLocked", shared, err)
				}
			}
			must(t, l.Close())
			a, err := sys.Lock(path, true)
			must(t, err)
			b, err := sys.Lock(path, true)
			must(t, err)
			if _, err := sys.Lock(path, false); !errors.Is(err, ErrLocked) {
				t.Errorf("exclusive lock beside shared ones: %v, want ErrLocked", err)
			}
			must(t, a.Close())
			must(t, b.Close())
		})
	}
}

func TestCrashKeepsOnlyWhatWasSynced(t *testing.T) {
	m := NewMem()
	f, err := m.Create("d/a")
	must(t, err)
	write(t, f, "old.")
	must(t, f.Fdatasync())
	if names, _ := m.CrashClone(nil).List("d"); len(names) != 0 {
		t.Fatalf("a name survived without a directory sync: %v", names)
	}
	must(t, m.SyncDir("d"))
	write(t, f, "new!")
	must(t, m.Rename("d/a", "d/b"))
	c := m.CrashClone(nil)
	if got := content(t, c, "d/a"); got != "old." {
		t.Errorf("content %q, want what was synced", got)
	}
	if got := content(t, m.Clone(), "d/b"); got != "new!" {
		t.Errorf("content after a process kill %q, want everything written", got)
	}
}

func TestCrashMayKeepAnySubsetOfUnsyncedSectors(t *testing.T) {
	m := NewMem()
	f, err := m.Create("d/a")
	must(t, err)
	must(t, m.SyncDir("d"))
	block := make([]byte, 2*SectorBytes)
	for i := range block {
		block[i] = 'x'
	}
	_, err = f.WriteAt(block, 0)
	must(t, err)
	seen := map[[2]bool]bool{}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 64 {
		got := content(t, m.CrashClone(rng), "d/a")
		seen[[2]bool{len(got) > 0 && got[0] == 'x', len(got) > SectorBytes && got[SectorBytes] == 'x'}] = true
	}
	if len(seen) != 4 {
		t.Errorf("saw %v, want all four combinations of two sectors", seen)
	}
}

func TestHookFailsOneOperation(t *testing.T) {
	m := NewMem()
	boom := errors.New("boom")
	m.SetHook(func(op Op) error {
		if op.Kind == OpSync {
			return boom
		}
		return nil
	})
	f, err := m.Create("d/a")
	must(t, err)
	write(t, f, "x")
	if err := f.Fdatasync(); !errors.Is(err, boom) {
		t.Errorf("sync: %v, want the injected error", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, f File, s string) {
	t.Helper()
	_, err := f.WriteAt([]byte(s), 0)
	must(t, err)
}

func content(t *testing.T, m *Mem, name string) string {
	t.Helper()
	f, err := m.Open(name)
	must(t, err)
	n, err := f.Size()
	must(t, err)
	buf := make([]byte, n)
	if n > 0 {
		_, err = f.ReadAt(buf, 0)
		must(t, err)
	}
	return string(buf)
}
