package clock

import (
	"sync/atomic"
	"time"
)

// Env names the file that says how wrong the machine's clock is, in builds with
// the tag mutations.
const Env = "CLOCK_FILE"

// Clock is the wall clock of one node. It is safe for concurrent use; nil is the
// machine's.
type Clock struct{ off atomic.Int64 }

// Set makes the clock wrong by off from now on.
func (c *Clock) Set(off time.Duration) { c.off.Store(int64(off)) }

// Offset is how wrong it is.
func (c *Clock) Offset() time.Duration {
	if c == nil {
		return machineOffset()
	}
	return time.Duration(c.off.Load()) + machineOffset()
}

// Micros is what the clock showed at t, a reading of time.Now, in microseconds
// since 1970.
func (c *Clock) Micros(t time.Time) int64 { return t.UnixMicro() + c.Offset().Microseconds() }

// Wall is the same as a time that has no monotonic part.
func (c *Clock) Wall(t time.Time) time.Time { return t.Round(0).Add(c.Offset()) }

// Micros is what the machine's clock showed at t.
func Micros(t time.Time) int64 { return (*Clock)(nil).Micros(t) }

// Wall is the same as a time that has no monotonic part.
func Wall(t time.Time) time.Time { return (*Clock)(nil).Wall(t) }
