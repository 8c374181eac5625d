// Package snapfile is hashicorp/raft's file snapshot store with its names made
// durable. Raft v1.8.0 syncs the two files of a snapshot and the directory that
// the snapshot's directory is renamed in, but neither the snapshot's directory
// itself, which holds the names of the files, nor the directories above it when
// it makes them. A power loss may then leave an empty snapshot, after the log
// that it replaces was deleted. Most file systems of Linux happen to write a new
// file's name with its first fsync; POSIX does not promise it.
//
// It also gives meta.json, which says at which index the snapshot ends and who is
// a member, a checksum: raft's covers the state alone. The third file of a
// snapshot, meta.sum, is the line "crc32c " and eight hexadecimal digits.
//
// A snapshot counts as taken when Close of its sink has returned nil, and is
// durable then. A crash before that leaves the snapshot before it, which the
// store still holds because it keeps two.
//
// Example:
//
//	snaps, err := snapfile.Open(dir, 2, logger)
//	r, err := raft.NewRaft(conf, fsm, log, log, snaps, transport)
package snapfile
