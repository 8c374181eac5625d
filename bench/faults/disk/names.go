package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// The operations on names: each is done in the backing directory and recorded
// with its inverse.

// create records a file or directory that has just appeared at path.
func (j *journal) create(path string) error {
	dir, name := filepath.Split(path)
	ino, err := inode(filepath.Clean(dir))
	if err != nil {
		return err
	}
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		own, err := inode(path)
		if err != nil {
			return err
		}
		delete(j.files, own) // a file that is gone may have had the number
	}
	undo := func() error { return j.at(ino, name, os.RemoveAll) }
	return j.change(filepath.Clean(dir), undo, nil)
}

// remove takes a name away; what it named stays in the trash until the removal
// is durable.
func (j *journal) remove(path string) error {
	dir, name := filepath.Split(path)
	ino, err := inode(filepath.Clean(dir))
	if err != nil {
		return err
	}
	away, err := j.discard(path)
	if err != nil {
		return err
	}
	undo := func() error {
		return j.at(ino, name, func(path string) error { return os.Rename(away, path) })
	}
	return j.change(filepath.Clean(dir), undo, func() error { return j.purge(away) })
}

// rename moves a name; what it replaces stays in the trash until then.
func (j *journal) rename(from, to string) error {
	fromDir, fromName := filepath.Split(from)
	toDir, toName := filepath.Split(to)
	fromIno, err := inode(filepath.Clean(fromDir))
	if err != nil {
		return err
	}
	toIno, err := inode(filepath.Clean(toDir))
	if err != nil {
		return err
	}
	replaced := ""
	if _, err := os.Lstat(to); err == nil {
		if replaced, err = j.discard(to); err != nil {
			return err
		}
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	undo := func() error {
		return j.at(toIno, toName, func(to string) error {
			err := j.at(fromIno, fromName, func(from string) error { return os.Rename(to, from) })
			if err == nil && replaced != "" {
				err = os.Rename(replaced, to)
			}
			return err
		})
	}
	done := func() error {
		if replaced == "" {
			return nil
		}
		return j.purge(replaced)
	}
	return j.change(filepath.Clean(toDir), undo, done)
}

// purge deletes what is in the trash for good, with all that is remembered of it:
// the backing file system will use the numbers of its inodes again.
func (j *journal) purge(away string) error {
	gone := map[uint64]bool{}
	err := filepath.WalkDir(away, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		ino, err := inode(path)
		gone[ino] = true
		delete(j.files, ino)
		return err
	})
	errs := []error{err, os.RemoveAll(away)}
	var rest, inside []change
	for _, c := range j.changes {
		if gone[c.dir] {
			inside = append(inside, c)
		} else {
			rest = append(rest, c)
		}
	}
	j.changes = rest
	for _, c := range inside {
		if c.done != nil {
			errs = append(errs, c.done())
		}
	}
	return errors.Join(errs...)
}
