package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

const (
	// groupRowsMin is how many rows a COPY should have: below, its fixed costs
	// (some round trips, a commit that waits for a disk) weigh more than its rows.
	groupRowsMin = 10_000
	// groupRowsMax bounds a transaction of several batches: about half a second
	// of a server's work. A single batch may be larger.
	groupRowsMax = 100_000
	// groupMax bounds the batches of one transaction; a failure costs all of them.
	groupMax = 64
	// groupLinger is how long nobody joins a small group before it goes: nothing
	// beside the second that rows wait for their flush, and long enough for shards
	// that are due together to have gathered their rows on a busy machine.
	groupLinger = 20 * time.Millisecond
	// groupLingers bounds how often it waits while others keep coming.
	groupLingers = 8
)

// request is a batch that waits for its transaction.
type request struct {
	ctx   context.Context // of the caller
	batch *telemetry.Batch
	done  chan error // of capacity 1: the outcome
}

// combiner collects batches of several shards into transactions. It has no
// goroutine: of those who wait, whoever gets a connection takes the others along.
type combiner struct {
	mu      sync.Mutex
	waiting []*request // oldest first
}

func (c *combiner) add(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = append(c.waiting, r)
}

// remove takes a request back; false when a group has taken it.
func (c *combiner) remove(r *request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.waiting, r)
	if i < 0 {
		return false
	}
	c.waiting = slices.Delete(c.waiting, i, i+1)
	return true
}

// rows is how many rows the lane has waiting.
func (c *combiner) rows(lane telemetry.Lane) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.waiting {
		if r.batch.Lane == lane {
			n += len(r.batch.Rows)
		}
	}
	return n
}

// gather lets a small group of a lane grow while others join it. linger waits for
// them; false: no longer.
func (c *combiner) gather(lane telemetry.Lane, linger func() bool) {
	rows := c.rows(lane)
	for range groupLingers {
		if rows >= groupRowsMin || !linger() {
			return
		}
		before := rows
		if rows = c.rows(lane); rows == before || rows == 0 { // 0: another group has them
			return
		}
	}
}

// take forms a group of one lane, each shard once; empty when nothing of the
// lane waits.
func (c *combiner) take(lane telemetry.Lane) []*request {
	c.mu.Lock()
	defer c.mu.Unlock()
	var group []*request
	rows, in := 0, map[telemetry.ShardID]bool{}
	c.waiting = slices.DeleteFunc(c.waiting, func(r *request) bool {
		b := r.batch
		if b.Lane != lane || in[b.Shard] || len(group) == groupMax || len(group) > 0 && rows+len(b.Rows) > groupRowsMax {
			return false
		}
		group, rows = append(group, r), rows+len(b.Rows)
		in[b.Shard] = true
		return true
	})
	return group
}

// Write implements shard.SharedStore: one transaction stores rows, devices and
// anomalies and moves the watermark of the batch's lane from b.From to b.To, or
// does nothing. Where b.GapEnd says so it leaves a gap or drains one. Small batches of several shards share a transaction. It fails
// with a *store.WatermarkError when the watermark is elsewhere or a later term
// has written. After any other error the outcome is unknown until Watermarks is
// read. b is only read, and when Write fails perhaps for longer than it takes.
func (db *DB) Write(ctx context.Context, b *telemetry.Batch) error {
	err := db.write(ctx, b)
	var w *store.WatermarkError
	switch {
	case err == nil:
		db.noteWrite(nil)
		return nil
	case errors.As(err, &w):
		db.m.conflicts.Inc()
		return err // how a deposed leader finds out: not an illness of the database
	}
	err = fmt.Errorf("write shard %d up to %d: %w", b.Shard, b.To, explain(err))
	db.m.writeErrors.Inc()
	if ctx.Err() == nil && db.ctx.Err() == nil {
		db.noteWrite(err)
	}
	return err
}

func (db *DB) write(ctx context.Context, b *telemetry.Batch) error {
	if b.Namespace != db.cfg.Namespace {
		return fmt.Errorf("batch of namespace %d, but the database is that of namespace %d", b.Namespace, db.cfg.Namespace)
	}
	if b.To <= b.From {
		return fmt.Errorf("batch ends at %d but begins at %d", b.To, b.From)
	}
	if !gapFits(b) {
		return fmt.Errorf("%s batch from %d to %d, but the gap ends at %d", b.Lane, b.From, b.To, b.GapEnd)
	}
	r := &request{ctx: ctx, batch: b, done: make(chan error, 1)}
	db.combiner.add(r)
	for {
		select {
		case err := <-r.done:
			return err
		case db.writes <- struct{}{}:
			db.runGroup(b.Lane)
			<-db.writes
			select {
			case err := <-r.done:
				return err
			default: // another group has it, or the next one will
			}
		case <-ctx.Done():
			db.combiner.remove(r) // if a group has it the outcome is unknown
			return ctx.Err()
		case <-db.ctx.Done():
			db.combiner.remove(r)
			return ErrClosed
		}
	}
}

// gapFits reports whether a batch lies behind the gap that it leaves, or in the
// one that it drains.
func gapFits(b *telemetry.Batch) bool {
	switch b.Lane {
	case telemetry.LaneBacklog:
		return b.To <= b.GapEnd
	case telemetry.LaneLive:
		return b.GapEnd == 0 || b.From < b.GapEnd && b.GapEnd < b.To
	}
	return b.GapEnd == 0
}

// runGroup writes what waits. It ends early when nobody waits for it any more.
func (db *DB) runGroup(lane telemetry.Lane) {
	db.combiner.gather(lane, func() bool {
		select {
		case <-time.After(groupLinger):
			return true
		case <-db.ctx.Done():
			return false
		}
	})
	group := db.combiner.take(lane)
	if len(group) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(db.ctx)
	defer cancel()
	var left atomic.Int32
	left.Store(int32(len(group)))
	for _, r := range group {
		defer context.AfterFunc(r.ctx, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		})()
	}
	db.writeGroup(ctx, group)
}
