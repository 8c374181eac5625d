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

// unflushed are the blocks that the store may lack, and what it holds as far as
// the log knows.
type unflushed struct {
	durable uint64
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
	return unflushed{p.durable, p.watermarks, p.between(p.durable, math.MaxUint64).clone()}
}

// behind is u for a database that says how far it is. It is usually ahead of what
// the log knows; one that has lost its tail lacks blocks that are kept for it.
func (f *flusher) behind(u unflushed, have telemetry.Watermarks) blockRange {
	low, late := have.Low(), have.To[telemetry.LaneLate]
	if low >= u.durable && late >= u.at.To[telemetry.LaneLate] {
		return u.blocks
	}
	m := f.shard.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pending.between(min(low, late), math.MaxUint64).clone()
}

// read answers a query from the store and the pending part as one.
func (f *flusher) read(ctx context.Context, q store.Query) ([]store.Point, error) {
	u := f.unflushed()
	var stored []store.Point
	var have telemetry.Watermarks
	var err error
	if f.stores.Local != nil {
		var covered uint64
		stored, covered, err = f.stores.Local.Read(ctx, f.shard.id, u.durable, q)
		have.To = [telemetry.Lanes]uint64{covered, covered}
	} else if stored, have, err = f.stores.Shared.Read(ctx, f.shard.id, q); err == nil {
		u.blocks = f.behind(u, have)
	}
	if err != nil {
		return nil, fmt.Errorf("read stored rows of shard %d: %w", f.shard.id, err)
	}
	fresh, err := f.pendingPoints(u.blocks.all(), have, q)
	if err != nil {
		return nil, err
	}
	return mergePoints(stored, fresh, &q), nil
}

// aggregate is read for buckets.
func (f *flusher) aggregate(ctx context.Context, q store.Aggregate) ([]store.Bucket, error) {
	u := f.unflushed()
	var stored []store.Bucket
	var have telemetry.Watermarks
	var err error
	if f.stores.Local != nil {
		var covered uint64
		stored, covered, err = f.stores.Local.Aggregate(ctx, f.shard.id, u.durable, q)
		have.To = [telemetry.Lanes]uint64{covered, covered}
	} else if stored, have, err = f.stores.Shared.Aggregate(ctx, f.shard.id, q); err == nil {
		u.blocks = f.behind(u, have)
	}
	if err != nil {
		return nil, fmt.Errorf("aggregate stored rows of shard %d: %w", f.shard.id, err)
	}
	points, err := f.pendingPoints(u.blocks.all(), have, store.Query{Device: q.Device, Sensor: q.Sensor, From: q.From, To: q.To, Limit: math.MaxInt})
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
