// Package store is what every place that compacted batches go to has in common:
// the question a reader asks and the point it gets back. The two places are the
// sub-packages parquet (embedded, the default: every replica writes its own
// immutable segment files) and postgres (PostgreSQL and TimescaleDB: the leader
// of a shard writes, guarded by a watermark row).
package store
