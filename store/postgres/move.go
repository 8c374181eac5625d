package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// expect answers the requests whose watermark is not where they begin.
func (w *writer) expect(ctx context.Context) error {
	at, err := w.watermarks(ctx)
	if err != nil {
		return err
	}
	w.requests = slices.DeleteFunc(w.requests, func(r *request) bool {
		if follows(r.batch, at) {
			return false
		}
		r.done <- elsewhere(r.batch, at)
		return true
	})
	return nil
}

// follows reports whether a batch can be written where the watermarks stand.
func follows(b *telemetry.Batch, at map[laneOf]position) bool {
	p, gap := at[laneOf{b.Shard, b.Lane}], at[laneOf{b.Shard, telemetry.LaneBacklog}]
	switch {
	case p.index != b.From || p.term > b.Term:
		return false
	case b.Lane == telemetry.LaneBacklog:
		return p.until == b.GapEnd
	case b.GapEnd > 0: // leaves a gap: there must be none
		return gap.index == gap.until && gap.term <= b.Term
	}
	return true
}

func elsewhere(b *telemetry.Batch, at map[laneOf]position) error {
	p := at[laneOf{b.Shard, b.Lane}]
	return &store.WatermarkError{Shard: b.Shard, Lane: b.Lane, Want: b.From, Have: p.index, WantTerm: b.Term, HaveTerm: p.term}
}

const (
	insertWatermark = `insert into flush_watermarks as w (cluster, namespace, shard, lane, last_index, term)
		values ($1, $2, $3, $4, $5, $6)
		on conflict (cluster, namespace, shard, lane) do update
		set last_index = excluded.last_index, term = excluded.term, updated = now()
		where w.last_index = 0 and w.term <= excluded.term`
	moveWatermark = `update flush_watermarks set last_index = $5, term = $6, updated = now()
		where cluster = $1 and namespace = $2 and shard = $3 and lane = $4 and last_index = $7 and term <= $6`
	leaveGap = `insert into flush_watermarks as w (cluster, namespace, shard, lane, last_index, until, term)
		values ($1, $2, $3, $4, $5, $6, $7)
		on conflict (cluster, namespace, shard, lane) do update
		set last_index = excluded.last_index, until = excluded.until, term = excluded.term, updated = now()
		where w.last_index = w.until and w.term <= excluded.term`
	drainGap = moveWatermark + " and until = $8"
)

// queue adds the compare-and-sets of a batch and returns how many there are.
func (w *writer) queue(all *pgx.Batch, b *telemetry.Batch) int {
	of := []any{w.cluster, int64(b.Namespace), int64(b.Shard)}
	args := append(slices.Clone(of), int16(b.Lane), int64(b.To), int64(b.Term))
	switch {
	case b.Lane == telemetry.LaneBacklog:
		all.Queue(drainGap, append(args, int64(b.From), int64(b.GapEnd))...)
		return 1
	case b.From > 0:
		all.Queue(moveWatermark, append(args, int64(b.From))...)
	default:
		all.Queue(insertWatermark, args...)
	}
	if b.GapEnd == 0 {
		return 1
	}
	all.Queue(leaveGap, append(of, int16(telemetry.LaneBacklog), int64(b.From), int64(b.GapEnd), int64(b.Term))...)
	return 2
}

// move is the compare-and-set of all batches, in the order of their shards and
// lanes, so that two transactions never wait for each other, and in one round
// trip. It waits for another transaction that holds a row and then sees what that
// one has done.
func (w *writer) move(ctx context.Context) error {
	ctx, cancel := w.db.bounded(ctx)
	defer cancel()
	var all pgx.Batch
	steps := make([]int, len(w.requests))
	for i, r := range w.requests {
		steps[i] = w.queue(&all, r.batch)
	}
	lost := map[*request]bool{}
	res := w.conn.SendBatch(ctx, &all)
	var err error
	for i, r := range w.requests {
		for range steps[i] {
			tag, e := res.Exec()
			if err = errors.Join(err, e); e == nil && tag.RowsAffected() != 1 {
				lost[r] = true
			}
		}
	}
	if err = errors.Join(err, res.Close()); err != nil {
		return fmt.Errorf("move watermark: %w", err)
	}
	if len(lost) == 0 {
		return nil
	}
	at, err := w.watermarks(ctx)
	if err != nil {
		return err
	}
	w.requests = slices.DeleteFunc(w.requests, func(r *request) bool {
		if lost[r] {
			r.done <- elsewhere(r.batch, at)
		}
		return lost[r]
	})
	return errMoved
}
