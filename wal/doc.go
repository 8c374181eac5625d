// Package wal is the write-ahead log of a node: one log, shared by the raft
// groups of all its shards and of the meta group, in recycled segment files.
// It knows nothing of devices; an entry is bytes with a group, an index and a
// term. A Group is one raft group's view: a raft.LogStore, StableStore,
// MonotonicLogStore and CommitTrackingLogStore.
//
// # What it owns
//
// The directory Config.Dir (locked against a second process) with its *.wal
// files; the index of every live entry, bounded in memory and
// in files without a name beyond that (DESIGN.md), and a cache of
// the latest entries, bounded in bytes; four goroutines: the writer, which alone
// changes state, the preparer of empty segments, the janitor that recycles and
// rewrites, and the scrubber that reads old segments for rot.
//
// # Invariants
//
//   - Group commit N+1 is written only after commit N is synced. A commit
//     carries the requests of all groups that were waiting; it costs one
//     fdatasync. The caller of StoreLogs, DeleteRange, Set and SetUint64 returns
//     after the sync of its commit and never before.
//   - A reader sees only what is synced.
//   - Every segment starts with a checkpoint: the complete small state (term,
//     vote, range, floor) of every group. So a segment is needed for the entries
//     in it and for nothing else, and segments may be recycled in any order.
//   - The last record of an index in log order is its entry, if the index is in
//     the group's range; a relocated record never changes a range.
//   - A segment is recycled only when no live entry is in it and everything that
//     replaced its content has been synced.
//   - No entry above a group's floor (SetFloor) is removed by compaction.
//
// # Failure
//
// A write or sync error latches: Failed is closed, every later call returns the
// error, nothing is synced again, and the process must exit. A full disk does
// not latch: it shows when a segment is prepared, Full turns true and entries
// are refused with ErrFull, while two reserved segments serve votes,
// configurations, small entries and truncation. Damage found by Open, GetLog,
// Verify or the scrubber is a *CorruptError; a torn tail of the last, never
// acknowledged group commit is cut by Open and logged. FORMAT.md has the bytes,
// DESIGN.md the reasons.
//
// # What it does not do
//
// No compression (entries arrive compressed), no batching beyond the group commit,
// no retry. Encryption is optional (Config.Encrypt); the keys are the operator's. It does not decide what may be deleted: raft asks
// and the floor limits.
//
// # Example
//
//	log, err := wal.Open(logger, registry, wal.Config{Dir: dir, Node: "n0.5f3a9c1e"})
//	if err != nil { ... }
//	group := log.Group(7)
//	node, err := raft.NewRaft(conf, fsm, group, group, snapshots, transport)
//	go func() { <-log.Failed(); os.Exit(1) }() // in main only
//	group.SetFloor(flushed)
package wal
