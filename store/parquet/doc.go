// Package parquet is the embedded store: every replica of a shard keeps the
// shard's flushed readings in immutable Parquet segment files, one per flushed
// range of the shard's log and later one for many of them, that DuckDB, pandas and
// Spark open as they are.
//
// # What it owns
//
// One directory (a lock file in it keeps a second process out), the files below
// it, a bounded cache of open files. It owns no goroutine: everything happens on
// the caller's; Maintain is the background work and runs until its context ends.
//
// # Invariants
//
//   - A file under its final name is complete, fsynced and never changed again;
//     its name (shard, first and last log index) says what it holds, so repeating
//     a flush writes nothing.
//   - A file that replaces others (compaction, retention) says so itself: the
//     directory is the manifest, and every crash leaves it readable.
//   - Whatever was compacted, every flush can be found, compared and given to a
//     peer as it was written.
//   - Segments of a shard never overlap. A batch without rows makes a file too:
//     the ranges of the files are the record of what is done.
//   - Every byte of a file is covered by a checksum that a reader verifies before
//     it uses the byte: damage gives a [CorruptError], never other rows.
//   - [Digest] depends on the batch alone, not on encoder, compressor or version:
//     replicas compare it, and a peer's file is believed only after the digest of
//     the rows decoded from it is the expected one.
//
// # What it does not do
//
// It knows no other node and decides no watermark: those callers build on Missing,
// Export, Install and SetAside. It removes no damaged file; it sets it aside.
//
// # Promises under concurrency and failure
//
// All methods may be called from any goroutine. Writes to one shard take turns;
// reads never wait for writes and see a segment as soon as Write returned it.
// When Write or Install returns nil, the file and its directory entry are on
// disk. When it returns an error the range is not done, nothing of it is
// visible, and it may be repeated; an error that matches [ErrSync] came from
// fsync, after which the process should exit rather than trust the disk.
//
// The format is in FORMAT.md, the reasons are in DESIGN.md.
//
//	s, err := parquet.Open(logger, reg, parquet.Config{Dir: dir})
//	seg, err := s.Write(ctx, batch)            // durable and readable now
//	points, upTo, err := s.Read(ctx, batch.Shard, seg.To, store.Query{
//		Device: "sensor-001", From: from, To: to, Limit: 1000,
//	})
package parquet
