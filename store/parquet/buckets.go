package parquet

import (
	"context"
	"fmt"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// Aggregate answers a question for buckets from the same pages as Read would, with
// what Read says about upTo and errors. A reading that is stored twice counts once.
// It ends with the last bucket asked for; memory is that of Read and the buckets.
func (s *Store) Aggregate(ctx context.Context, shard telemetry.ShardID, upTo uint64, q store.Aggregate) (buckets []store.Bucket, covered uint64, err error) {
	if q.Limit <= 0 || q.StepMicros <= 0 {
		return nil, 0, fmt.Errorf("question for %d buckets of %d microseconds: both must be above 0", q.Limit, q.StepMicros)
	}
	points := store.Query{Device: q.Device, Sensor: q.Sensor, From: q.From, To: q.To, Limit: 1}
	if q.After != nil {
		points.From = max(points.From, q.After.Start)
	}
	covered, err = s.reading(ctx, shard, upTo, q.Device, func(list []Segment) error {
		b := store.NewBucketer(q)
		if err := s.eachPoint(ctx, list, &points, b.Add); err != nil {
			return err
		}
		buckets = b.Buckets()
		return nil
	})
	return buckets, covered, err
}
