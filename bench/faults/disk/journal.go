package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// SectorBytes is what a disk writes atomically: a power loss leaves each sector
// of an unsynced write old or new.
const SectorBytes = 512

// journal remembers how to undo what is not durable. Its owner holds a lock.
type journal struct {
	root    string // the backing directory
	trash   string // removed files whose removal is not durable, beside root
	thrown  int
	files   map[uint64]*file
	changes []change // of names, in their order
}

// file is what is not durable of one inode.
type file struct {
	size int64            // durable size
	old  map[int64][]byte // durable content of sectors written since; nil: beyond the durable end
}

// change is one change of a name.
type change struct {
	dir  uint64       // inode of the directory that has to be synced
	undo func() error // runs in reverse order
	done func() error // when it has become durable
}

func newJournal(root, trash string) (*journal, error) {
	if err := os.MkdirAll(trash, 0o700); err != nil {
		return nil, fmt.Errorf("make directory for removed files: %w", err)
	}
	return &journal{root: root, trash: trash, files: map[uint64]*file{}}, nil
}

// touch makes sure that what a write of n bytes at off replaces is remembered.
func (j *journal) touch(fd int, off, n int64) error {
	f, err := j.file(fd)
	if err != nil {
		return err
	}
	for s := off / SectorBytes; s*SectorBytes < off+n; s++ {
		if _, ok := f.old[s]; ok {
			continue
		}
		from := s * SectorBytes
		if from >= f.size {
			f.old[s] = nil
			continue
		}
		old := make([]byte, min(SectorBytes, f.size-from))
		if _, err := syscall.Pread(fd, old, from); err != nil {
			return fmt.Errorf("read what a write replaces: %w", err)
		}
		f.old[s] = old
	}
	return nil
}

// file returns the state of an open file; a file without one is all durable.
func (j *journal) file(fd int) (*file, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	f := j.files[st.Ino]
	if f == nil {
		f = &file{size: st.Size, old: map[int64][]byte{}}
		j.files[st.Ino] = f
	}
	return f, nil
}

// created starts a new file, of which nothing is durable.
func (j *journal) created(ino uint64) { j.files[ino] = &file{old: map[int64][]byte{}} }

// truncate remembers what a change of size takes away.
func (j *journal) truncate(fd int, size int64) error {
	f, err := j.file(fd)
	if err != nil {
		return err
	}
	if size < f.size {
		return j.touch(fd, size, f.size-size)
	}
	return nil
}

// synced makes a file's content durable.
func (j *journal) synced(ino uint64) { delete(j.files, ino) }

// change records a change of a name in the directory at path.
func (j *journal) change(dir string, undo, done func() error) error {
	ino, err := inode(dir)
	if err != nil {
		return err
	}
	j.changes = append(j.changes, change{ino, undo, done})
	return nil
}

// syncedDir makes the names in a directory durable.
func (j *journal) syncedDir(ino uint64) error {
	var rest, durable []change
	for _, c := range j.changes {
		if c.dir == ino {
			durable = append(durable, c)
		} else {
			rest = append(rest, c)
		}
	}
	j.changes = rest
	var errs []error
	for _, c := range durable { // may drop more changes, of directories that are gone now
		if c.done != nil {
			errs = append(errs, c.done())
		}
	}
	return errors.Join(errs...)
}

// Loss counts what a power loss took away.
type Loss struct {
	Sectors, Names int // undone
	Kept           int // unsynced, but survived
}

func (l Loss) String() string {
	return fmt.Sprintf("%d sectors and %d names lost, %d survived by chance", l.Sectors, l.Names, l.Kept)
}

// lose brings the backing directory into the state after a power loss. With a
// nil rng only what was synced survives.
func (j *journal) lose(rng *rand.Rand) (l Loss, err error) {
	keep := 0
	if rng != nil {
		keep = rng.IntN(len(j.changes) + 1)
	}
	var errs []error
	for i := len(j.changes) - 1; i >= keep; i-- {
		l.Names++
		errs = append(errs, j.changes[i].undo())
	}
	l.Kept += keep
	for j.changes = j.changes[:keep]; len(j.changes) > 0; {
		c := j.changes[0]
		j.changes = j.changes[1:]
		if c.done != nil {
			errs = append(errs, c.done())
		}
	}
	paths, err := j.paths()
	errs = append(errs, err)
	for _, ino := range slices.Sorted(maps.Keys(j.files)) {
		if path, ok := paths[ino]; ok {
			errs = append(errs, j.files[ino].lose(path, rng, &l))
		}
	}
	j.files = map[uint64]*file{}
	return l, errors.Join(errs...)
}

// lose undoes what was not synced of one file.
func (f *file) lose(path string, rng *rand.Rand, l *Loss) error {
	h, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("undo writes: %w", err)
	}
	defer func() { _ = h.Close() }() // errors of writes below are what matters
	info, err := h.Stat()
	if err != nil {
		return fmt.Errorf("undo writes: %w", err)
	}
	size := f.size
	if rng != nil && rng.IntN(2) == 0 {
		size = info.Size()
	}
	zeros := make([]byte, SectorBytes)
	for _, s := range slices.Sorted(maps.Keys(f.old)) {
		if rng != nil && rng.IntN(2) == 0 {
			l.Kept++
			continue
		}
		l.Sectors++
		old := f.old[s]
		if old == nil {
			if s*SectorBytes >= size {
				continue // the truncation below takes it
			}
			old = zeros
		}
		if _, err := h.WriteAt(old, s*SectorBytes); err != nil {
			return fmt.Errorf("undo writes: %w", err)
		}
	}
	if err := h.Truncate(size); err != nil {
		return fmt.Errorf("undo writes: %w", err)
	}
	return nil
}

// paths finds the path of every inode below root.
func (j *journal) paths() (map[uint64]string, error) {
	out := map[uint64]string{}
	err := filepath.WalkDir(j.root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		ino, err := inode(path)
		out[ino] = path
		return err
	})
	return out, err
}

// at runs f with the present path of a name in the directory dir, which may
// have been renamed since.
func (j *journal) at(dir uint64, name string, f func(path string) error) error {
	paths, err := j.paths()
	if err != nil {
		return err
	}
	path, ok := paths[dir]
	if !ok {
		return fmt.Errorf("undo a change of %s: its directory is gone", name)
	}
	return f(filepath.Join(path, name))
}

// discard moves what is at path out of the way and returns where it is.
func (j *journal) discard(path string) (string, error) {
	j.thrown++
	away := filepath.Join(j.trash, strconv.Itoa(j.thrown))
	return away, os.Rename(path, away)
}

func inode(path string) (uint64, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Ino, nil
}
