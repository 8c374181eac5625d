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
