package disk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mount gives a disk and its mount point.
func mount(t *testing.T) (*Disk, string) {
	t.Helper()
	dir := t.TempDir()
	at := filepath.Join(dir, "mnt")
	d, err := Mount(filepath.Join(dir, "backing"), at)
	if errors.Is(err, ErrUnavailable) {
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
	return d, at
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put writes a file; sync and syncDir say what becomes durable.
func put(t *testing.T, path, content string, sync, syncDir bool) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	must(t, err)
	if sync {
		must(t, f.Sync())
	}
	must(t, f.Close())
	if syncDir {
		flushDir(t, filepath.Dir(path))
	}
}

func flushDir(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

func lose(t *testing.T, d *Disk, rng *rand.Rand) Loss {
	t.Helper()
	d.Cut()
	l, err := d.Restore(rng)
	must(t, err)
	return l
}

func want(t *testing.T, path, content string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if content == "" {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there with %q, want it lost", filepath.Base(path), got)
		}
		return
	}
	if string(got) != content {
		t.Errorf("%s holds %q (%v), want %q", filepath.Base(path), got, err, content)
	}
}

func TestPowerLossKeepsWhatWasSyncedAndNothingElse(t *testing.T) {
	d, at := mount(t)
	put(t, at+"/durable", "old", true, true)
	put(t, at+"/durable", "new and longer", false, false)
	put(t, at+"/nameless", "content synced, name not", true, false)
	put(t, at+"/removed", "kept", true, true)
	must(t, os.Remove(at+"/removed"))
	must(t, os.Mkdir(at+"/dir", 0o700))
	flushDir(t, at)
	put(t, at+"/nothing", "never synced", false, false)
	put(t, at+"/dir/inside", "x", true, false)
	put(t, at+"/dir/late", "y", true, true)
	put(t, at+"/dir/lost", "z", true, false)
	l := lose(t, d, nil)
	want(t, at+"/durable", "old")
	want(t, at+"/nameless", "content synced, name not") // the later sync of the directory covered it
	want(t, at+"/removed", "")
	want(t, at+"/nothing", "")
	want(t, at+"/dir/inside", "x")
	want(t, at+"/dir/late", "y")
	want(t, at+"/dir/lost", "")
	if l.Names != 2 || l.Sectors == 0 {
		t.Errorf("lost %v, want 2 names and some sectors", l)
	}
}

func TestPowerLossUndoesRenameRemoveAndTruncate(t *testing.T) {
	d, at := mount(t)
	put(t, at+"/target", "before", true, true)
	put(t, at+"/gone", "still here", true, true)
	put(t, at+"/short", "long content", true, true)
	put(t, at+"/tmp", "after", true, false)
	must(t, os.Rename(at+"/tmp", at+"/target"))
	must(t, os.Remove(at+"/gone"))
	must(t, os.Truncate(at+"/short", 4))
	want(t, at+"/target", "after")
	lose(t, d, nil)
	want(t, at+"/target", "before")
	want(t, at+"/tmp", "")
	want(t, at+"/gone", "still here")
	want(t, at+"/short", "long content")
}

// A snapshot is written into a directory that is renamed; the names inside are
// durable only if that directory was synced too.
func TestNamesInARenamedDirectoryAreLostUnlessItWasSynced(t *testing.T) {
	for _, synced := range []bool{false, true} {
		d, at := mount(t)
		must(t, os.Mkdir(at+"/new.tmp", 0o700))
		put(t, at+"/new.tmp/state", "s", true, synced)
		must(t, os.Rename(at+"/new.tmp", at+"/new"))
		flushDir(t, at)
		lose(t, d, nil)
		if _, err := os.Stat(at + "/new"); err != nil {
			t.Fatal(err)
		}
		want(t, at+"/new/state", map[bool]string{false: "", true: "s"}[synced])
	}
}

func TestSectorsSurviveByChanceOneByOne(t *testing.T) {
	d, at := mount(t)
	old, fresh := bytes.Repeat([]byte("o"), 2*SectorBytes), bytes.Repeat([]byte("n"), 2*SectorBytes)
	seen := map[string]bool{}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 64 {
		put(t, at+"/f", string(old), true, true)
		put(t, at+"/f", string(fresh), false, false)
		lose(t, d, rng)
		b, err := os.ReadFile(at + "/f")
		must(t, err)
		seen[fmt.Sprintf("%c%c", b[0], b[SectorBytes])] = true
	}
	if len(seen) != 4 {
		t.Errorf("saw %v, want all four combinations of two sectors", seen)
	}
}

func TestLyingDiskLosesWhatWasSynced(t *testing.T) {
	d, at := mount(t)
	put(t, at+"/before", "x", true, true)
	d.Lie()
	put(t, at+"/after", "y", true, true)
	lose(t, d, nil)
	want(t, at+"/before", "x")
	want(t, at+"/after", "")
}

func TestFaultsFailWhatTheyNameAndHeal(t *testing.T) {
	d, at := mount(t)
	f, err := os.Create(at + "/a.spare")
	must(t, err)
	must(t, os.Rename(at+"/a.spare", at+"/a.wal")) // faults go by the present name
	_, err = f.WriteAt([]byte("x"), 0)
	must(t, err)
	d.Inject(Fault{Op: OpSync, Suffix: ".wal", Errno: syscall.EIO, Count: 1})
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("sync: %v, want EIO", err)
	}
	must(t, f.Sync())
	d.Inject(Fault{Op: OpWrite, Suffix: ".other", Errno: syscall.EIO})
	_, err = f.WriteAt([]byte("y"), 0)
	must(t, err)
	d.SetFull(true)
	if _, err := f.WriteAt([]byte("yz"), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("longer write on a full disk: %v, want ENOSPC", err)
	}
	_, err = f.WriteAt([]byte("z"), 0)
	must(t, err)
	d.Heal()
	_, err = f.WriteAt([]byte("yz"), 0)
	must(t, err)
	d.Inject(Fault{Op: OpSync, Delay: 30 * time.Millisecond})
	began := time.Now()
	must(t, f.Sync())
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("a slow sync took %v", took)
	}
	d.Heal()
	d.Inject(Fault{Op: OpSync, Errno: syscall.EIO, After: 2, Count: 1})
	for i, want := range []error{nil, nil, syscall.EIO, nil} {
		if err := f.Sync(); !errors.Is(err, want) {
			t.Errorf("sync %d: %v, want %v", i, err, want)
		}
	}
	must(t, f.Close())
	if s := d.Stats(); s.Failed != 3 {
		t.Errorf("%+v, want 3 failed operations", s)
	}
}

func TestCutDiskTakesNothingUntilItIsRestored(t *testing.T) {
	d, at := mount(t)
	if _, err := d.Restore(nil); err == nil {
		t.Error("a disk with power was restored")
	}
	d.Cut()
	if err := os.WriteFile(at+"/f", []byte("x"), 0o600); !errors.Is(err, syscall.EIO) {
		t.Errorf("write without power: %v, want EIO", err)
	}
	_, err := d.Restore(nil)
	must(t, err)
	put(t, at+"/f", "x", true, true)
	want(t, at+"/f", "x")
}

func TestPowerGoesAfterSoManyChanges(t *testing.T) {
	d, at := mount(t)
	f, err := os.Create(at + "/f")
	must(t, err)
	d.CutAfter(2)
	_, err = f.WriteAt([]byte("x"), 0)
	must(t, errors.Join(err, f.Sync()))
	if d.IsCut() {
		t.Error("the power went early")
	}
	flush, err := os.Open(at)
	must(t, err)
	if err := flush.Sync(); !errors.Is(err, syscall.EIO) || !d.IsCut() {
		t.Errorf("third change: %v, want EIO", err)
	}
	must(t, errors.Join(flush.Close(), f.Close()))
	_, err = d.Restore(nil)
	must(t, err)
	if _, err := os.Stat(at + "/f"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a name that was not synced is there: %v", err)
	}
}

func TestCloseEndsAMountThatIsInUse(t *testing.T) {
	dir := t.TempDir()
	d, err := Mount(filepath.Join(dir, "backing"), filepath.Join(dir, "mnt"))
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	must(t, err)
	f, err := os.Create(filepath.Join(dir, "mnt", "f"))
	must(t, err)
	must(t, d.Close())
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("a write worked after the disk was closed")
	}
	_ = f.Close() // it has no disk any more
}

// Inode numbers of what is gone are used again; what is remembered of the old
// owner must not strike the new one.
func TestNumbersUsedAgainDoNotConfuse(t *testing.T) {
	d, at := mount(t)
	for i := range 40 {
		dir := fmt.Sprintf("%s/d%d", at, i)
		must(t, os.Mkdir(dir, 0o700))
		put(t, dir+"/a", fmt.Sprint(i), true, true)
		put(t, dir+"/b", "unsynced", false, false)
		flushDir(t, at)
		if i > 1 {
			must(t, os.RemoveAll(fmt.Sprintf("%s/d%d", at, i-2)))
		}
		if i%7 == 6 {
			lose(t, d, nil)
		}
	}
	lose(t, d, nil)
	for i := 38; i < 40; i++ {
		want(t, fmt.Sprintf("%s/d%d/a", at, i), fmt.Sprint(i))
		want(t, fmt.Sprintf("%s/d%d/b", at, i), "")
	}
}
