// Package disk is a disk that loses power. It is a FUSE file system over a
// backing directory that remembers, for everything written since the last sync,
// what was there before: Restore puts a disk that was Cut into the state in
// which a power loss would have left it. It can also refuse to grow (ENOSPC),
// fail a chosen write or sync (EIO), and make syncs slow.
//
// # What it owns
//
// The backing directory and the mount point given to Mount, one goroutine per
// request in flight, and in memory the previous content of every sector that is
// not synced. It serves processes of their own; who mounted it looks at the same
// files in the backing directory (Root).
//
// # What is durable
//
//   - The bytes and the size of a file after fsync or fdatasync of it.
//   - A name that was created, renamed or removed after fsync of its directory;
//     for a rename that is the directory of the new name. An fsync of the file
//     itself does not make its name durable: POSIX does not promise it, though
//     some file systems do it.
//
// Everything else is lost by Restore(nil), and survives in any combination with
// Restore(rng): each unsynced sector of 512 bytes is old or new, and any prefix
// of the unsynced name changes has happened. This is the model of
// internal/vfs.Mem, for real processes.
//
// # What it does not do
//
// No mmap (files are opened with direct I/O), no hard links, no fallocate. A
// rename over a file of another directory is undone as one change.
//
// # Example
//
//	d, err := disk.Mount(backing, mountpoint)
//	if errors.Is(err, disk.ErrUnavailable) { ... } // no FUSE here
//	defer d.Close()
//	// start a process that writes below mountpoint, then
//	d.Cut()         // from now on every operation fails
//	process.Kill()
//	d.Restore(nil)  // what was not synced is gone; it may start again
package disk
