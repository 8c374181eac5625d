package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// aggregateView is a view of migration 003.
type aggregateView struct {
	Name string
	Step time.Duration
}

// aggregateViews, the finest first. Their steps divide each other.
var aggregateViews = []aggregateView{{"telemetry_1m", time.Minute}, {"telemetry_1h", time.Hour}}

// community reports whether the extension may have continuous aggregates and a
// columnstore, which its Apache edition refuses.
func (db *DB) community(ctx context.Context, c *pgx.Conn) (bool, error) {
	var license *string
	if err := c.QueryRow(ctx, "select current_setting('timescaledb.license', true)").Scan(&license); err != nil {
		return false, fmt.Errorf("read TimescaleDB's license: %w", err)
	}
	return license != nil && *license == "timescale", nil
}

// columnstore reports whether migration 003 has made continuous aggregates that
// this role can ask about what they lack.
func (db *DB) columnstore(ctx context.Context, c *conn, l layout) (bool, error) {
	if l != layoutHypertable {
		return false, nil
	}
	ctx, cancel := db.bounded(ctx)
	defer cancel()
	var n int
	err := c.QueryRow(ctx, `select count(*) from timescaledb_information.continuous_aggregates
		where view_schema = current_schema() and view_name = any($1)
		and to_regclass('_timescaledb_catalog.continuous_aggs_hypertable_invalidation_log') is not null
		and to_regclass('_timescaledb_catalog.continuous_aggs_materialization_invalidation_log') is not null
		and has_table_privilege('_timescaledb_catalog.continuous_aggs_hypertable_invalidation_log', 'select')
		and has_table_privilege('_timescaledb_catalog.continuous_aggs_materialization_invalidation_log', 'select')
		and to_regprocedure('_timescaledb_functions.cagg_watermark(integer)') is not null`,
		[]string{aggregateViews[0].Name, aggregateViews[1].Name}).Scan(&n)
	switch {
	case err != nil && sqlState(err) == "":
		return false, fmt.Errorf("look for continuous aggregates: %w", err)
	case err != nil:
		return false, nil //nolint:nilerr // a TimescaleDB of another kind: everything works without
	}
	return n == len(aggregateViews), nil
}

// policy is a background job of TimescaleDB that follows the configuration.
type policy struct {
	proc   string // of the job
	rel    string // the table or view it belongs to
	key    string // of its config, an interval
	want   time.Duration
	add    string // $1: the interval
	remove string
}

func (db *DB) policies() []policy {
	list := []policy{
		{"policy_compression", "telemetry", "compress_after", db.cfg.CompressAfter,
			"select add_compression_policy('telemetry', compress_after => $1::interval)", "select remove_compression_policy('telemetry')"},
		{"policy_retention", "telemetry", "drop_after", db.cfg.Retention,
			"select add_retention_policy('telemetry', drop_after => $1::interval)", "select remove_retention_policy('telemetry')"},
	}
	for _, v := range aggregateViews {
		list = append(list, policy{"policy_retention", v.Name, "drop_after", db.cfg.AggregateRetention,
			fmt.Sprintf("select add_retention_policy('%s', drop_after => $1::interval)", v.Name),
			fmt.Sprintf("select remove_retention_policy('%s')", v.Name)})
		list = append(list, db.refresh(v))
	}
	return list
}

// refresh materialises all but the youngest buckets. It never looks at what
// retention has dropped or is about to, because refreshing that would empty the
// aggregates of it.
func (db *DB) refresh(v aggregateView) policy {
	every := max(db.cfg.RefreshEvery, v.Step/2)
	start := "null"
	if db.cfg.Retention > 0 {
		start = fmt.Sprintf("interval '%d seconds'", int64(max(db.cfg.Retention-db.cfg.Chunk, 4*v.Step)/time.Second))
	}
	return policy{"policy_refresh_continuous_aggregate", v.Name, "end_offset", 2 * v.Step,
		fmt.Sprintf("select add_continuous_aggregate_policy('%s', start_offset => %s, end_offset => $1::interval, schedule_interval => interval '%d seconds')",
			v.Name, start, int64(every/time.Second)),
		fmt.Sprintf("select remove_continuous_aggregate_policy('%s')", v.Name)}
}

// applyPolicies makes TimescaleDB's jobs what the configuration says, under a
// lock, so that nodes that start together do not make them twice. A role that
// owns nothing leaves them to the owner.
func (db *DB) applyPolicies(ctx context.Context, c *conn) error {
	ctx, cancel := db.bounded(ctx)
	defer cancel()
	err := pgx.BeginFunc(ctx, c.Conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock($1)", int64(partitionLock)); err != nil {
			return err
		}
		for _, p := range db.policies() {
			if err := p.apply(ctx, tx); err != nil {
				return fmt.Errorf("%s of %s: %w", p.proc, p.rel, err)
			}
		}
		return nil
	})
	if err != nil && !passing(err) {
		db.logger.Warn("TimescaleDB's jobs (compression, retention, refresh) are not what the configuration says: start one node as the owner of the tables", "err", err)
		return nil
	}
	return err
}

// apply changes a job only when it is not what it should be: a job that is made
// anew forgets when it ran.
func (p *policy) apply(ctx context.Context, tx pgx.Tx) error {
	var same bool
	err := tx.QueryRow(ctx, `select j.config ->> $3 is not null and (j.config ->> $3)::interval = make_interval(secs => $4)
		from timescaledb_information.jobs j
		where j.proc_name = $1 and (j.hypertable_schema, j.hypertable_name) in (
			select current_schema(), $2 union all
			select materialization_hypertable_schema, materialization_hypertable_name
			from timescaledb_information.continuous_aggregates where view_schema = current_schema() and view_name = $2)`,
		p.proc, p.rel, p.key, p.want.Seconds()).Scan(&same)
	there := err == nil
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("look at the job: %w", err)
	}
	if there && same || !there && p.want == 0 {
		return nil
	}
	if there {
		if _, err := tx.Exec(ctx, p.remove); err != nil {
			return fmt.Errorf("remove the job: %w", err)
		}
	}
	if p.want == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, p.add, p.want); err != nil {
		return fmt.Errorf("add the job: %w", err)
	}
	return nil
}

// maintainEvery is how often the partitions of a plain table are looked after.
const maintainEvery = 10 * time.Minute

// maintain makes the partition of the time to come and drops those that are too
// old. It is the keeper's, and only of a plain table: TimescaleDB has jobs.
func (db *DB) maintain(now time.Time) {
	db.mu.Lock()
	partitioned := db.layout == layoutPartitioned
	db.mu.Unlock()
	if !partitioned || now.Sub(db.maintained) < maintainEvery {
		return
	}
	db.maintained = now
	if err := db.lookAfterPartitions(db.ctx, now); err != nil && db.ctx.Err() == nil {
		db.logger.Warn("partitions are not looked after, trying again", "err", explain(err), "in", maintainEvery)
	}
}

func (db *DB) lookAfterPartitions(ctx context.Context, now time.Time) (err error) {
	c, err := db.acquire(ctx, db.reads)
	if err != nil {
		return err
	}
	defer func() { db.release(c, db.reads, err) }()
	if err := db.ensurePartitions(ctx, c, nil); err != nil || db.cfg.Retention == 0 {
		return err
	}
	for {
		bounded, cancel := db.bounded(ctx)
		var gone *string
		err := c.QueryRow(bounded, "select telemetry_expire($1)", now.Add(-db.cfg.Retention)).Scan(&gone)
		cancel()
		if err != nil {
			return fmt.Errorf("drop partitions older than %v: %w", db.cfg.Retention, err)
		}
		if gone == nil {
			return nil
		}
		db.m.partitionsDropped.Inc()
		db.logger.Info("readings beyond the retention dropped", "partition", *gone, "retention", db.cfg.Retention)
		if err := db.partitions.load(ctx, c); err != nil {
			return err
		}
	}
}
