package store

import (
	"slices"
	"strings"
)

// Bucketer makes buckets of points that come in ascending order of time, and
// holds no more than the answer and the buckets of one start.
type Bucketer struct {
	q    Aggregate
	out  []Bucket // finished ones
	open []Bucket // those of one start, sorted by sensor
}

// NewBucketer makes the buckets of a question.
func NewBucketer(q Aggregate) *Bucketer { return &Bucketer{q: q} }

// Add takes the next point of the device and reports whether more are wanted.
func (b *Bucketer) Add(p *Point) bool {
	if !b.q.Matches(p.Time, p.Sensor) {
		return true
	}
	start := b.q.BucketOf(p.Time)
	if len(b.open) > 0 && b.open[0].Start != start {
		b.close()
		if len(b.out) >= b.q.Limit {
			return false
		}
	}
	i, ok := slices.BinarySearchFunc(b.open, p.Sensor, func(c Bucket, sensor string) int { return strings.Compare(c.Sensor, sensor) })
	if !ok {
		b.open = slices.Insert(b.open, i, Bucket{Start: start, Sensor: p.Sensor})
	}
	b.open[i].Add(p.Time, p.Value)
	return true
}

func (b *Bucketer) close() {
	b.out = append(b.out, b.open...)
	b.open = b.open[:0]
}

// Buckets ends the work: at most Limit buckets in ascending order.
func (b *Bucketer) Buckets() []Bucket {
	b.close()
	return b.out[:min(len(b.out), b.q.Limit)]
}

// MergeBuckets merges two ascending answers of one question about different
// readings and cuts the result at limit. Both must hold their first limit buckets.
func MergeBuckets(a, b []Bucket, limit int) []Bucket {
	if len(b) == 0 {
		return a[:min(len(a), limit)]
	}
	out := make([]Bucket, 0, min(limit, len(a)+len(b)))
	for len(out) < limit && (len(a) > 0 || len(b) > 0) {
		c := 0
		switch {
		case len(b) == 0:
			c = -1
		case len(a) == 0:
			c = 1
		default:
			c = a[0].Compare(&b[0])
		}
		switch {
		case c < 0:
			out, a = append(out, a[0]), a[1:]
		case c > 0:
			out, b = append(out, b[0]), b[1:]
		default:
			both := a[0]
			both.Merge(&b[0])
			out, a, b = append(out, both), a[1:], b[1:]
		}
	}
	return out
}
