package postgres

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

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
	mu    sync.Mutex
	known map[int64]bool
	count int
}

// load counts the partitions that are there.
func (p *partitions) load(ctx context.Context, c *conn) error {
	var n int
	if err := c.QueryRow(ctx, "select count(*) from pg_inherits where inhparent = to_regclass('telemetry')").Scan(&n); err != nil {
		return fmt.Errorf("count partitions: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.count = map[int64]bool{}, n
	return nil
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

func (p *partitions) note(n int64, made bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = map[int64]bool{}
	}
	p.known[n] = true
	if made {
		p.count++
	}
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
		lower := time.UnixMicro(firstMonday + n*chunk).UTC()
		ctx, cancel := db.bounded(ctx)
		var result string
		err := c.QueryRow(ctx, "select telemetry_partition($1, $2)", lower, lower.Add(db.cfg.Chunk)).Scan(&result)
		cancel()
		if err != nil && sqlState(err) == "" {
			return fmt.Errorf("make partition of %s: %w", lower.Format(time.DateOnly), err)
		}
		if err != nil {
			result = explain(err).Error()
		}
		if !passing(err) { // else the next batch tries again
			db.partitions.note(n, result == "made")
		}
		switch result {
		case "made":
			db.m.partitions.Inc()
		case "there":
		default:
			db.m.unpartitioned.Inc()
			db.logger.Warn("no partition of its own for this time, the default partition takes the rows",
				"from", lower.Format(time.DateOnly), "reason", result)
		}
	}
	return nil
}
