package disk

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrUnavailable says that this machine cannot mount a FUSE file system.
var ErrUnavailable = errors.New("no FUSE here: run as root on Linux with /dev/fuse, in a container with --device /dev/fuse --cap-add SYS_ADMIN")

// Op is what a Fault strikes.
type Op uint8

// The operations.
const (
	OpWrite Op = iota
	OpSync
)

// Fault makes operations fail.
type Fault struct {
	Op     Op
	Suffix string        // of the file's path; "" is every file
	Errno  syscall.Errno // 0 only delays
	Delay  time.Duration
	After  int // so many are spared first
	Count  int // how often; 0 is until Heal
}

// Stats counts what has happened on a disk.
type Stats struct {
	Writes, Syncs, DirSyncs int
	Failed                  int // operations that a Fault or a full disk made fail
}

// Disk is one power-loss disk.
type Disk struct {
	backing, mountpoint string
	unmount             func() error

	mu     sync.Mutex
	j      *journal
	stats  Stats
	faults []Fault
	full   bool
	cut    bool
	lies   bool
	left   int               // changes until the power goes; negative is never
	gens   map[uint64]uint64 // of inode numbers, which the backing file system uses again
}

func newDisk(backing, mountpoint string) (*Disk, error) {
	root := filepath.Join(backing, "root")
	for _, dir := range []string{root, mountpoint} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make directory of the disk: %w", err)
		}
	}
	j, err := newJournal(root, filepath.Join(backing, "trash"))
	if err != nil {
		return nil, err
	}
	return &Disk{backing: backing, mountpoint: mountpoint, j: j, left: -1, gens: map[uint64]uint64{}}, nil
}

// Root is the backing directory of the mounted files, for whoever looks at or
// damages them from this process.
func (d *Disk) Root() string { return d.j.root }

// Close unmounts the disk; nothing may use it any more.
func (d *Disk) Close() error { return d.unmount() }

// Stats returns the counters.
func (d *Disk) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Inject adds a fault.
func (d *Disk) Inject(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = append(d.faults, f)
}

// SetFull makes every write fail that would make a file longer, as a disk does
// whose blocks are all taken. Overwriting goes on.
func (d *Disk) SetFull(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

// Heal ends every fault but a cut.
func (d *Disk) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults, d.full = nil, false
}

// Lie makes every sync from here on report success without an effect: a harness
// that claims to see losses has to notice such a disk.
func (d *Disk) Lie() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lies = true
}

// Cut takes the power away: from now on every operation fails and nothing
// becomes durable.
func (d *Disk) Cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = true
}

// CutAfter takes the power away in place of the change after the next n, where
// a change is a write, a sync, or what makes, renames, shortens or removes a name.
func (d *Disk) CutAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = n
}

// IsCut reports whether the power is gone.
func (d *Disk) IsCut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cut
}

// Restore gives the power back to a disk that was Cut and is used by nobody,
// without what was not durable. See the package comment for rng.
func (d *Disk) Restore(rng *rand.Rand) (Loss, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.cut {
		return Loss{}, errors.New("restore a disk that was not cut")
	}
	l, err := d.j.lose(rng)
	d.cut, d.left = false, -1
	return l, err
}

// strike applies the faults to an operation on a path; it may take its time.
func (d *Disk) strike(op Op, path func() string) syscall.Errno {
	d.mu.Lock()
	if d.cut {
		d.mu.Unlock()
		return syscall.EIO
	}
	var errno syscall.Errno
	var delay time.Duration
	rest := d.faults[:0:0]
	for _, f := range d.faults {
		if f.Op != op || !strings.HasSuffix(path(), f.Suffix) || errno != 0 {
			rest = append(rest, f)
			continue
		}
		if f.After > 0 {
			f.After--
			rest = append(rest, f)
			continue
		}
		errno, delay = f.Errno, max(delay, f.Delay)
		if f.Count != 1 {
			f.Count = max(f.Count-1, 0)
			rest = append(rest, f)
		}
	}
	d.faults = rest
	if errno != 0 {
		d.stats.Failed++
	}
	d.mu.Unlock()
	time.Sleep(delay)
	return errno
}

// alive runs a change under the lock unless the power is cut.
func (d *Disk) alive(f func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left == 0 {
		d.cut = true
	}
	d.left = max(d.left-1, -1)
	if d.cut {
		return syscall.EIO
	}
	return f()
}

// name is the present path of an open file, which may have been renamed since.
func name(fd int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return ""
	}
	return path
}

func (d *Disk) write(fd int, data []byte, off int64) (n int, err error) {
	if errno := d.strike(OpWrite, func() string { return name(fd) }); errno != 0 {
		return 0, errno
	}
	return n, d.alive(func() error {
		d.stats.Writes++
		if d.full {
			var st syscall.Stat_t
			if err := syscall.Fstat(fd, &st); err != nil {
				return err
			}
			if off+int64(len(data)) > st.Size {
				d.stats.Failed++
				return syscall.ENOSPC
			}
		}
		if err := d.j.touch(fd, off, int64(len(data))); err != nil {
			return err
		}
		n, err = syscall.Pwrite(fd, data, off)
		return err
	})
}

func (d *Disk) sync(fd int) error {
	if errno := d.strike(OpSync, func() string { return name(fd) }); errno != 0 {
		return errno
	}
	return d.alive(func() error {
		d.stats.Syncs++
		if d.lies {
			return nil
		}
		var st syscall.Stat_t
		if err := syscall.Fstat(fd, &st); err != nil {
			return err
		}
		d.j.synced(st.Ino)
		return nil
	})
}

func (d *Disk) syncDir(path string) error {
	if errno := d.strike(OpSync, func() string { return path }); errno != 0 {
		return errno
	}
	return d.alive(func() error {
		d.stats.DirSyncs++
		if d.lies {
			return nil
		}
		ino, err := inode(path)
		if err != nil {
			return err
		}
		return d.j.syncedDir(ino)
	})
}

func (d *Disk) truncate(path string, size int64) error {
	return d.alive(func() error {
		fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = syscall.Close(fd) }() // nothing was buffered
		if err := d.j.truncate(fd, size); err != nil {
			return err
		}
		return syscall.Ftruncate(fd, size)
	})
}
