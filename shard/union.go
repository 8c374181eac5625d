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
// afterwards up to which index it holds everything: what moved between the two is
// in both, and is left out of the pending part by its index. So no reading is
// missed and none comes twice, without a lock over the store.

// unflushed are the blocks that the store may lack, and what it holds for certain.
// The caller has verified that this replica leads.
func (f *flusher) unflushed() (durable uint64, blocks []*pendingBlock) {
	m := f.shard.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	durable = m.pending.durable
	return durable, append(blocks, m.pending.between(durable, math.MaxUint64)...)
}

// read answers a query from the store and the pending part as one.
func (f *flusher) read(ctx context.Context, q store.Query) ([]store.Point, error) {
	covered, blocks := f.unflushed()
	var stored []store.Point
	var err error
	if f.stores.Local != nil {
		stored, covered, err = f.stores.Local.Read(ctx, f.shard.id, covered, q)
	} else {
		// A store may be ahead of what the log knows, never behind: blocks
		// it holds already are left out of the pending part.
		var at telemetry.Watermarks
		stored, at, err = f.stores.Shared.Read(ctx, f.shard.id, q)
		covered = at[telemetry.LaneLive]
	}
	if err != nil {
		return nil, fmt.Errorf("read stored rows of shard %d: %w", f.shard.id, err)
	}
	fresh, err := f.pendingPoints(blocks, covered, q)
	if err != nil {
		return nil, err
	}
	return mergePoints(stored, fresh, &q), nil
}

// aggregate is read for buckets.
func (f *flusher) aggregate(ctx context.Context, q store.Aggregate) ([]store.Bucket, error) {
	covered, blocks := f.unflushed()
	var stored []store.Bucket
	var err error
	if f.stores.Local != nil {
		stored, covered, err = f.stores.Local.Aggregate(ctx, f.shard.id, covered, q)
	} else {
		var at telemetry.Watermarks
		stored, at, err = f.stores.Shared.Aggregate(ctx, f.shard.id, q)
		covered = at[telemetry.LaneLive]
	}
	if err != nil {
		return nil, fmt.Errorf("aggregate stored rows of shard %d: %w", f.shard.id, err)
	}
	points, err := f.pendingPoints(blocks, covered, store.Query{Device: q.Device, Sensor: q.Sensor, From: q.From, To: q.To, Limit: math.MaxInt})
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
