// Package clock is the wall clock, as far as anybody outside a process ever
// learns what it showed: times of receipt, expiry, what a leader proposes as the
// time. Whoever only measures how long something takes uses package time, whose
// readings are monotonic.
//
// It is a seam. A Clock belongs to one node and can be wrong, which is how
// simulated nodes disagree about the time; nil is the machine's. In builds with
// the tag mutations, and nowhere else, the machine's clock is off by what the
// file says that the environment variable CLOCK_FILE names: milliseconds as a
// decimal number, looked at every 20 ms. A container cannot move the clock of its
// machine, and a process cannot be given another one from outside.
//
// The rule that makes it worth anything: no product code calls UnixMicro and the
// like on what time.Now returned.
//
// Example:
//
//	received := clock.Micros(time.Now())
package clock
