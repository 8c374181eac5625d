package parquet

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/sluice-iot/sluice/internal/mutate"
)

// disk is what the store needs of a file system; tests put faults and power
// losses behind it. No method is retried.
type disk interface {
	mkdir(path string) error // nil when the folder exists already
	create(path string) (file, error)
	open(path string) (file, error)
	rename(from, to string) error
	remove(path string) error
	readDir(path string) ([]fs.DirEntry, error)
	syncDir(path string) error // the entries of the folder are durable on return
}

type file interface {
	io.ReaderAt
	io.Writer
	Sync() error
	Close() error
	Stat() (fs.FileInfo, error)
}

type osDisk struct{}

func (osDisk) mkdir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (osDisk) create(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osDisk) open(path string) (file, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osDisk) rename(from, to string) error               { return os.Rename(from, to) }
func (osDisk) remove(path string) error                   { return os.Remove(path) }
func (osDisk) readDir(path string) ([]fs.DirEntry, error) { return os.ReadDir(path) }

func (osDisk) syncDir(path string) error {
	if mutate.On(mutate.SkipDirFsync) {
		return nil
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		d.Close()
		return fmt.Errorf("%w: %w", ErrSync, err)
	}
	return d.Close()
}
