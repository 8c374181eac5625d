package shard

import (
	"testing"
	"time"
)

// TestLanesAreDueTogether: whenever their first row comes, and never later than
// an interval after it, whatever the clock does.
func TestLanesAreDueTogether(t *testing.T) {
	base := time.Now()
	for _, interval := range []time.Duration{100 * time.Millisecond, time.Second, 5 * time.Second} {
		first := base
		for i := range 50 {
			now := first.Add(time.Duration(i) * interval / 50)
			since := beat(now, interval)
			if d := now.Sub(since); d < 0 || d >= interval || since.UnixNano()%int64(interval) != 0 {
				t.Fatalf("interval %v: a row that comes at %v counts from %v", interval, now, since)
			}
		}
	}
	if a, b := beat(base, time.Hour), beat(base.Round(0), time.Hour); !a.Equal(b) || base.Sub(a) != base.Round(0).Sub(b) {
		t.Errorf("%v with the monotonic clock, %v without", a, b)
	}
}
