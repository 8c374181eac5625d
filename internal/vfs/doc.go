// Package vfs is the file-system seam under everything of Sluice that must
// survive a power loss. It has two real implementations: OS is the machine's
// file system; Mem keeps files in memory, can be cloned as a power loss would
// leave it, and can fail or observe any single operation.
//
// The seam is as small as its users allow: positional reads and writes on
// preallocated files, fdatasync, rename, remove, directory sync and an advisory
// lock. There is no buffered writer and no append, because a log that promises
// durability has to know which bytes it has handed to the kernel.
//
// Contracts that both implementations keep:
//   - bytes written are durable after Fdatasync of a handle of that file has
//     returned nil, and not earlier;
//   - a name created, renamed or removed is durable after SyncDir of its
//     directory has returned nil, and not earlier;
//   - an error of Fdatasync says nothing about which bytes are durable and must
//     not be answered by another Fdatasync.
//
// All methods may be called from several goroutines. Nothing here owns a
// goroutine.
//
// Example:
//
//	fs := vfs.NewMem()
//	f, _ := fs.Create("a/log")
//	f.WriteAt([]byte("hello"), 0)
//	f.Fdatasync()
//	after := fs.CrashClone(nil) // "a/log" is missing: its directory was not synced
package vfs
