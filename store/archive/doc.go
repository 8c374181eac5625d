// Package archive copies the files of the embedded store to an object store, for
// safe-keeping and for tools that read Parquet from there.
//
// # What it owns
//
// The objects below one prefix of one bucket. Run works on the caller's goroutine
// until its context ends, and waits for the one that it starts.
//
// # Invariants
//
//   - Objects of a shard never overlap: the archive is treated as a peer that
//     lacks ranges of the log and gets exactly those, whole files where they fit and
//     single flushes out of compacted files where they do not. Names say the ranges,
//     as in the store, so that a list of the bucket is the whole state.
//   - Only what is complete is copied: windows of receipt that are over.
//   - An object is put whole or not at all (S3 promises that) and never changed.
//   - With a Hold, a file whose retention is over stays in the store until every
//     flush in it is in the archive, within the bounds of time and room. What
//     expired earlier holds nothing.
//
// # What it does not do
//
// It never deletes and answers no query: the objects are ordinary segment files
// (store/parquet/FORMAT.md) under SHARD/NAME. It restores nothing into a store: log
// and files of a shard belong together, and its ranges mean nothing in another
// cluster. Messages makes of a file the messages again that its rows came in, for
// whoever publishes them to a cluster with any shards and any store.
//
// # Promises under concurrency and failure
//
// Only the node that leads a shard copies it, and proves that for every object; in
// the moment in which leadership changes two nodes may both copy a range that they
// compacted differently, and objects then overlap. A failed copy is repeated with
// the next round; a metric says when the last round began that left nothing behind.
//
// Every replica has a Hold of its own, which knows what its node has seen in the
// archive: the leader of a shard from copying, the others from a list that they ask
// for when they have something to expire. Replicas may so differ for a while in what
// has expired, and in nothing else: digests are compared per flush when it is
// written, an expired range is taken from a peer wherever its time is over, and a
// query is answered from one replica's files.
package archive
