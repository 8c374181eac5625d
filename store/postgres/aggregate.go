package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// Aggregate implements shard.SharedStore: the buckets of one device in the order
// of store.Bucket.Compare, and the watermarks of the same snapshot. Whole minutes
// and hours come from the continuous aggregates where those are current.
func (db *DB) Aggregate(ctx context.Context, shard telemetry.ShardID, q store.Aggregate) (buckets []store.Bucket, at telemetry.Watermarks, err error) {
	start := time.Now()
	buckets, at, err = db.aggregate(ctx, shard, q)
	if err != nil {
		db.m.readErrors.Inc()
		return nil, at, fmt.Errorf("aggregate device %s: %w", q.Device, explain(err))
	}
	db.m.readSeconds.Observe(time.Since(start).Seconds())
	db.m.readPoints.Add(float64(len(buckets)))
	return buckets, at, nil
}

func (db *DB) aggregate(ctx context.Context, shard telemetry.ShardID, q store.Aggregate) (buckets []store.Bucket, at telemetry.Watermarks, err error) {
	if q.StepMicros <= 0 {
		return nil, at, fmt.Errorf("step of %d microseconds", q.StepMicros)
	}
	cluster, err := db.cluster()
	if err != nil {
		return nil, at, err
	}
	ctx, cancel := db.join(ctx)
	defer cancel()
	c, err := db.acquire(ctx, db.reads)
	if err != nil {
		return nil, at, err
	}
	defer func() { db.release(c, db.reads, err) }()
	ctx, done := db.bounded(ctx)
	defer done()
	err = pgx.BeginTxFunc(ctx, c.Conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(pgx.Tx) error {
		var err error
		if at, err = db.readWatermarks(ctx, c, cluster, shard); err != nil {
			return err
		}
		buckets, err = db.selectBuckets(ctx, c, q)
		return err
	})
	return buckets, at, err
}

func (db *DB) selectBuckets(ctx context.Context, c *conn, q store.Aggregate) ([]store.Bucket, error) {
	s := db.newStretch(q)
	if q.Limit <= 0 || s.from >= s.to {
		return nil, nil
	}
	if s.view != "" {
		current, err := s.current(ctx, c)
		if err != nil {
			return nil, err
		}
		if !current {
			s.view, s.lo, s.hi = "", s.to, s.to
		}
	}
	sql, args := s.selection(q)
	rows, err := c.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (b store.Bucket, err error) {
		return b, r.Scan(&b.Start, &b.Sensor, &b.Count, &b.Min, &b.Max, &b.Sum, &b.Last, &b.LastTime)
	})
	if err != nil {
		return nil, fmt.Errorf("read buckets: %w", err)
	}
	return out, nil
}

// stretch is the time of a query, and the part [lo, hi) of it that a view answers.
type stretch struct {
	from, to, lo, hi int64
	view             string // "": none
}

func (db *DB) newStretch(q store.Aggregate) stretch {
	db.mu.Lock()
	aggregates := db.aggregates
	db.mu.Unlock()
	s := stretch{from: max(q.From, timeMin), to: min(q.To, timeMax)}
	if q.After != nil {
		s.from = max(s.from, q.After.Start)
	}
	s.lo, s.hi = s.to, s.to
	if !aggregates {
		return s
	}
	for _, v := range aggregateViews { // the coarsest that fits comes last
		step := v.Step.Microseconds()
		lo, hi := ceilDiv(s.from, step)*step, floorDiv(s.to, step)*step
		if q.StepMicros%step == 0 && lo < hi {
			s.view, s.lo, s.hi = v.Name, lo, hi
		}
	}
	return s
}

func ceilDiv(a, b int64) int64 { return -floorDiv(-a, b) }

// current reports whether the view lacks nothing in [lo, hi). What lies beyond
// its own watermark it computes when it is asked; below it, what was written or
// deleted since the last refresh is in TimescaleDB's two lists of invalidations.
func (s *stretch) current(ctx context.Context, c *conn) (bool, error) {
	var stale bool
	err := c.QueryRow(ctx, `with v as (
			select mat_hypertable_id as mat, raw_hypertable_id as raw, least($3, _timescaledb_functions.cagg_watermark(mat_hypertable_id)) as hi
			from _timescaledb_catalog.continuous_agg where user_view_schema = current_schema() and user_view_name = $1
		)
		select exists (select from v, _timescaledb_catalog.continuous_aggs_hypertable_invalidation_log i
				where i.hypertable_id = v.raw and i.lowest_modified_value < v.hi and i.greatest_modified_value >= $2)
			or exists (select from v, _timescaledb_catalog.continuous_aggs_materialization_invalidation_log i
				where i.materialization_id = v.mat and i.lowest_modified_value < v.hi and i.greatest_modified_value >= $2)
			or not exists (select from v)`, s.view, s.lo, s.hi).Scan(&stale)
	if err != nil {
		return false, fmt.Errorf("look whether %s is current: %w", s.view, err)
	}
	return !stale, nil
}

// selection is the query in SQL: the inner part from the view, the rest from the
// readings, both in the buckets of the view or of the step.
func (s *stretch) selection(q store.Aggregate) (sql string, args []any) {
	args = []any{q.Device, clamp(s.from), clamp(s.to), q.StepMicros, q.Limit}
	more := ""
	if q.Sensor != "" {
		args = append(args, q.Sensor)
		more = fmt.Sprintf(" and sensor = $%d", len(args))
	}
	const bucket = "date_bin($4 * interval '1 microsecond', time, timestamptz 'epoch')"
	var b strings.Builder
	b.WriteString(`select (extract(epoch from bucket) * 1000000)::bigint, sensor, sum(count)::bigint, min(min), max(max), sum(sum),
		(array_agg(last order by last_time desc))[1], (extract(epoch from max(last_time)) * 1000000)::bigint from (`)
	if s.view != "" {
		args = append(args, clamp(s.lo), clamp(s.hi))
		fmt.Fprintf(&b, "select %s as bucket, sensor, count, min, max, sum, last, last_time from %s where device_id = $1 and time >= $%d and time < $%d%s union all ",
			bucket, s.view, len(args)-1, len(args), more)
	}
	rest := "time >= $2 and time < $3"
	if s.view != "" {
		rest = fmt.Sprintf("(time >= $2 and time < $%d or time >= $%d and time < $3)", len(args)-1, len(args))
	}
	fmt.Fprintf(&b, `select %s as bucket, sensor, 1::bigint, value, value, case when abs(value) < 1e290 then value else 0 end, value, time
		from telemetry where device_id = $1 and %s%s) r(bucket, sensor, count, min, max, sum, last, last_time)`, bucket, rest, more)
	if q.After != nil {
		args = append(args, clamp(q.After.Start), q.After.Sensor)
		fmt.Fprintf(&b, ` where (bucket, sensor collate "C") > ($%d, $%d)`, len(args)-1, len(args))
	}
	b.WriteString(` group by bucket, sensor order by bucket, sensor collate "C" limit $5`)
	return b.String(), args
}
