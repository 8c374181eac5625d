package shard

import (
	"context"
	"fmt"
	"math"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// A reading is in the store or pending, and moves from one to the other while
// queries run. Whoever answers takes the pending blocks first and asks the store
// afterwards up to which index it holds everything of each lane: what moved
// between the two is in both, and is left out of the pending part by its index.
// So no reading is missed and none comes twice, without a lock over the store.

//
// A database may also be ahead of the pending part, with the live edge alone: what
// was committed after it was looked at, and goes in behind a gap or late rows. Who
// shows the edge has to show those, too, and looks once more.

// unflushed are the blocks that the store may lack, and what it holds as far as
// the log knows.
type unflushed struct {
	durable uint64
	applied uint64 // index of the newest entry looked at
	at      telemetry.Watermarks
	blocks  blockRange
}

// unflushed looks at what is pending. The caller has verified that this replica
// leads.
func (f *flusher) unflushed() unflushed {
	m := f.shard.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	p := &m.pending
	return unflushed{p.durable, m.index, p.watermarks, p.between(p.durable, math.MaxUint64).clone()}
}

// behind is u for a database that says how far it is; false when some of what it
// lacks was pending neither then nor now. It is usually ahead of what
// the log knows; one that has lost its tail lacks blocks that are kept for it.
func (f *flusher) behind(u unflushed, have telemetry.Watermarks) (blockRange, bool) {
	low, late := have.Low(), have.To[telemetry.LaneLate]
	fell := low < u.durable || late < u.at.To[telemetry.LaneLate]
	ahead := max(have.To[telemetry.LaneLive], late) > u.applied
	if !fell && !ahead {
		return u.blocks, true
	}
	m := f.shard.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	p := &m.pending
	if fell {
		return p.between(min(low, late), math.MaxUint64).clone(), true
	}
	from := min(low, p.durable) // what is durable lacks no late rows that the log knows of
	if late < p.watermarks.To[telemetry.LaneLate] {
		from = min(from, max(late, u.durable))
	}
	return p.between(from, math.MaxUint64).clone(), p.kept <= from
}

// sharedTries bounds how often a database is asked that goes on while it answers.
const sharedTries = 8

// fromShared asks the database, and returns what it holds and the blocks it lacks.
func fromShared[T any](f *flusher, ask func() (T, telemetry.Watermarks, error)) (stored T, have telemetry.Watermarks, lacks blockRange, err error) {
	for range sharedTries {
		u := f.unflushed()
		if stored, have, err = ask(); err != nil {
			return stored, have, lacks, err
		}
		if blocks, ok := f.behind(u, have); ok {
			return stored, have, blocks, nil
		}
	}
	return stored, have, lacks, fmt.Errorf("the database moves on faster than it answers: %w", store.ErrUnavailable)
}

// read answers a query from the store and the pending part as one.
func (f *flusher) read(ctx context.Context, q store.Query) ([]store.Point, error) {
	var stored []store.Point
	var have telemetry.Watermarks
	var lacks blockRange
	var err error
	if f.stores.Local != nil {
		var covered uint64
		u := f.unflushed()
		lacks = u.blocks
		stored, covered, err = f.stores.Local.Read(ctx, f.shard.id, u.durable, q)
		have.To = [telemetry.Lanes]uint64{covered, covered}
	} else {
		stored, have, lacks, err = fromShared(f, func() ([]store.Point, telemetry.Watermarks, error) { return f.stores.Shared.Read(ctx, f.shard.id, q) })
	}
	if err != nil {
		return nil, fmt.Errorf("read stored rows of shard %d: %w", f.shard.id, err)
	}
	fresh, err := f.pendingPoints(lacks.all(), have, q)
	if err != nil {
		return nil, err
	}
	return mergePoints(stored, fresh, &q), nil
}

// aggregate is read for buckets.
func (f *flusher) aggregate(ctx context.Context, q store.Aggregate) ([]store.Bucket, error) {
	var stored []store.Bucket
	var have telemetry.Watermarks
	var lacks blockRange
	var err error
	if f.stores.Local != nil {
		var covered uint64
		u := f.unflushed()
		lacks = u.blocks
		stored, covered, err = f.stores.Local.Aggregate(ctx, f.shard.id, u.durable, q)
		have.To = [telemetry.Lanes]uint64{covered, covered}
	} else {
		stored, have, lacks, err = fromShared(f, func() ([]store.Bucket, telemetry.Watermarks, error) {
			return f.stores.Shared.Aggregate(ctx, f.shard.id, q)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("aggregate stored rows of shard %d: %w", f.shard.id, err)
	}
	points, err := f.pendingPoints(lacks.all(), have, store.Query{Device: q.Device, Sensor: q.Sensor, From: q.From, To: q.To, Limit: math.MaxInt})
	if err != nil {
		return nil, err
	}
	fresh := store.NewBucketer(q)
	for i := range points {
		if !fresh.Add(&points[i]) {
			break
		}
	}
	return store.MergeBuckets(stored, fresh.Buckets(), q.Limit), nil
}
