package wal

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// lateFS is a disk whose syncs take a while when they are told to.
type lateFS struct {
	vfs.FS
	late *atomic.Int64 // nanoseconds
}

func (f lateFS) Create(name string) (vfs.File, error) { return f.wrap(f.FS.Create(name)) }
func (f lateFS) Open(name string) (vfs.File, error)   { return f.wrap(f.FS.Open(name)) }

func (f lateFS) wrap(file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return lateFile{file, f.late}, nil
}

type lateFile struct {
	vfs.File
	late *atomic.Int64
}

func (f lateFile) Fdatasync() error {
	time.Sleep(time.Duration(f.late.Load()))
	return f.File.Fdatasync()
}

func TestSyncLatencyFollowsTheDisk(t *testing.T) {
	const slow = 30 * time.Millisecond
	var late atomic.Int64
	late.Store(int64(slow))
	l := mustOpen(t, memConfig(lateFS{vfs.NewMem(), &late}))
	defer mustClose(t, l)
	mustStore(t, l.Group(1), entries(1, 1, 1, 1, 10))
	if d := l.SyncLatency(); d < slow {
		t.Errorf("a sync of 30 ms counts as %v", d)
	}
}

// TestDiskIsSlowByTwoSyncsInARowOrOneThatHangs drives the judge with times of its
// own: how long each sync takes, and how long the disk rests before it.
func TestDiskIsSlowByTwoSyncsInARowOrOneThatHangs(t *testing.T) {
	const ms = time.Millisecond
	type step struct {
		rest, took time.Duration
		slow       bool // afterwards
	}
	for name, steps := range map[string][]step{
		"one late sync":           {{0, 10 * ms, false}, {0, 150 * ms, false}, {0, 10 * ms, false}, {0, 150 * ms, false}},
		"two in a row":            {{0, 150 * ms, false}, {0, 150 * ms, true}, {0, 10 * ms, true}},
		"one that hangs":          {{0, 10 * ms, false}, {0, 500 * ms, true}},
		"on the edge, stays slow": {{0, 150 * ms, false}, {0, 150 * ms, true}, {slowHold - 100*ms, 75 * ms, true}, {slowHold - 100*ms, 10 * ms, true}},
		"on the edge, stays well": {{0, 75 * ms, false}, {0, 75 * ms, false}, {0, 75 * ms, false}},
		"well for long enough":    {{0, 150 * ms, false}, {0, 150 * ms, true}, {slowHold / 2, 10 * ms, true}, {slowHold, 10 * ms, false}},
	} {
		l := newLatency()
		var now, last time.Duration
		for i, s := range steps {
			now += s.rest + s.took
			l.judge(now, last, s.took)
			last = s.took
			if slow := now < time.Duration(l.until.Load()); slow != s.slow {
				t.Errorf("%s: after sync %d of %v: slow is %v, want %v", name, i, s.took, slow, s.slow)
			}
		}
	}
}

// TestSlowDiskIsKnownWhileItsSyncIsUnderWay: whoever gives way to it need not wait
// for the sync.
func TestSlowDiskIsKnownWhileItsSyncIsUnderWay(t *testing.T) {
	var late atomic.Int64
	l := mustOpen(t, memConfig(lateFS{vfs.NewMem(), &late}))
	defer mustClose(t, l)
	g := l.Group(1)
	mustStore(t, g, entries(1, 1, 1, 1, 10))
	waitFor(t, func() bool { return !l.Slow() }) // this machine may have been late itself
	late.Store(int64(3 * hungSync))
	done := make(chan error, 1)
	go func() { done <- g.StoreLogs(entries(1, 2, 2, 1, 10)) }()
	waitFor(t, l.Slow)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
