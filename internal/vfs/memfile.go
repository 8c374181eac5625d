package vfs

import (
	"io"
	"io/fs"
	"slices"
)

// memFile is a handle of an inode of a Mem.
type memFile struct {
	fs   *Mem
	name string
	ino  *inode
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fs.before(Op{Kind: OpRead, Name: f.name, Offset: off, Bytes: len(p)}); err != nil {
		return 0, &fs.PathError{Op: "read", Path: f.name, Err: err}
	}
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if off >= int64(len(f.ino.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.ino.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.before(Op{Kind: OpWrite, Name: f.name, Offset: off, Bytes: len(p)}); err != nil {
		return 0, &fs.PathError{Op: "write", Path: f.name, Err: err}
	}
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n := f.ino
	if end := off + int64(len(p)); end > int64(len(n.data)) {
		n.data = append(n.data, make([]byte, end-int64(len(n.data)))...)
	}
	copy(n.data[off:], p)
	for s := off / SectorBytes; s*SectorBytes < off+int64(len(p)); s++ {
		n.dirty[s] = struct{}{}
	}
	return len(p), nil
}

func (f *memFile) Fdatasync() error {
	if err := f.fs.before(Op{Kind: OpSync, Name: f.name}); err != nil {
		return &fs.PathError{Op: "sync", Path: f.name, Err: err}
	}
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.lies[OpSync] {
		return nil
	}
	for s := range f.ino.dirty {
		f.ino.disk = f.ino.flush(f.ino.disk, s)
	}
	clear(f.ino.dirty)
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.ino.data)), nil
}

func (f *memFile) Close() error { return nil }

// Mutate changes the content of a file behind everybody's back, durably: rot,
// truncation. change gets the bytes and returns what replaces them.
func (m *Mem) Mutate(name string, change func([]byte) []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ino := m.names[name]
	if ino == nil {
		return &fs.PathError{Op: "mutate", Path: name, Err: fs.ErrNotExist}
	}
	ino.data = change(slices.Clone(ino.data))
	ino.disk = slices.Clone(ino.data)
	clear(ino.dirty)
	return nil
}

// Clone returns an independent copy of everything, synced or not: what a kill
// of the process, but not of the machine, leaves.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := NewMem()
	for name, ino := range m.names {
		out.names[name] = &inode{data: slices.Clone(ino.data), disk: slices.Clone(ino.data), dirty: map[int64]struct{}{}}
		out.durable[name] = out.names[name]
	}
	return out
}
