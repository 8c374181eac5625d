package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/store"
)

// stretch is the time of a query for buckets, and the part [lo, hi) of it that a
// view answers but for its holes.
type stretch struct {
	from, to, lo, hi int64
	view             string // "": none
	step             int64  // of the view
	holes            []gap  // ascending, apart from each other, whole buckets of the view
}

// gap is a half-open range of time.
type gap struct{ from, to int64 }

// holesMax bounds the parts of a query. Beyond it the time between the first and
// the last hole is read from the readings.
const holesMax = 16

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
			s.view, s.step, s.lo, s.hi = v.Name, step, lo, hi
		}
	}
	return s
}

func ceilDiv(a, b int64) int64 { return -floorDiv(-a, b) }

// selectHoles finds what the view lacks in [$2, $3) of the readings that are
// there. What lies beyond its own watermark it computes when it is asked. Below
// it, what was written or deleted since the last refresh is in TimescaleDB's two
// lists of invalidations, where what a retention has dropped of the readings stays
// for ever: hence only where there are chunks of readings. Before the first chunk
// of the view its own retention has been at work.
const selectHoles = `with v as (
		select mat_hypertable_id as mat, raw_hypertable_id as raw, least($3, _timescaledb_functions.cagg_watermark(mat_hypertable_id)) as hi
		from _timescaledb_catalog.continuous_agg where user_view_schema = current_schema() and user_view_name = $1
	), chunks as (
		select h.id, (extract(epoch from c.range_start) * 1000000)::bigint as lo, (extract(epoch from c.range_end) * 1000000)::bigint as hi
		from v join _timescaledb_catalog.hypertable h on h.id in (v.raw, v.mat)
		join timescaledb_information.chunks c on c.hypertable_schema = h.schema_name and c.hypertable_name = h.table_name
	), stale as (
		select i.lowest_modified_value as lo, i.greatest_modified_value as last
		from v join _timescaledb_catalog.continuous_aggs_hypertable_invalidation_log i on i.hypertable_id = v.raw
		union all
		select i.lowest_modified_value, i.greatest_modified_value
		from v join _timescaledb_catalog.continuous_aggs_materialization_invalidation_log i on i.materialization_id = v.mat
		union all
		select -9223372036854775807, coalesce((select min(lo) from chunks where id = v.mat), 9223372036854775807) - 1 from v
	)
	select greatest(s.lo, c.lo, $2), least(s.last, c.hi - 1, v.hi - 1)
	from v join chunks c on c.id = v.raw join stale s on s.lo < c.hi and s.last >= c.lo
	where greatest(s.lo, c.lo, $2) <= least(s.last, c.hi - 1, v.hi - 1)
	union all
	select $2, $3 - 1 where not exists (select from v)
	order by 1`

// look finds the holes.
func (s *stretch) look(ctx context.Context, c *conn) error {
	rows, err := c.Query(ctx, selectHoles, s.view, s.lo, s.hi)
	if err != nil {
		return fmt.Errorf("look what %s lacks: %w", s.view, err)
	}
	found, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (g gap, err error) {
		err = r.Scan(&g.from, &g.to)
		return gap{floorDiv(g.from, s.step) * s.step, (floorDiv(g.to, s.step) + 1) * s.step}, err
	})
	if err != nil {
		return fmt.Errorf("look what %s lacks: %w", s.view, err)
	}
	s.holes = joined(found)
	return nil
}

// joined makes few gaps of many, which are in the order of their beginnings.
func joined(found []gap) []gap {
	var out []gap
	for _, g := range found {
		if n := len(out) - 1; n >= 0 && g.from <= out[n].to {
			out[n].to = max(out[n].to, g.to)
		} else {
			out = append(out, g)
		}
	}
	if len(out) > holesMax {
		return []gap{{out[0].from, out[len(out)-1].to}}
	}
	return out
}

// parts are what is read from the view and what from the readings.
func (s *stretch) parts() (view, readings []gap) {
	cuts := slices.Concat([]gap{{s.from, s.lo}}, s.holes, []gap{{s.hi, s.to}})
	at := s.from
	for _, g := range cuts {
		if at < g.from {
			view = append(view, gap{at, g.from})
		}
		if g.from < g.to {
			readings = append(readings, g)
		}
		at = g.to
	}
	return view, readings
}

// selection is the query in SQL: parts of the view and of the readings, both in
// the buckets of the step.
func (s *stretch) selection(q store.Aggregate) (sql string, args []any) {
	args = []any{q.Device, q.StepMicros, q.Limit}
	arg := func(v any) int {
		args = append(args, v)
		return len(args)
	}
	more := ""
	if q.Sensor != "" {
		more = fmt.Sprintf(" and sensor = $%d", arg(q.Sensor))
	}
	var parts []string
	add := func(from string, list []gap) {
		for _, g := range list {
			parts = append(parts, fmt.Sprintf("select date_bin($2 * interval '1 microsecond', time, timestamptz 'epoch'), %s where device_id = $1 and time >= $%d and time < $%d%s",
				from, arg(clamp(g.from)), arg(clamp(g.to)), more))
		}
	}
	view, readings := s.parts()
	add("sensor, count, min, max, sum, last, last_time from "+s.view, view)
	add("sensor, 1::bigint, value, value, case when abs(value) < 1e290 then value else 0 end, value, time from telemetry", readings)
	beyond := ""
	if q.After != nil {
		beyond = fmt.Sprintf(`where (bucket, sensor collate "C") > ($%d, $%d)`, arg(clamp(q.After.Start)), arg(q.After.Sensor))
	}
	return fmt.Sprintf(`select (extract(epoch from bucket) * 1000000)::bigint, sensor, sum(count)::bigint, min(min), max(max), sum(sum),
		(array_agg(last order by last_time desc))[1], (extract(epoch from max(last_time)) * 1000000)::bigint
		from (%s) r(bucket, sensor, count, min, max, sum, last, last_time) %s
		group by bucket, sensor order by bucket, sensor collate "C" limit $3`, strings.Join(parts, " union all "), beyond), args
}
