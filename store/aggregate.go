package store

import (
	"cmp"
	"math"
)

// Aggregate asks for the readings of one device in buckets of equal length, in
// ascending order of (start, sensor).
type Aggregate struct {
	Device     string
	Sensor     string  // "" is every sensor, each with buckets of its own
	From       int64   // microseconds, inclusive; math.MinInt64 is open
	To         int64   // microseconds, exclusive; math.MaxInt64 is open
	StepMicros int64   // > 0; buckets begin at its multiples since 1970-01-01 UTC
	Limit      int     // > 0; buckets, not readings
	After      *Bucket // resume behind this bucket; only Start and Sensor count
}

// Bucket is what there is to say about the readings of one sensor in
// [Start, Start+StepMicros) of an Aggregate. Buckets without readings do not
// exist, so that Count is at least 1.
type Bucket struct {
	Start    int64 // microseconds since the epoch
	Sensor   string
	Count    uint64
	Min, Max float64
	Sum      float64
	Last     float64 // the value of the latest reading by event time
	LastTime int64   // its time; of readings with one time any may be the last
}

// Avg is the mean of the bucket's readings.
func (b *Bucket) Avg() float64 { return b.Sum / float64(b.Count) }

// Compare orders buckets by (start, sensor).
func (b *Bucket) Compare(c *Bucket) int {
	if d := cmp.Compare(b.Start, c.Start); d != 0 {
		return d
	}
	return cmp.Compare(b.Sensor, c.Sensor)
}

// Add takes one more reading into the bucket it belongs to.
func (b *Bucket) Add(time int64, value float64) {
	b.Merge(&Bucket{Count: 1, Min: value, Max: value, Sum: value, Last: value, LastTime: time})
}

// Merge takes other readings of the same bucket in: what is stored and what is
// not flushed yet, or two parts of the log.
func (b *Bucket) Merge(c *Bucket) {
	if b.Count == 0 {
		b.Min, b.Max, b.Last, b.LastTime = c.Min, c.Max, c.Last, c.LastTime
	} else if c.Count > 0 {
		b.Min, b.Max = math.Min(b.Min, c.Min), math.Max(b.Max, c.Max)
		if c.LastTime >= b.LastTime {
			b.Last, b.LastTime = c.Last, c.LastTime
		}
	}
	b.Count += c.Count
	b.Sum += c.Sum
}

// BucketOf is the start of the bucket that holds a time.
func (a *Aggregate) BucketOf(time int64) int64 {
	r := time % a.StepMicros
	if r < 0 {
		r += a.StepMicros
	}
	return time - r
}

// Matches reports whether a reading of the queried device counts.
func (a *Aggregate) Matches(time int64, sensor string) bool {
	if time < a.From || time >= a.To || a.Sensor != "" && a.Sensor != sensor {
		return false
	}
	return a.After == nil || a.After.Compare(&Bucket{Start: a.BucketOf(time), Sensor: sensor}) < 0
}
