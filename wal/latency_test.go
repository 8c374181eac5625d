package wal

import (
	"testing"
	"time"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// lateFS is a disk whose syncs take a while when they are told to.
type lateFS struct {
	vfs.FS
	late *time.Duration // changed only between stores, which wait for their sync
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
	late *time.Duration
}

func (f lateFile) Fdatasync() error {
	time.Sleep(*f.late)
	return f.File.Fdatasync()
}

func TestSyncLatencyFollowsTheDisk(t *testing.T) {
	const slow = 30 * time.Millisecond
	late := slow
	l := mustOpen(t, memConfig(lateFS{vfs.NewMem(), &late}))
	defer mustClose(t, l)
	g := l.Group(1)
	for i := range uint64(20) {
		mustStore(t, g, entries(1, i+1, i+1, 1, 10))
	}
	if d := l.SyncLatency(); d < slow/2 {
		t.Errorf("syncs of 30 ms count as %v", d)
	}
}
