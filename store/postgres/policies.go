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
		and has_table_privilege(format('%I.%I', view_schema, view_name), 'select')
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
	want   []setting
	every  time.Duration // between two runs; 0: TimescaleDB decides
	on     bool
	add    string // $1, $2: the settings
	remove string
}

// setting is an interval of a job's configuration; 0 is null there.
type setting struct {
	key string
	d   time.Duration
}

func (db *DB) policies() []policy {
	list := []policy{
		{
			proc: "policy_compression", rel: "telemetry", want: []setting{{"compress_after", db.cfg.CompressAfter}}, on: db.cfg.CompressAfter > 0,
			add: "select add_compression_policy('telemetry', compress_after => $1::interval)", remove: "select remove_compression_policy('telemetry')",
		},
		retention("telemetry", db.cfg.Retention),
	}
	for _, v := range aggregateViews {
		list = append(list, retention(v.Name, db.cfg.AggregateRetention), db.refresh(v))
	}
	return list
}

// retentionMin is the least after which TimescaleDB drops a chunk, which covers a
// day or more anyway: the refresh of the hours needs some of them.
const retentionMin = 6 * time.Hour

func retention(rel string, d time.Duration) policy {
	return policy{
		proc: "policy_retention", rel: rel, want: []setting{{"drop_after", max(d, retentionMin)}}, on: d > 0,
		add:    fmt.Sprintf("select add_retention_policy('%s', drop_after => $1::interval)", rel),
		remove: fmt.Sprintf("select remove_retention_policy('%s')", rel),
	}
}

// refresh materialises all but the youngest buckets.
func (db *DB) refresh(v aggregateView) policy {
	every := max(db.cfg.RefreshEvery, v.Step/2)
	return policy{
		proc: "policy_refresh_continuous_aggregate", rel: v.Name, every: every, on: true,
		want: []setting{{"end_offset", 2 * v.Step}, {"start_offset", db.refreshStart()}},
		add: fmt.Sprintf("select add_continuous_aggregate_policy('%s', start_offset => $2::interval, end_offset => $1::interval, schedule_interval => interval '%d seconds')",
			v.Name, int64(every/time.Second)),
		remove: fmt.Sprintf("select remove_continuous_aggregate_policy('%s')", v.Name),
	}
}

// refreshStart is how far back a refresh looks, 0 for all the way: not at what a
// retention has dropped or is about to. Refreshing what has no readings any more
// would empty the aggregates of it, and what is older than aggregates are kept
// would come back as a few buckets among many that are gone.
func (db *DB) refreshStart() time.Duration {
	keep := time.Duration(0)
	for _, d := range []time.Duration{db.cfg.Retention, db.cfg.AggregateRetention} {
		if d > 0 && (keep == 0 || d < keep) {
			keep = max(d, retentionMin)
		}
	}
	return keep - min(keep/4, day)
}

// applyPolicies makes TimescaleDB's jobs what the configuration says, under a
// lock, so that nodes that start together do not make them twice.
func (db *DB) applyPolicies(ctx context.Context, c *conn, policies []policy) error {
	ctx, cancel := db.bounded(ctx)
	defer cancel()
	return pgx.BeginFunc(ctx, c.Conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock($1)", int64(partitionLock)); err != nil {
			return err
		}
		if err := db.applyChunk(ctx, tx); err != nil {
			return err
		}
		for _, p := range policies {
			if err := p.apply(ctx, tx); err != nil {
				return fmt.Errorf("%s of %s: %w", p.proc, p.rel, err)
			}
		}
		return nil
	})
}

// applyChunk makes the next chunks as long as the configuration says.
func (db *DB) applyChunk(ctx context.Context, tx pgx.Tx) error {
	var same bool
	if err := tx.QueryRow(ctx, `select coalesce(bool_and(time_interval = $1::interval), true) from timescaledb_information.dimensions
		where hypertable_schema = current_schema() and hypertable_name = 'telemetry'`, db.cfg.Chunk).Scan(&same); err != nil {
		return fmt.Errorf("look at the length of chunks: %w", err)
	}
	if same {
		return nil
	}
	if _, err := tx.Exec(ctx, "select set_chunk_time_interval('telemetry', $1::interval)", db.cfg.Chunk); err != nil {
		return fmt.Errorf("set the length of chunks: %w", err)
	}
	db.logger.Info("the next chunks of telemetry have another length", "chunk", db.cfg.Chunk)
	return nil
}

// apply changes a job only when it is not what it should be: a job that is made
// anew forgets when it ran.
func (p *policy) apply(ctx context.Context, tx pgx.Tx) error {
	keys, wants, args := make([]string, len(p.want)), make([]*float64, len(p.want)), make([]any, len(p.want))
	for i, w := range p.want {
		keys[i] = w.key
		if w.d > 0 {
			seconds := w.d.Seconds()
			wants[i], args[i] = &seconds, w.d
		}
	}
	var same bool
	err := tx.QueryRow(ctx, `select ($5::float8 = 0 or j.schedule_interval = make_interval(secs => $5)) and not exists (
			select from unnest($3::text[], $4::float8[]) as w(key, secs)
			where (j.config ->> w.key)::interval is distinct from make_interval(secs => w.secs))
		from timescaledb_information.jobs j
		where j.proc_name = $1 and (j.hypertable_schema, j.hypertable_name) in (
			select current_schema(), $2 union all
			select materialization_hypertable_schema, materialization_hypertable_name
			from timescaledb_information.continuous_aggregates where view_schema = current_schema() and view_name = $2)`,
		p.proc, p.rel, keys, wants, p.every.Seconds()).Scan(&same)
	there := err == nil
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("look at the job: %w", err)
	}
	if there && same && p.on || !there && !p.on {
		return nil
	}
	if there {
		if _, err := tx.Exec(ctx, p.remove); err != nil {
			return fmt.Errorf("remove the job: %w", err)
		}
	}
	if !p.on {
		return nil
	}
	if _, err := tx.Exec(ctx, p.add, args...); err != nil {
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
