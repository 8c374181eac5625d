package store

import "testing"

func TestBucketsOfTwoPartsMergeToThoseOfTheWhole(t *testing.T) {
	a := Aggregate{Device: "d", From: -100, To: 1000, StepMicros: 60, Limit: 10}
	values := []struct {
		time  int64
		value float64
	}{{-61, 3}, {-60, -1}, {-1, 2}, {0, 5}, {59, -4}, {60, 7}, {61, 6}}
	whole, left, right := map[int64]*Bucket{}, map[int64]*Bucket{}, map[int64]*Bucket{}
	add := func(m map[int64]*Bucket, time int64, value float64) {
		s := a.BucketOf(time)
		if m[s] == nil {
			m[s] = &Bucket{Start: s}
		}
		m[s].Add(time, value)
	}
	for i, v := range values {
		add(whole, v.time, v.value)
		part := left
		if i%2 == 1 {
			part = right
		}
		add(part, v.time, v.value)
	}
	for s, b := range right {
		if left[s] == nil {
			left[s] = &Bucket{Start: s}
		}
		left[s].Merge(b)
	}
	if len(whole) != 4 || len(left) != len(whole) {
		t.Fatalf("%d and %d buckets, want 4", len(whole), len(left))
	}
	for s, b := range whole {
		if *left[s] != *b {
			t.Errorf("bucket %d: parts give %+v, the whole %+v", s, *left[s], *b)
		}
	}
	if b := whole[-60]; b.Count != 2 || b.Min != -1 || b.Max != 2 || b.Avg() != 0.5 || b.Last != 2 || b.LastTime != -1 {
		t.Errorf("bucket -60: %+v", *b)
	}
}

func TestAggregateResumesBehindABucket(t *testing.T) {
	a := Aggregate{From: 0, To: 300, StepMicros: 60, After: &Bucket{Start: 60, Sensor: "b"}}
	for _, c := range []struct {
		time   int64
		sensor string
		want   bool
	}{{59, "z", false}, {60, "a", false}, {119, "b", false}, {61, "c", true}, {120, "a", true}, {300, "a", false}, {-1, "a", false}} {
		if got := a.Matches(c.time, c.sensor); got != c.want {
			t.Errorf("time %d, sensor %s: %v, want %v", c.time, c.sensor, got, c.want)
		}
	}
}
