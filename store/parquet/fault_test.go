package parquet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// faultDisk is a real directory that can fail at its n-th operation and forget
// what was not synced.
type faultDisk struct {
	osDisk
	ops    int
	failAt int   // the operation that fails, 0 for none
	err    error // with what
	dead   bool  // every operation after it fails too: the machine has crashed

	trash   string // where removed files wait for a power loss to bring them back; "" without
	removed int
	entries []entry         // changes of directories since their last sync
	dirty   map[string]bool // files with unsynced content, by their present path
}

// entry is an unsynced change of a directory, and how to undo it.
type entry struct {
	dir  string
	undo func() error
}

var errFault = errors.New("injected fault")

func (d *faultDisk) op() error {
	d.ops++
	if d.failAt > 0 && (d.ops == d.failAt || (d.dead && d.ops > d.failAt)) {
		return d.err
	}
	return nil
}

func (d *faultDisk) changed(path string, undo func() error) {
	d.entries = append(d.entries, entry{dir: filepath.Dir(path), undo: undo})
}

func (d *faultDisk) mkdir(path string) error {
	if err := d.op(); err != nil {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		d.changed(path, func() error { return os.RemoveAll(path) })
	}
	return d.osDisk.mkdir(path)
}

func (d *faultDisk) create(path string) (file, error) {
	if err := d.op(); err != nil {
		return nil, err
	}
	f, err := d.osDisk.create(path)
	if err != nil {
		return nil, err
	}
	d.dirty[path] = true
	d.changed(path, func() error { return os.Remove(path) })
	return &faultFile{file: f, disk: d, path: path}, nil
}

func (d *faultDisk) open(path string) (file, error) {
	if err := d.op(); err != nil {
		return nil, err
	}
	f, err := d.osDisk.open(path)
	if err != nil {
		return nil, err
	}
	return &faultFile{file: f, disk: d, path: path}, nil
}

func (d *faultDisk) rename(from, to string) error {
	if err := d.op(); err != nil {
		return err
	}
	if err := d.osDisk.rename(from, to); err != nil {
		return err
	}
	if d.dirty[from] {
		delete(d.dirty, from)
		d.dirty[to] = true
	}
	d.changed(to, func() error { return os.Rename(to, from) })
	return nil
}

func (d *faultDisk) remove(path string) error {
	if err := d.op(); err != nil {
		return err
	}
	d.removed++
	kept := fmt.Sprintf("%s.removed-%d", d.trash, d.removed)
	if d.trash == "" {
		return d.osDisk.remove(path)
	}
	if err := os.Rename(path, kept); err != nil {
		return err
	}
	d.changed(path, func() error { return os.Rename(kept, path) })
	return nil
}

func (d *faultDisk) readDir(path string) ([]fs.DirEntry, error) {
	if err := d.op(); err != nil {
		return nil, err
	}
	return d.osDisk.readDir(path)
}

func (d *faultDisk) syncDir(path string) error {
	if err := d.op(); err != nil {
		return fmt.Errorf("%w: %w", ErrSync, err)
	}
	d.entries = slices.DeleteFunc(d.entries, func(e entry) bool { return e.dir == path })
	return nil // what is durable is what this disk remembers
}

// powerLoss undoes what was not synced: the last changes of directories, as many
// as rng says, and the content of files.
func (d *faultDisk) powerLoss(t testing.TB, rng *rand.Rand) {
	t.Helper()
	for n := rng.IntN(len(d.entries) + 1); len(d.entries) > n; {
		last := d.entries[len(d.entries)-1]
		d.entries = d.entries[:len(d.entries)-1]
		if err := last.undo(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("undo: %v", err)
		}
	}
	for path := range d.dirty {
		if info, err := os.Stat(path); err == nil {
			if err := os.Truncate(path, rng.Int64N(info.Size()+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

type faultFile struct {
	file
	disk *faultDisk
	path string
}

func (f *faultFile) Write(b []byte) (int, error) {
	if err := f.disk.op(); err != nil {
		n, _ := f.file.Write(b[:len(b)/2]) // a torn write
		return n, err
	}
	return f.file.Write(b)
}

func (f *faultFile) ReadAt(b []byte, at int64) (int, error) {
	if err := f.disk.op(); err != nil {
		return 0, err
	}
	return f.file.ReadAt(b, at)
}

func (f *faultFile) Sync() error {
	if err := f.disk.op(); err != nil {
		return err
	}
	delete(f.disk.dirty, f.path)
	return nil
}

func (f *faultFile) Close() error {
	err := f.disk.op()
	return errors.Join(err, f.file.Close())
}

func (f *faultFile) Stat() (fs.FileInfo, error) {
	if err := f.disk.op(); err != nil {
		return nil, err
	}
	return f.file.Stat()
}

// scenario is a life of a store: flushes of two shards, an installed segment,
// queries, a segment set aside and written again. It returns what was promised.
type scenario struct {
	batches  []*telemetry.Batch
	peer     []byte
	peerSeg  Segment
	promised []Segment
}

func newScenario(t testing.TB) *scenario {
	s := newStore(t)
	peer, err := s.Write(t.Context(), fleet(2, 2, 3, 2, 5, t0))
	if err != nil {
		t.Fatal(err)
	}
	return &scenario{
		batches: []*telemetry.Batch{fleet(1, 0, 2, 2, 5, t0), fleet(1, 2, 3, 2, 5, t0+5e6), fleet(2, 0, 2, 3, 5, t0-86400e6)},
		peer:    fetch(t, s, peer), peerSeg: peer,
	}
}

// run stops at nothing: it is the caller's business what an error means.
func (c *scenario) run(t testing.TB, s *Store) error {
	var errs []error
	for _, b := range c.batches {
		seg, err := s.Write(t.Context(), b)
		if err == nil {
			c.promised = append(c.promised, seg)
		}
		errs = append(errs, err)
	}
	err := s.Install(t.Context(), c.peerSeg, bytes.NewReader(c.peer))
	if err == nil {
		c.promised = append(c.promised, c.peerSeg)
	}
	errs = append(errs, err)
	errs = append(errs, c.background(t, s))
	q := everything("sensor-00001")
	want := (&model{batches: c.batches[:2]}).read(q, 3)
	got, _, err := s.Read(t.Context(), 1, 3, q)
	if err == nil && !samePoints(got, want) {
		t.Errorf("read gives other rows: %+v", got)
	}
	return errors.Join(append(errs, err)...)
}

// background merges what shard 1 has into one file and lets the first flush of
// shard 2 expire, whose rows are a day older than those of the second.
func (c *scenario) background(t testing.TB, s *Store) error {
	var errs []error
	if list := s.Segments(1); len(list) == 2 {
		_, err := s.merge(t.Context(), list)
		errs = append(errs, err)
	}
	s.cfg.Retention = 240 * time.Hour
	_, err := s.Expire(t.Context(), 2, time.UnixMicro(t0).Add(s.cfg.Retention))
	s.cfg.Retention = 0
	return errors.Join(append(errs, err, s.reap(t.Context()))...)
}

// check opens the directory on a healthy disk and looks for what was promised.
func (c *scenario) check(t testing.TB, dir string) {
	t.Helper()
	s, err := Open(quiet(), nil, Config{Dir: dir})
	if err != nil {
		t.Fatalf("reopen: %v", err)
	}
	defer s.Close()
	for _, shard := range s.Shards() {
		for _, seg := range s.Segments(shard) {
			if err := s.Verify(t.Context(), seg); err != nil {
				t.Errorf("segment %+v: %v", seg, err)
			}
		}
	}
	for _, seg := range c.promised {
		have, ok, err := s.Find(t.Context(), seg.Shard, seg.From, seg.To)
		if whole, _ := s.index.covering(seg.Shard, seg.Range()); whole.Expired && seg.Shard == 2 && seg.From == 0 {
			continue
		}
		have.Bytes, seg.Bytes = 0, 0
		if !ok || have != seg || err != nil {
			t.Errorf("promised segment %+v is not there, only %+v, %v", seg, have, err)
		}
	}
	for _, name := range files(t, dir) {
		if strings.HasSuffix(name, suffixTemp) {
			t.Errorf("leftover %s", name)
		}
	}
	c.promised = nil
	if err := c.run(t, s); err != nil {
		t.Errorf("the same again on a healthy disk: %v", err)
	}
}

// TestFaultAtEveryOperationLosesNothingPromised fails one operation after the
// other; the store goes on and the same calls succeed afterwards.
func TestFaultAtEveryOperationLosesNothingPromised(t *testing.T) {
	c := newScenario(t)
	for _, fault := range []error{syscall.EIO, syscall.ENOSPC} {
		for n := 1; ; n++ {
			dir := filepath.Join(t.TempDir(), "store")
			d := &faultDisk{failAt: n, err: fault, dirty: map[string]bool{}}
			c.promised = nil
			s, err := openStore(quiet(), nil, Config{Dir: dir}, d)
			if err == nil {
				if err = c.run(t, s); err != nil {
					if err := c.run(t, s); err != nil {
						t.Errorf("fault at operation %d: the same calls again: %v", n, err)
					}
				}
				if cerr := s.Close(); cerr != nil {
					t.Errorf("close: %v", cerr)
				}
			}
			if err != nil && !errors.Is(err, fault) && !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("fault at operation %d: error %v does not tell the cause", n, err)
			}
			c.check(t, dir)
			if d.ops < n {
				break // all operations have had their turn
			}
		}
	}
}

// TestPowerLossAtEveryOperationLosesNothingPromised stops the machine at one
// operation after the other and forgets what was not synced.
func TestPowerLossAtEveryOperationLosesNothingPromised(t *testing.T) {
	c := newScenario(t)
	for n := 1; ; n++ {
		done := false
		for seed := range uint64(2) {
			dir := filepath.Join(t.TempDir(), "store")
			d := &faultDisk{failAt: n, err: errFault, dead: true, dirty: map[string]bool{}, trash: dir}
			c.promised = nil
			if s, err := openStore(quiet(), nil, Config{Dir: dir}, d); err == nil {
				_ = c.run(t, s) // fails at the crash
				s.Close()
			}
			d.powerLoss(t, rand.New(rand.NewPCG(seed, uint64(n))))
			c.check(t, dir)
			done = d.ops < n
		}
		if done {
			break
		}
	}
}

func TestFailedSyncIsTold(t *testing.T) {
	d := &faultDisk{dirty: map[string]bool{}}
	s, err := openStore(quiet(), nil, Config{Dir: filepath.Join(t.TempDir(), "store")}, d)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	syncs := 0
	for n := 1; n < 12; n++ {
		d.failAt, d.err = d.ops+n, syscall.EIO
		_, err := s.Write(t.Context(), fleet(1, uint64(n), uint64(n+1), 1, 1, t0))
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("operation %d: %v", n, err)
		}
		if errors.Is(err, ErrSync) {
			syncs++
		}
	}
	if syncs != 3 { // store directory, file, shard directory
		t.Errorf("%d failed syncs told, want 3", syncs)
	}
}

func TestCrashInsideOfDropIsFinishedAtOpen(t *testing.T) {
	for n := 1; ; n++ {
		dir := filepath.Join(t.TempDir(), "store")
		d := &faultDisk{err: errFault, dirty: map[string]bool{}}
		s, err := openStore(quiet(), nil, Config{Dir: dir}, d)
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint64(3) {
			if _, err := s.Write(t.Context(), fleet(1, i, i+1, 1, 1, t0)); err != nil {
				t.Fatal(err)
			}
		}
		d.failAt = d.ops + n
		derr := s.Drop(1)
		s.Close()
		s = open(t, dir)
		if left := len(s.Segments(1)); left != 0 && left != 3 {
			t.Errorf("fault at operation %d of drop: %d segments are left", n, left)
		}
		if got := files(t, dir); len(got) != len(s.Segments(1)) {
			t.Errorf("fault at operation %d of drop: files are %v", n, got)
		}
		if derr == nil {
			break
		}
	}
}
