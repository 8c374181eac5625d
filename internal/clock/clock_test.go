package clock

import (
	"testing"
	"time"
)

func TestClockIsWrongByWhatItIsSetTo(t *testing.T) {
	now := time.Now()
	var c Clock
	if got := c.Micros(now); got != now.UnixMicro() {
		t.Errorf("%d, want %d", got, now.UnixMicro())
	}
	c.Set(-10 * time.Minute)
	if got, want := c.Micros(now), now.Add(-10*time.Minute).UnixMicro(); got != want {
		t.Errorf("%d, want %d", got, want)
	}
	if got, want := c.Wall(now), now.Round(0).Add(-10*time.Minute); !got.Equal(want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := Micros(now); got != now.UnixMicro() {
		t.Errorf("the machine's clock is off by %d us", got-now.UnixMicro())
	}
}
