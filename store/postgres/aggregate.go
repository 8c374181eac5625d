package postgres

import (
	"context"
	"fmt"
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
		if err := s.look(ctx, c); err != nil {
			return nil, err
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
