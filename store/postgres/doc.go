// Package postgres is the shared store: one PostgreSQL database, better with
// TimescaleDB in it, into which the leader of each shard writes the compacted
// batches of its log, each exactly once.
//
// # What it owns
//
// The tables of FORMAT.md in one schema of one database, at most Config.Conns
// connections, and one goroutine that connects, migrates the schema, asks an idle
// database every few seconds whether it is still there, and looks after the
// partitions of a plain table. One database (or schema, with search_path) serves
// one cluster.
//
// # Invariants
//
//   - rows of a lane of shard s in the database = rows of that lane in s's log up
//     to flush_watermarks.last_index, in the live lane without those of the gap
//     that the row of the backlog lane describes: rows and watermarks change in one transaction, whose last
//     statements are a compare-and-set of that row for every batch in it. So a
//     repeated write, and the write of a leader that is none any more, change
//     nothing; of several batches in one transaction only such a one is left out.
//   - A term never goes back: once a leader of term t has written, no earlier one
//     can.
//   - Every row of a committed batch is in telemetry, or in dead_letters with the
//     server's reason.
//   - A reader's rows and watermark come from one snapshot.
//
// # What it does not do
//
// It decides nothing about watermarks that are not where they should be: a
// database that lost its tail, or that belongs to another cluster, is for the
// caller to judge. It buffers no rows: while the database is away, the log keeps
// them. It drops
// rows by age only where Config.Retention says so.
//
// # Promises under concurrency and failure
//
// All methods may be called from any goroutine. Open does not wait for the
// server; calls fail at once with store.ErrUnavailable while there is none, and
// go on by themselves when it is back, or when another one answers at the same
// address. When Write returns nil, the batch is committed (synchronous_commit is
// turned on where it is off). When it returns an error that is no
// *store.WatermarkError, the batch may be committed or not: Watermarks tells, and
// writing the same batch again is always safe. A session of ours that falls
// silent inside a transaction is ended by the server after Config.IdleTimeout,
// so that its locks do not keep a successor waiting for longer.
//
// # Rights
//
// The least that works is three roles. The owner runs the migrations (Migrate):
//
//	create role sluice_owner login; grant create on schema public to sluice_owner;
//
// The nodes run with Config.ManualMigrations as
//
//	create role sluice_writer login;
//	grant select on sluice_schema_version to sluice_writer;
//	grant select, insert on telemetry to sluice_writer;
//	grant select on telemetry_1m, telemetry_1h to sluice_writer; -- else buckets are computed from the readings
//	grant select, insert, update, delete on dead_letters, dead_messages to sluice_writer;
//	grant select, insert, update on flush_watermarks, devices, device_changes, anomalies to sluice_writer;
//	grant execute on function telemetry_partition, telemetry_expire to sluice_writer; -- plain PostgreSQL only
//
// and dashboards as
//
//	create role sluice_reader login;
//	grant select on telemetry, telemetry_1m, telemetry_1h, devices, device_changes, anomalies, dead_letters, flush_watermarks to sluice_reader;
//
// TimescaleDB's jobs (compression, retention, refresh) follow the configuration of
// whoever migrates. Without ManualMigrations the nodes' role owns the tables. CREATE EXTENSION
// timescaledb needs a superuser once, before the first migration; without the
// extension the readings go into plain partitions.
//
// The tables are in FORMAT.md, the reasons in DESIGN.md.
//
//	db, err := postgres.Open(logger, reg, postgres.Config{URL: url, Cluster: identity.ClusterID})
//	err = db.Write(ctx, batch)                  // all of it and the watermark, or nothing
//	at, err := db.Watermarks(ctx, batch.Shard)        // per lane
//	points, at, err := db.Read(ctx, batch.Shard, store.Query{Device: "sensor-001", To: math.MaxInt64, Limit: 1000})
//	err = db.Close()
package postgres
