package store

import (
	"cmp"
	"errors"
	"fmt"
	"math"

	"github.com/sluice-iot/sluice/telemetry"
)

// ErrUnavailable wraps every error that may go away by itself: the database
// cannot be reached, a segment is still being fetched from a peer.
var ErrUnavailable = errors.New("store unavailable")

// WatermarkError refuses a batch because the shard's watermark is not where the
// batch begins: somebody else flushed meanwhile (or this very batch was
// committed and its answer lost). Nothing was written.
type WatermarkError struct {
	Shard    telemetry.ShardID
	Lane     telemetry.Lane
	Want     uint64 // Batch.From
	Have     uint64 // what the store has
	WantTerm uint64
	HaveTerm uint64
}

func (e *WatermarkError) Error() string {
	return fmt.Sprintf("%s watermark of shard %d is %d (term %d), the batch begins at %d (term %d)", e.Lane, e.Shard, e.Have, e.HaveTerm, e.Want, e.WantTerm)
}

// Query asks for the readings of one device in ascending order of Point, or in
// descending order.
type Query struct {
	Device string
	Sensor string // "" is every sensor
	From   int64  // microseconds, inclusive; math.MinInt64 is open
	To     int64  // microseconds, exclusive; math.MaxInt64 is open
	Limit  int    // > 0
	After  *Point // resume behind this point; only Time, Sensor and Value count
	Desc   bool   // the latest first
}

// Point is one stored reading.
type Point struct {
	Time     int64 // microseconds since the epoch
	Received int64 // microseconds since the epoch
	Sensor   string
	Value    float64
	Score    float32
	Quality  telemetry.Quality
}

// Compare orders points by (time, sensor, value bits); points of one device
// that compare equal are the same reading.
func (p *Point) Compare(q *Point) int {
	if c := cmp.Compare(p.Time, q.Time); c != 0 {
		return c
	}
	if c := cmp.Compare(p.Sensor, q.Sensor); c != 0 {
		return c
	}
	return cmp.Compare(math.Float64bits(p.Value), math.Float64bits(q.Value))
}

// Matches reports whether a point of the queried device belongs to the answer.
func (q *Query) Matches(p *Point) bool {
	return p.Time >= q.From && p.Time < q.To && (q.Sensor == "" || q.Sensor == p.Sensor) &&
		(q.After == nil || q.Compare(q.After, p) < 0)
}

// Compare orders points as the answer does.
func (q *Query) Compare(a, b *Point) int {
	if q.Desc {
		return b.Compare(a)
	}
	return a.Compare(b)
}
