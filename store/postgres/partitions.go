package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/telemetry"
)

const (
	// partitionsMax is where partitions for the past stop being made on demand:
	// planning a query over more costs more than it saves. It is 38 years of
	// weeks, and keeps one device with senseless times from making a table for
	// each of them.
	partitionsMax = 2000
	// aheadMax is how far ahead of the clock a partition is made on demand.
	aheadMax = 366 * day
	// recent is how long ago may be what gets a partition beyond partitionsMax.
	recent = 60 * day
	// firstMonday is 1970-01-05: partitions of seven days begin on Mondays.
	firstMonday = 4 * int64(day/time.Microsecond)
)

// partitions knows which stretches of time need no look any more. A stretch is
// counted from firstMonday in units of Config.Chunk.
type partitions struct {
	mu     sync.Mutex
	known  map[int64]bool
	count  int
	bounds []gap // of those that are there, ascending
}

// selectBounds lists the partitions; null for the default one and others without
// two ends.
const selectBounds = `select (extract(epoch from b[1]::timestamptz) * 1000000)::bigint, (extract(epoch from b[2]::timestamptz) * 1000000)::bigint
	from pg_inherits i join pg_class c on c.oid = i.inhrelid
	left join lateral regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\) TO \(''([^'']+)''\)') b on true
	where i.inhparent = to_regclass('telemetry') order by 1`

// load lists the partitions that are there.
func (p *partitions) load(ctx context.Context, c *conn) error {
	rows, err := c.Query(ctx, selectBounds)
	if err != nil {
		return fmt.Errorf("list partitions: %w", err)
	}
	var bounds []gap
	var from, to *int64
	count := 0
	if _, err := pgx.ForEachRow(rows, []any{&from, &to}, func() error {
		if count++; from != nil && to != nil {
			bounds = append(bounds, gap{*from, *to})
		}
		return nil
	}); err != nil {
		return fmt.Errorf("list partitions: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.count, p.bounds = map[int64]bool{}, count, bounds
	return nil
}

// lacking are the parts of a stretch that no partition takes: all of it, or what
// is left between partitions of another length, from before Config.Chunk changed.
func (p *partitions) lacking(stretch gap) []gap {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []gap
	at := stretch.from
	for _, b := range p.bounds {
		if b.to <= at || b.from >= stretch.to {
			continue
		}
		if at < b.from {
			out = append(out, gap{at, b.from})
		}
		at = b.to
	}
	if at < stretch.to {
		out = append(out, gap{at, stretch.to})
	}
	return out
}

// missing returns the stretches of a batch (nil is none), and those of now and next, that may
// lack a partition.
func (p *partitions) missing(b *telemetry.Batch, chunk int64, now int64) []int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []int64
	last := int64(-1 << 62)
	want := func(t int64) {
		n := floorDiv(t-firstMonday, chunk)
		if n == last {
			return
		}
		last = n
		old := t < now-int64(recent/time.Microsecond) && p.count+len(out) >= partitionsMax
		if !p.known[n] && !slices.Contains(out, n) && t < now+int64(aheadMax/time.Microsecond) && !old && len(out) < partitionsMax {
			out = append(out, n)
		}
	}
	want(now)
	want(now + chunk)
	if b != nil {
		for i := range b.Rows {
			want(b.Rows[i].Time)
		}
	}
	return out
}

func (p *partitions) note(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = map[int64]bool{}
	}
	p.known[n] = true
}

func (p *partitions) made(g gap) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	i, _ := slices.BinarySearchFunc(p.bounds, g, func(a, b gap) int { return cmp.Compare(a.from, b.from) })
	p.bounds = slices.Insert(p.bounds, i, g)
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// ensurePartitions makes the partitions that a batch needs, outside of its
// transaction. Where that fails the default partition takes the rows: nothing is
// lost, only dearer to drop.
func (db *DB) ensurePartitions(ctx context.Context, c *conn, b *telemetry.Batch) error {
	chunk := int64(db.cfg.Chunk / time.Microsecond)
	for _, n := range db.partitions.missing(b, chunk, clock.Micros(time.Now())) {
		from := firstMonday + n*chunk
		again := false
		for _, g := range db.partitions.lacking(gap{from, from + chunk}) {
			passes, err := db.makePartition(ctx, c, g)
			if err != nil {
				return err
			}
			again = again || passes
		}
		if !again { // else the next batch tries again
			db.partitions.note(n)
		}
	}
	return nil
}

// makePartition makes one; passes reports a failure that may pass.
func (db *DB) makePartition(ctx context.Context, c *conn, g gap) (passes bool, err error) {
	ctx, cancel := db.bounded(ctx)
	defer cancel()
	lower := time.UnixMicro(g.from).UTC()
	var result string
	err = c.QueryRow(ctx, "select telemetry_partition($1, $2)", lower, time.UnixMicro(g.to).UTC()).Scan(&result)
	if err != nil && sqlState(err) == "" {
		return false, fmt.Errorf("make partition of %s: %w", lower.Format(time.DateOnly), err)
	}
	if err != nil {
		result = explain(err).Error()
	}
	switch result {
	case "made":
		db.partitions.made(g)
		db.m.partitions.Inc()
	case "there": // another node was faster
	default:
		db.m.unpartitioned.Inc()
		db.logger.Warn("no partition of its own for this time, the default partition takes the rows",
			"from", lower.Format(time.DateOnly), "reason", result)
	}
	return passing(err), nil
}
