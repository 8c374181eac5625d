package shard

import (
	"fmt"
	"math"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func encodeQuery(q *store.Query) []byte {
	b := wire.AppendString(nil, q.Device)
	b = wire.AppendString(b, q.Sensor)
	b = wire.AppendInt(b, q.From)
	b = wire.AppendInt(b, q.To)
	b = wire.AppendUint(b, uint64(q.Limit))
	b = wire.AppendBool(b, q.Desc)
	b = wire.AppendBool(b, q.After != nil)
	if q.After != nil {
		b = appendPoints(b, []store.Point{*q.After})
	}
	return b
}

func decodeQuery(b []byte) (store.Query, error) {
	r := wire.NewReader(b)
	q := store.Query{Device: r.String(), Sensor: r.String(), From: r.Int(), To: r.Int()}
	limit := r.Uint()
	q.Desc = r.Bool()
	if r.Bool() {
		if after := decodePoints(r); len(after) == 1 {
			q.After = &after[0]
		}
	}
	if r.Err() != nil {
		return q, fmt.Errorf("decode query: %w", r.Err())
	}
	if limit == 0 || limit > math.MaxInt32 {
		return q, fmt.Errorf("query has a limit of %d, want 1 to %d", limit, math.MaxInt32)
	}
	q.Limit = int(limit)
	return q, nil
}

func appendPoints(b []byte, points []store.Point) []byte {
	b = wire.AppendUint(b, uint64(len(points)))
	for i := range points {
		p := &points[i]
		b = wire.AppendInt(b, p.Time)
		b = wire.AppendInt(b, p.Received)
		b = wire.AppendString(b, p.Sensor)
		b = wire.AppendFloat(b, p.Value)
		b = wire.AppendFloat(b, float64(p.Score))
		b = append(b, byte(p.Quality))
	}
	return b
}

func decodePoints(r *wire.Reader) []store.Point {
	n := r.Count(20)
	out := make([]store.Point, 0, n)
	sensors := map[string]string{} // a device has few, an answer names them often
	for range n {
		p := store.Point{Time: r.Int(), Received: r.Int()}
		name := r.Blob()
		s, ok := sensors[string(name)]
		if !ok {
			s = string(name)
			sensors[s] = s
		}
		p.Sensor, p.Value, p.Score, p.Quality = s, r.Float(), float32(r.Float()), telemetry.Quality(r.Byte())
		out = append(out, p)
	}
	return out
}

func encodeAggregate(q *store.Aggregate) []byte {
	b := wire.AppendString(nil, q.Device)
	b = wire.AppendString(b, q.Sensor)
	b = wire.AppendInt(b, q.From)
	b = wire.AppendInt(b, q.To)
	b = wire.AppendInt(b, q.StepMicros)
	b = wire.AppendUint(b, uint64(q.Limit))
	b = wire.AppendBool(b, q.After != nil)
	if q.After != nil {
		b = wire.AppendInt(b, q.After.Start)
		b = wire.AppendString(b, q.After.Sensor)
	}
	return b
}

func decodeAggregate(b []byte) (store.Aggregate, error) {
	r := wire.NewReader(b)
	q := store.Aggregate{Device: r.String(), Sensor: r.String(), From: r.Int(), To: r.Int(), StepMicros: r.Int()}
	limit := r.Uint()
	if r.Bool() {
		q.After = &store.Bucket{Start: r.Int(), Sensor: r.String()}
	}
	if r.Err() != nil {
		return q, fmt.Errorf("decode question for buckets: %w", r.Err())
	}
	if limit == 0 || limit > math.MaxInt32 || q.StepMicros <= 0 {
		return q, fmt.Errorf("question for %d buckets of %d microseconds, want 1 to %d and more than 0", limit, q.StepMicros, math.MaxInt32)
	}
	q.Limit = int(limit)
	return q, nil
}

func appendBuckets(b []byte, buckets []store.Bucket) []byte {
	b = wire.AppendUint(b, uint64(len(buckets)))
	for i := range buckets {
		k := &buckets[i]
		b = wire.AppendInt(b, k.Start)
		b = wire.AppendString(b, k.Sensor)
		b = wire.AppendUint(b, k.Count)
		for _, v := range []float64{k.Min, k.Max, k.Sum, k.Last} {
			b = wire.AppendFloat(b, v)
		}
		b = wire.AppendInt(b, k.LastTime)
	}
	return b
}

func decodeBuckets(r *wire.Reader) []store.Bucket {
	n := r.Count(36)
	out := make([]store.Bucket, 0, n)
	for range n {
		out = append(out, store.Bucket{
			Start: r.Int(), Sensor: r.String(), Count: r.Uint(),
			Min: r.Float(), Max: r.Float(), Sum: r.Float(), Last: r.Float(), LastTime: r.Int(),
		})
	}
	return out
}
