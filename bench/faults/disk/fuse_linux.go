package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Available is nil where disks can be mounted, and wraps ErrUnavailable
// otherwise.
func Available() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if _, err := exec.LookPath("fusermount3"); err != nil && os.Geteuid() != 0 {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// writeBytesMax is the largest request of the kernel; a segment is zeroed in
// fewer of them.
const writeBytesMax = 256 << 10

// Mount mounts a disk at mountpoint whose content is kept below backing; both
// are made if missing and must be on the same file system only among
// themselves.
func Mount(backing, mountpoint string) (*Disk, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	d, err := newDisk(backing, mountpoint)
	if err != nil {
		return nil, err
	}
	data := &fs.LoopbackRoot{Path: d.j.root}
	root := &node{LoopbackNode: fs.LoopbackNode{RootData: data}, d: d}
	data.RootNode = root
	never := time.Duration(0) // a power loss changes what the kernel would remember
	srv, err := fs.Mount(mountpoint, root, &fs.Options{
		AttrTimeout: &never, EntryTimeout: &never, NegativeTimeout: &never,
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "powerloss", Name: "powerloss", MaxWrite: writeBytesMax, DisableXAttrs: true},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: mount %s: %w", ErrUnavailable, mountpoint, err)
	}
	d.unmount = func() error {
		err := srv.Unmount()
		if err == nil {
			return nil
		}
		// Somebody holds a file: detach, and end what waits for us, or a process
		// that serves its own files never gets through its exit.
		if aerr := abort(mountpoint); aerr != nil {
			return fmt.Errorf("unmount %s: %w", mountpoint, errors.Join(err, aerr))
		}
		return nil
	}
	return d, nil
}

// abort detaches a mount and ends its connection: whoever waits for an answer
// gets ENOTCONN.
func abort(mountpoint string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(mountpoint, &st); err != nil {
		return err
	}
	if err := syscall.Unmount(mountpoint, syscall.MNT_DETACH); err != nil {
		return err
	}
	control, err := os.MkdirTemp("", "fusectl-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(control) }() // empty by then
	if err := syscall.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	connection := filepath.Join(control, strconv.FormatUint(st.Dev&0xff|(st.Dev>>12)&0xfff00, 10), "abort")
	err = os.WriteFile(connection, []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		err = nil // the last user let go meanwhile, so that the connection ended with the mount
	}
	return errors.Join(err, syscall.Unmount(control, 0))
}

// node is a file or directory.
type node struct {
	fs.LoopbackNode
	d *Disk
}

var (
	_ fs.NodeCreater        = (*node)(nil)
	_ fs.NodeOpener         = (*node)(nil)
	_ fs.NodeOpendirHandler = (*node)(nil)
	_ fs.NodeMkdirer        = (*node)(nil)
	_ fs.NodeUnlinker       = (*node)(nil)
	_ fs.NodeRmdirer        = (*node)(nil)
	_ fs.NodeRenamer        = (*node)(nil)
	_ fs.NodeSetattrer      = (*node)(nil)
	_ fs.NodeLinker         = (*node)(nil)
	_ fs.NodeSymlinker      = (*node)(nil)
	_ fs.NodeMknoder        = (*node)(nil)
	_ fs.NodeCopyFileRanger = (*node)(nil)
	_ fs.FileReader         = (*handle)(nil)
	_ fs.FileWriter         = (*handle)(nil)
	_ fs.FileFsyncer        = (*handle)(nil)
	_ fs.FileGetattrer      = (*handle)(nil)
	_ fs.FileFlusher        = (*handle)(nil)
	_ fs.FileReleaser       = (*handle)(nil)
	_ fs.FileFsyncdirer     = (*dirHandle)(nil)
	_ fs.FileReaddirenter   = (*dirHandle)(nil)
	_ fs.FileSeekdirer      = (*dirHandle)(nil)
	_ fs.FileReleasedirer   = (*dirHandle)(nil)
	_ fs.NodeGetattrer      = (*node)(nil)
	_ fs.NodeReaddirer      = (*node)(nil)
	_ fs.FileHandle         = (*handle)(nil)
	_ fs.InodeEmbedder      = (*node)(nil)
)

func (n *node) path(name ...string) string {
	return filepath.Join(append([]string{n.d.j.root, n.Path(n.Root())}, name...)...)
}

func errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return fs.ToErrno(err)
}

// Create implements fs.NodeCreater.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	path := n.path(name)
	var child *fs.Inode
	var h *handle
	err := n.d.alive(func() error {
		_, missing := os.Lstat(path)
		fd, err := syscall.Open(path, int(flags)&^(syscall.O_APPEND|syscall.O_DIRECT)|syscall.O_CREAT|syscall.O_CLOEXEC, mode)
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Fstat(fd, &st); err != nil {
			return errors.Join(err, syscall.Close(fd))
		}
		if missing != nil {
			n.d.j.created(st.Ino)
			n.d.gens[st.Ino]++
			if err := n.d.j.create(path); err != nil {
				return errors.Join(err, syscall.Close(fd))
			}
		}
		out.FromStat(&st)
		child = n.child(ctx, &st)
		h = &handle{d: n.d, fd: fd}
		return nil
	})
	if err != nil {
		return nil, nil, 0, errno(err)
	}
	return child, h, fuse.FOPEN_DIRECT_IO, 0
}

// child is the node of a file; the disk is locked.
func (n *node) child(ctx context.Context, st *syscall.Stat_t) *fs.Inode {
	c := &node{LoopbackNode: fs.LoopbackNode{RootData: n.RootData}, d: n.d}
	return n.NewInode(ctx, c, fs.StableAttr{Mode: st.Mode, Ino: st.Ino, Gen: n.d.gens[st.Ino] + 1})
}

// Lookup implements fs.NodeLookuper.
func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	var st syscall.Stat_t
	if err := syscall.Lstat(n.path(name), &st); err != nil {
		return nil, errno(err)
	}
	out.FromStat(&st)
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	return n.child(ctx, &st), 0
}

// Open implements fs.NodeOpener. Truncation by O_TRUNC comes as Setattr.
func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	path := n.path()
	fd, err := syscall.Open(path, int(flags)&^(syscall.O_APPEND|syscall.O_DIRECT|syscall.O_TRUNC)|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, errno(err)
	}
	return &handle{d: n.d, fd: fd}, fuse.FOPEN_DIRECT_IO, 0
}

// Mkdir implements fs.NodeMkdirer.
func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (child *fs.Inode, eno syscall.Errno) {
	path := n.path(name)
	err := n.d.alive(func() error {
		if err := syscall.Mkdir(path, mode); err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		n.d.gens[st.Ino]++
		out.FromStat(&st)
		child = n.child(ctx, &st)
		return n.d.j.create(path)
	})
	return child, errno(err)
}

// Unlink implements fs.NodeUnlinker.
func (n *node) Unlink(_ context.Context, name string) syscall.Errno {
	return errno(n.d.alive(func() error { return n.d.j.remove(n.path(name)) }))
}

// Rmdir implements fs.NodeRmdirer.
func (n *node) Rmdir(_ context.Context, name string) syscall.Errno {
	return errno(n.d.alive(func() error {
		names, err := os.ReadDir(n.path(name))
		if err != nil {
			return err
		}
		if len(names) > 0 {
			return syscall.ENOTEMPTY
		}
		return n.d.j.remove(n.path(name))
	}))
}

// Rename implements fs.NodeRenamer.
func (n *node) Rename(_ context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	to, ok := parent.(*node)
	if !ok || flags != 0 {
		return syscall.EINVAL
	}
	return errno(n.d.alive(func() error { return n.d.j.rename(n.path(name), to.path(newName)) }))
}

// Setattr implements fs.NodeSetattrer.
func (n *node) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if err := n.d.truncate(n.path(), int64(size)); err != nil {
			return errno(err)
		}
		in.Valid &^= fuse.FATTR_SIZE
	}
	return n.LoopbackNode.Setattr(ctx, nil, in, out)
}

// Link, Symlink, Mknod and CopyFileRange have no undo.
func (n *node) Link(context.Context, fs.InodeEmbedder, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.ENOTSUP
}

// Symlink implements fs.NodeSymlinker.
func (n *node) Symlink(context.Context, string, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.ENOTSUP
}

// Mknod implements fs.NodeMknoder.
func (n *node) Mknod(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.ENOTSUP
}

// CopyFileRange implements fs.NodeCopyFileRanger.
func (n *node) CopyFileRange(context.Context, fs.FileHandle, uint64, *fs.Inode, fs.FileHandle, uint64, uint64, uint64) (uint32, syscall.Errno) {
	return 0, syscall.ENOTSUP
}

// Getattr implements fs.NodeGetattrer; a removed file that is still open has
// only its handle.
func (n *node) Getattr(ctx context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if h, ok := f.(*handle); ok {
		return h.Getattr(ctx, out)
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(n.path(), &st); err != nil {
		return errno(err)
	}
	out.FromStat(&st)
	return 0
}

// OpendirHandle implements fs.NodeOpendirHandler.
func (n *node) OpendirHandle(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h := &dirHandle{d: n.d, path: n.path()}
	return h, 0, h.Seekdir(context.Background(), 0)
}

// handle is an open file.
type handle struct {
	d  *Disk
	fd int
}

// Read implements fs.FileReader.
func (h *handle) Read(_ context.Context, buf []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := syscall.Pread(h.fd, buf, off)
	if err != nil {
		return nil, errno(err)
	}
	return fuse.ReadResultData(buf[:n]), 0
}

// Write implements fs.FileWriter.
func (h *handle) Write(_ context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	n, err := h.d.write(h.fd, data, off)
	return uint32(n), errno(err)
}

// Fsync implements fs.FileFsyncer.
func (h *handle) Fsync(context.Context, uint32) syscall.Errno {
	return errno(h.d.sync(h.fd))
}

// Getattr implements fs.FileGetattrer.
func (h *handle) Getattr(_ context.Context, out *fuse.AttrOut) syscall.Errno {
	var st syscall.Stat_t
	if err := syscall.Fstat(h.fd, &st); err != nil {
		return errno(err)
	}
	out.FromStat(&st)
	return 0
}

// Flush implements fs.FileFlusher: close(2) makes nothing durable.
func (h *handle) Flush(context.Context) syscall.Errno { return 0 }

// Release implements fs.FileReleaser.
func (h *handle) Release(context.Context) syscall.Errno { return errno(syscall.Close(h.fd)) }

// dirHandle is an open directory.
type dirHandle struct {
	d      *Disk
	path   string
	stream fs.DirStream
}

// Fsyncdir implements fs.FileFsyncdirer.
func (h *dirHandle) Fsyncdir(context.Context, uint32) syscall.Errno {
	return errno(h.d.syncDir(h.path))
}

// Readdirent implements fs.FileReaddirenter.
func (h *dirHandle) Readdirent(context.Context) (*fuse.DirEntry, syscall.Errno) {
	if !h.stream.HasNext() {
		return nil, 0
	}
	e, eno := h.stream.Next()
	return &e, eno
}

// Seekdir implements fs.FileSeekdirer.
func (h *dirHandle) Seekdir(_ context.Context, off uint64) syscall.Errno {
	if off != 0 {
		return syscall.EINVAL
	}
	stream, eno := fs.NewLoopbackDirStream(h.path)
	if eno != 0 {
		return eno
	}
	if h.stream != nil {
		h.stream.Close()
	}
	h.stream = stream
	return 0
}

// Releasedir implements fs.FileReleasedirer.
func (h *dirHandle) Releasedir(context.Context, uint32) {
	if h.stream != nil {
		h.stream.Close()
	}
}
