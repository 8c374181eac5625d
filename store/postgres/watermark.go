package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/telemetry"
)

// laneOf is the key of a watermark.
type laneOf struct {
	shard telemetry.ShardID
	lane  telemetry.Lane
}

// position is a watermark; zero for a lane that was never written. until is the
// end of the gap of which the backlog lane has stored what is up to index.
type position struct{ index, until, term uint64 }

// Watermarks implements shard.SharedStore; 0 is a lane that was never written.
func (db *DB) Watermarks(ctx context.Context, shard telemetry.ShardID) (out telemetry.Watermarks, err error) {
	cluster, err := db.cluster()
	if err != nil {
		return out, err
	}
	ctx, cancel := db.join(ctx)
	defer cancel()
	c, err := db.acquire(ctx, db.reads)
	if err != nil {
		return out, fmt.Errorf("read watermarks of shard %d: %w", shard, explain(err))
	}
	bounded, done := db.bounded(ctx)
	defer done()
	out, err = db.readWatermarks(bounded, c, cluster, shard)
	db.release(c, db.reads, err)
	if err != nil {
		return out, fmt.Errorf("read watermarks of shard %d: %w", shard, explain(err))
	}
	return out, nil
}

func (db *DB) readWatermarks(ctx context.Context, c *conn, cluster string, shard telemetry.ShardID) (out telemetry.Watermarks, err error) {
	at, err := db.positions(ctx, c, cluster, []int64{int64(shard)})
	for lane := range telemetry.Lane(telemetry.Lanes) {
		out.To[lane] = at[laneOf{shard, lane}].index
	}
	backlog := at[laneOf{shard, telemetry.LaneBacklog}]
	if gap := (telemetry.Gap{From: backlog.index, To: backlog.until}); gap.Open() {
		out.Gap = gap
	}
	return out, err
}

// positions reads the watermarks of some shards.
func (db *DB) positions(ctx context.Context, c *conn, cluster string, shards []int64) (map[laneOf]position, error) {
	rows, err := c.Query(ctx, "select shard, lane, last_index, coalesce(until, 0), term from flush_watermarks where cluster = $1 and namespace = $2 and shard = any($3)",
		cluster, int64(db.cfg.Namespace), shards)
	if err != nil {
		return nil, fmt.Errorf("read watermarks: %w", err)
	}
	out := map[laneOf]position{}
	var shard, index, until, term int64
	var lane int16
	_, err = pgx.ForEachRow(rows, []any{&shard, &lane, &index, &until, &term}, func() error {
		out[laneOf{telemetry.ShardID(shard), telemetry.Lane(lane)}] = position{uint64(index), uint64(until), uint64(term)}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read watermarks: %w", err)
	}
	return out, nil
}

// watermarks reads those of the writer's requests.
func (w *writer) watermarks(ctx context.Context) (map[laneOf]position, error) {
	ctx, cancel := w.db.bounded(ctx)
	defer cancel()
	shards := make([]int64, len(w.requests))
	for i, r := range w.requests {
		shards[i] = int64(r.batch.Shard)
	}
	return w.db.positions(ctx, w.conn, w.cluster, shards)
}
