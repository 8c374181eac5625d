// Package archive copies the files of the embedded store to an object store, for
// safe-keeping and for tools that read Parquet from there.
//
// # What it owns
//
// The objects below one prefix of one bucket. It owns no goroutine: Run works on
// the caller's until its context ends.
//
// # Invariants
//
//   - Objects of a shard never overlap: the archive is treated as a peer that
//     lacks ranges of the log and gets exactly those, whole files where they fit and
//     single flushes out of compacted files where they do not. Names say the ranges,
//     as in the store, so that a list of the bucket is the whole state.
//   - Only what is complete is copied: windows of receipt that are over.
//   - An object is put whole or not at all (S3 promises that) and never changed.
//
// # What it does not do
//
// It never deletes, restores nothing and answers no query: the objects are ordinary
// segment files (store/parquet/FORMAT.md) under SHARD/NAME. It does not hold back
// retention: rows that expire before they were copied are not in the archive, which
// a log entry and a metric say.
//
// # Promises under concurrency and failure
//
// Only the node that leads a shard copies it, and proves that for every object; in
// the moment in which leadership changes two nodes may both copy a range that they
// compacted differently, and objects then overlap. A failed copy is repeated with
// the next round; a metric says when the last round began that left nothing behind.
package archive
