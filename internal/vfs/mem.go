package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
)

// SectorBytes is what a disk writes atomically: a power loss leaves each sector
// of an unsynced write either old or new.
const SectorBytes = 512

// OpKind names an operation that Mem can observe and fail.
type OpKind uint8

// The operations.
const (
	OpCreate OpKind = iota
	OpWrite
	OpSync
	OpRename
	OpRemove
	OpSyncDir
	OpRead
)

func (k OpKind) String() string {
	return [...]string{"create", "write", "sync", "rename", "remove", "syncdir", "read"}[k]
}

// Op is one operation about to happen.
type Op struct {
	Kind   OpKind
	Name   string // file, or directory for OpSyncDir; the old name for OpRename
	Offset int64  // OpWrite and OpRead
	Bytes  int    // OpWrite and OpRead
}

// Mem is a file system in memory.
type Mem struct {
	mu      sync.Mutex
	hook    func(Op) error
	lies    map[OpKind]bool
	names   map[string]*inode // what a running process sees
	durable map[string]*inode // what a power loss leaves
	journal []change          // changes of names since their directory was synced, in order
	locks   map[string]int    // holders; -1 is an exclusive one
}

var _ FS = (*Mem)(nil)

// change is one unsynced change of the name space; a nil inode is a removal.
type change struct {
	dir string
	set map[string]*inode
}

// inode is a file's content: now, and after a power loss.
type inode struct {
	data  []byte
	disk  []byte
	dirty map[int64]struct{} // sectors of data that differ from disk or may
}

// NewMem makes an empty file system.
func NewMem() *Mem {
	return &Mem{names: map[string]*inode{}, durable: map[string]*inode{}, locks: map[string]int{}}
}

// SetHook has h called before every operation from the goroutine that asked for
// it; an error makes the operation fail without an effect. nil removes the hook.
func (m *Mem) SetHook(h func(Op) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = h
}

// Lie makes every OpSync or OpSyncDir from here on report success without an
// effect: a disk like that must be noticed by a test that claims to see losses.
func (m *Mem) Lie(kind OpKind) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lies == nil {
		m.lies = map[OpKind]bool{}
	}
	m.lies[kind] = true
}

func (m *Mem) before(op Op) error {
	m.mu.Lock()
	h := m.hook
	m.mu.Unlock()
	if h == nil {
		return nil
	}
	return h(op)
}

// CrashClone returns the file system as a power loss at this moment would leave
// it. With a nil rng only what was synced survives; otherwise a random subset of
// the unsynced sectors and a random prefix of the unsynced name changes survive
// too, which is as much as a disk and a journal may do on their own.
func (m *Mem) CrashClone(rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := maps.Clone(m.durable)
	if rng != nil && len(m.journal) > 0 {
		for _, c := range m.journal[:rng.IntN(len(m.journal)+1)] {
			c.apply(names)
		}
	}
	out := NewMem()
	seen := map[*inode]*inode{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		ino := names[name]
		if seen[ino] == nil {
			seen[ino] = ino.afterCrash(rng)
		}
		out.names[name] = seen[ino]
	}
	out.durable = maps.Clone(out.names)
	return out
}

func (c change) apply(names map[string]*inode) {
	for name, ino := range c.set {
		if ino == nil {
			delete(names, name)
		} else {
			names[name] = ino
		}
	}
}

func (n *inode) afterCrash(rng *rand.Rand) *inode {
	disk := slices.Clone(n.disk)
	if rng != nil {
		for _, s := range slices.Sorted(maps.Keys(n.dirty)) {
			if rng.IntN(2) == 0 {
				disk = n.flush(disk, s)
			}
		}
	}
	return &inode{data: slices.Clone(disk), disk: disk, dirty: map[int64]struct{}{}}
}

// flush copies one sector of the current content to disk.
func (n *inode) flush(disk []byte, sector int64) []byte {
	from := sector * SectorBytes
	to := min(from+SectorBytes, int64(len(n.data)))
	if to > int64(len(disk)) {
		disk = append(disk, make([]byte, to-int64(len(disk)))...)
	}
	copy(disk[from:to], n.data[from:to])
	return disk
}

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	if err := m.before(Op{Kind: OpCreate, Name: name}); err != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: err}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	ino := &inode{dirty: map[int64]struct{}{}}
	m.change(path.Dir(name), map[string]*inode{name: ino})
	return &memFile{fs: m, name: name, ino: ino}, nil
}

func (m *Mem) change(dir string, set map[string]*inode) {
	c := change{dir: dir, set: set}
	c.apply(m.names)
	m.journal = append(m.journal, c)
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ino := m.names[name]
	if ino == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &memFile{fs: m, name: name, ino: ino}, nil
}

// OpenRead implements FS.
func (m *Mem) OpenRead(name string) (File, error) { return m.Open(name) }

// Rename implements FS.
func (m *Mem) Rename(oldname, newname string) error {
	if err := m.before(Op{Kind: OpRename, Name: oldname}); err != nil {
		return &fs.PathError{Op: "rename", Path: oldname, Err: err}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	ino := m.names[oldname]
	if ino == nil {
		return &fs.PathError{Op: "rename", Path: oldname, Err: fs.ErrNotExist}
	}
	m.change(path.Dir(newname), map[string]*inode{oldname: nil, newname: ino})
	return nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	if err := m.before(Op{Kind: OpRemove, Name: name}); err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	m.change(path.Dir(name), map[string]*inode{name: nil})
	return nil
}

// MkdirAll implements FS; directories exist by themselves here.
func (m *Mem) MkdirAll(string) error { return nil }

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.names {
		if path.Dir(name) == path.Clean(dir) {
			names = append(names, path.Base(name))
		}
	}
	slices.Sort(names)
	return names, nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(dir string) error {
	if err := m.before(Op{Kind: OpSyncDir, Name: dir}); err != nil {
		return &fs.PathError{Op: "sync", Path: dir, Err: err}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lies[OpSyncDir] {
		return nil
	}
	var rest []change
	for _, c := range m.journal {
		if c.dir == path.Clean(dir) {
			c.apply(m.durable)
		} else {
			rest = append(rest, c)
		}
	}
	m.journal = rest
	return nil
}

// Lock implements FS.
func (m *Mem) Lock(name string, shared bool) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	held := m.locks[name]
	switch {
	case held == 0 && !shared:
		m.locks[name] = -1
	case held >= 0 && shared:
		m.locks[name]++
	default:
		return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	return &memLock{m: m, name: name, shared: shared}, nil
}

type memLock struct {
	m      *Mem
	name   string
	shared bool
	once   sync.Once
}

func (l *memLock) Close() error {
	l.once.Do(func() {
		l.m.mu.Lock()
		defer l.m.mu.Unlock()
		if l.shared {
			l.m.locks[l.name]--
		} else {
			l.m.locks[l.name] = 0
		}
	})
	return nil
}
