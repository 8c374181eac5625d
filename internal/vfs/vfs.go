package vfs

import (
	"errors"
	"io"
)

// ErrLocked is wrapped by Lock when another holder has the lock.
var ErrLocked = errors.New("locked by another process")

// FS is a file system. Names are slash-separated paths.
type FS interface {
	// Create makes a new, empty file for reading and writing; it is an error
	// (wrapping fs.ErrExist) when the name exists.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing, OpenRead for reading.
	// A missing file is an error that wraps fs.ErrNotExist.
	Open(name string) (File, error)
	OpenRead(name string) (File, error)
	// Rename replaces newname if it exists. Durable after SyncDir.
	Rename(oldname, newname string) error
	// Remove deletes a file. Durable after SyncDir.
	Remove(name string) error
	// MkdirAll makes a directory and its parents, durably.
	MkdirAll(dir string) error
	// List returns the base names of the files in a directory, sorted.
	List(dir string) ([]string, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(dir string) error
	// Lock takes an advisory lock on the named file, which it creates if need
	// be (a shared lock is happy with a missing file); it does not wait. The lock
	// goes with the returned Closer or with the process.
	Lock(name string, shared bool) (io.Closer, error)
}

// File is one open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Fdatasync makes every byte written so far durable, and the file's size.
	Fdatasync() error
	// Size is the file's length in bytes.
	Size() (int64, error)
}
