package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// crashPoint is a disk as a power loss left it while step n was under way.
type crashPoint struct {
	config func(vfs.FS) Config
	disk   *vfs.Mem
	done   int // steps that had returned
	op     vfs.Op
}

// runWithCrashes carries out the steps and takes crash points before every
// every-th operation on the disk, from whichever goroutine.
func runWithCrashes(config func(vfs.FS) Config, fs *vfs.Mem, steps []step, every int, seed uint64) ([]crashPoint, []model, error) {
	var mu sync.Mutex
	var points []crashPoint
	done, ops := 0, 0
	rng := rand.New(rand.NewPCG(seed, 1))
	fs.SetHook(func(op vfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if ops++; op.Kind == vfs.OpRead || ops%every != 0 {
			return nil
		}
		r := rng
		if ops%2 == 0 {
			r = nil
		}
		points = append(points, crashPoint{config, fs.CrashClone(r), done, op})
		return nil
	})
	defer fs.SetHook(nil)
	l, err := Open(quiet, nil, config(fs))
	if err != nil {
		return nil, nil, err
	}
	m := model{}
	states := []model{m.clone()}
	for i, s := range steps {
		if err := s.do(l); err != nil {
			return nil, nil, fmt.Errorf("step %d %+v: %w", i, s, err)
		}
		m.expect(s, s.count())
		states = append(states, m.clone())
		mu.Lock()
		done = i + 1
		mu.Unlock()
	}
	return points, states, errors.Join(m.agrees(holds(l)), l.Close())
}

// check opens a crash point and compares it with what may be there: everything
// that had returned, and of the step under way nothing, all, or the beginning of
// its entries.
func (c *crashPoint) check(steps []step, states []model) error {
	disk := c.disk.Clone()
	l, err := Open(quiet, nil, c.config(disk))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	err = states[c.done].agrees(holds(l))
	if err != nil && c.done < len(steps) {
		s := steps[c.done]
		for n := uint64(1); n <= s.count() && err != nil; n++ {
			m := states[c.done].clone()
			m.expect(s, n)
			if m.agrees(holds(l)) == nil {
				err = nil
			}
			if s.Kind != "store" {
				break
			}
		}
	}
	if cerr := l.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		_, err = verify(disk, "wal", testKeys...)
	}
	if err != nil {
		return fmt.Errorf("crash before %v of %s at %d during step %d: %w", c.op.Kind, c.op.Name, c.op.Offset, c.done, err)
	}
	return nil
}

func TestNothingAcknowledgedIsLostByACrashAtAnyOperation(t *testing.T) {
	inBothForms(t, crashAtAnyOperation)
}

func crashAtAnyOperation(t *testing.T, config func(vfs.FS) Config) {
	n, every := 250, 1
	if testing.Short() || raceEnabled {
		every = 7
	}
	for seed := range uint64(3) {
		steps := drawSteps(seed, n, 4)
		points, states, err := runWithCrashes(config, vfs.NewMem(), steps, every, seed)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for i := range points {
			if err := points[i].check(steps, states); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		t.Logf("seed %d: %d crashes", seed, len(points))
	}
}

// TestCrashChecksCatchALyingDisk shows that the test above can fail.
func TestCrashChecksCatchALyingDisk(t *testing.T) {
	for _, lie := range []vfs.OpKind{vfs.OpSync, vfs.OpSyncDir} {
		fs := vfs.NewMem()
		fs.Lie(lie)
		steps := drawSteps(1, 60, 2)
		points, states, err := runWithCrashes(memConfig, fs, steps, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		caught := 0
		for i := range points {
			if points[i].check(steps, states) != nil {
				caught++
			}
		}
		if caught == 0 {
			t.Errorf("%d crashes of a disk that lies about %v, none was noticed", len(points), lie)
		}
	}
}

// TestModel compares the log with the simple model over random operations, with
// reopening in between.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		fs := vfs.NewMem()
		cfg := sealedConfig(fs)
		cfg.Encrypt = rapid.Bool().Draw(rt, "encrypt")
		cfg.CacheBytes = int64(rapid.SampledFrom([]int{1, 5000, 1 << 20}).Draw(rt, "cache"))
		l, err := Open(quiet, nil, cfg)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		m := model{}
		intn := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "n") }
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			if rapid.IntRange(0, 9).Draw(rt, "reopen") == 0 {
				if rapid.Bool().Draw(rt, "clean") {
					if err := l.Close(); err != nil {
						rt.Fatal(err)
					}
				} else {
					fs = fs.CrashClone(nil)
					_ = l.Close()
				}
				cfg.FS = fs
				cfg.Encrypt = rapid.Bool().Draw(rt, "encrypt")
				if l, err = Open(quiet, nil, cfg); err != nil {
					rt.Fatal(err)
				}
			}
			s := m.draw(intn, 3)
			if err := s.do(l); err != nil {
				rt.Fatalf("%+v: %v", s, err)
			}
			m.expect(s, s.count())
			if err := m.agrees(holds(l)); err != nil {
				rt.Fatalf("after %+v: %v", s, err)
			}
		}
	})
}

// TestFailingWriteOrSyncLatches fails every write and sync of the log in turn.
func TestFailingWriteOrSyncLatches(t *testing.T) { inBothForms(t, failingWriteOrSyncLatches) }

func failingWriteOrSyncLatches(t *testing.T, config func(vfs.FS) Config) {
	steps := drawSteps(5, 150, 3)
	for n := 1; ; n++ {
		if testing.Short() && n > 40 {
			return
		}
		if failed, err := failAt(config, n, steps); err != nil {
			t.Fatalf("error at operation %d: %v", n, err)
		} else if !failed {
			t.Logf("%d operations", n)
			return
		}
	}
}

// failAt fails the n-th write or sync of a segment, in use or prepared, with EIO.
func failAt(config func(vfs.FS) Config, n int, steps []step) (failed bool, err error) {
	fs := vfs.NewMem()
	var mu sync.Mutex
	ops, after, victim := 0, 0, ""
	fs.SetHook(func(op vfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind != vfs.OpWrite && op.Kind != vfs.OpSync || !strings.Contains(op.Name, ".wal") {
			return nil
		}
		if ops++; ops == n {
			failed, victim = true, op.Name
			return syscall.EIO
		}
		if failed && op.Name == victim {
			after++
		}
		return nil
	})
	l, err := Open(quiet, nil, config(fs))
	if err != nil {
		if failed {
			return true, nil
		}
		return false, err
	}
	m := model{}
	done := 0
	var stepErr error
	for _, s := range steps {
		if stepErr = s.do(l); stepErr != nil {
			break
		}
		m.expect(s, s.count())
		done++
	}
	mu.Lock()
	hit := failed
	mu.Unlock()
	if hit {
		if err := mustBeLatched(l, stepErr); err != nil {
			return true, err
		}
	}
	closeErr := l.Close() // writes the last marker, which may be the n-th operation
	mu.Lock()
	defer mu.Unlock()
	if !failed {
		return false, errors.Join(stepErr, closeErr)
	}
	if after > 0 {
		return true, fmt.Errorf("%d more writes or syncs after the error", after)
	}
	c := crashPoint{config: config, disk: fs.CrashClone(nil), done: done}
	states := make([]model, done+1)
	states[done] = m
	return true, c.check(steps, states)
}

func mustBeLatched(l *Log, stepErr error) error {
	select {
	case <-l.Failed():
	default:
		if stepErr != nil {
			return fmt.Errorf("not latched after %w", stepErr)
		}
		return nil // the idle marker or nothing at all was hit after the last step
	}
	for _, s := range []step{{Kind: "store", Group: 1, From: 1, To: 1}, {Kind: "set", Group: 1}} {
		if err := s.do(l); !errors.Is(err, syscall.EIO) {
			return fmt.Errorf("%s after the failure: %w, want the latched error", s.Kind, err)
		}
	}
	if _, err := l.Group(1).LastIndex(); !errors.Is(err, syscall.EIO) {
		return fmt.Errorf("read after the failure: %w, want the latched error", err)
	}
	return nil
}
