package wal

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/internal/vfs"
)

func TestFullDiskPausesIntakeAndResumes(t *testing.T) {
	fs := vfs.NewMem()
	var full atomic.Bool
	fs.SetHook(func(op vfs.Op) error {
		if full.Load() && op.Kind == vfs.OpWrite && op.Bytes == 16<<10 { // zeroes of a new file
			return syscall.ENOSPC
		}
		return nil
	})
	l := mustOpen(t, memConfig(fs))
	g := l.Group(1)
	mustStore(t, g, entries(1, 1, 4, 1, 2000))
	waitFor(t, func() bool { n, _ := l.prep.stock(); return n == 1+reserveSegments })
	full.Store(true)
	fillUp := func() uint64 {
		for i := uint64(5); ; i++ {
			if err := g.StoreLogs(entries(1, i, i, 1, 2000)); errors.Is(err, ErrFull) {
				return i
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	next := fillUp()
	if !l.Full() {
		t.Error("Full is false after a refusal")
	}
	if n, _ := l.prep.stock(); n != reserveSegments {
		t.Errorf("%d segments are left, want the reserve of %d", n, reserveSegments)
	}
	wantEntries(t, g, 1, next-1, 1, 2000)
	for i := range uint64(20) { // votes, small entries and deletions go on
		if err := g.SetUint64([]byte("CurrentTerm"), i); err != nil {
			t.Fatal(err)
		}
		mustStore(t, l.Group(2), entries(2, i+1, i+1, 1, 50))
	}
	g.SetFloor(next)
	if err := g.DeleteRange(1, next-2); err != nil {
		t.Fatal(err)
	}
	if err := l.janitor.maintain(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return !l.Full() }) // recycled segments, the disk is as full as before
	mustStore(t, g, entries(1, next, next, 1, 2000))
	full.Store(false)
	wantEntries(t, mustOpen(t, memConfig(fs.CrashClone(nil))).Group(1), next-1, next, 1, 2000)
	if l.Err() != nil {
		t.Errorf("a full disk latched: %v", l.Err())
	}
}

func TestFullDiskNeverLeavesHalfOfAStore(t *testing.T) {
	fs := vfs.NewMem()
	var full atomic.Bool
	fs.SetHook(func(op vfs.Op) error {
		if full.Load() && op.Kind == vfs.OpCreate {
			return syscall.ENOSPC
		}
		return nil
	})
	l := mustOpen(t, memConfig(fs))
	g := l.Group(1)
	mustStore(t, g, entries(1, 1, 2, 1, 2000))
	full.Store(true)
	if err := g.StoreLogs(entries(1, 3, 60, 1, 2000)); !errors.Is(err, ErrFull) {
		t.Fatalf("store of ten segments on a full disk: %v, want ErrFull", err)
	}
	wantEntries(t, g, 1, 2, 1, 2000)
	full.Store(false)
	waitFor(t, func() bool { return g.StoreLogs(entries(1, 3, 60, 1, 2000)) == nil })
	wantEntries(t, g, 1, 60, 1, 2000)
}

// TestNoSpaceAtAnyWriteLosesNothing takes the space away for one write, sync or name
// after the other. What prepares files waits and tries again; a write of
// entries latches, as with any other error.
func TestNoSpaceAtAnyWriteLosesNothing(t *testing.T) { inBothForms(t, noSpaceAtAnyWriteLosesNothing) }

func noSpaceAtAnyWriteLosesNothing(t *testing.T, config func(vfs.FS) Config) {
	steps := drawSteps(6, 150, 3)
	latched, tried, stride := 0, 0, int64(2)
	if strings.HasSuffix(t.Name(), "encrypted") {
		stride = 5 // the files are made in the same way
	}
	if raceEnabled || testing.Short() {
		stride = 17
	}
	for n := int64(1); ; n += stride {
		tried++
		hit, end, err := noSpaceAt(config, n, steps)
		switch {
		case err != nil:
			t.Fatalf("no space at operation %d: %v", n, err)
		case !hit:
			if latched == 0 || latched >= tried-1 {
				t.Errorf("%d of %d errors latched, want some and not all", latched, tried-1)
			}
			t.Logf("%d operations, %d tried, %d latched", n, tried-1, latched)
			return
		case end:
			latched++
		}
	}
}

func noSpaceAt(config func(vfs.FS) Config, n int64, steps []step) (hit, latched bool, err error) {
	fs := vfs.NewMem()
	var ops atomic.Int64
	fs.SetHook(func(op vfs.Op) error {
		if op.Kind != vfs.OpRemove && op.Kind != vfs.OpRead && ops.Add(1) == n {
			return syscall.ENOSPC
		}
		return nil
	})
	m, done := model{}, 0
	l, err := Open(quiet, nil, config(fs))
	for ; err == nil && done < len(steps); done++ {
		s := steps[done]
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			if err = s.do(l); !errors.Is(err, ErrFull) || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			break
		}
		m.expect(s, s.count())
	}
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		return true, false, fmt.Errorf("step %d: %w", done, err)
	}
	latched = err != nil
	states := make([]model, done+1)
	states[done] = m
	c := crashPoint{config: config, disk: fs.CrashClone(nil), done: done}
	if l != nil {
		_ = l.Close() // the crash came before
	}
	fs.SetHook(nil)
	return ops.Load() >= n, latched, c.check(steps, states)
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}
