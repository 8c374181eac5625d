// Package backlog tells how much of a node's disk the log takes, how much of it
// waits for the store, and how long that can go on: while the store is away the
// log grows, and nothing is dropped to make room.
//
// # What it owns
//
// A Meter holds the samples of a few minutes; whoever owns it feeds it about once
// per second. It has no goroutine and reads no clock and no disk: Step is a pure
// function of what it is given. Free asks the file system.
//
// # Invariants
//
//   - The level is Refuse from 90 % of the budget on and until it is below 88 %,
//     Alarm from 80 % until below 78 %: a level that has changed does not change
//     back at once.
//   - With a limit the budget is the limit or what the file system has left,
//     whichever is less; without one it is all that the log has and could still
//     take. Other files that fill the disk therefore count.
//
// # What it does not do
//
// It refuses nothing itself: intake asks it. A log that has no room at all is the
// log's own affair, see package wal.
//
//	m := backlog.New(reg, backlog.Config{BytesMax: 100 << 30, Window: time.Minute})
//	state := m.Step(time.Now(), backlog.Sample{Log: used, Free: free, Waiting: bytes, Messages: n})
//	if state.Level == backlog.Refuse { ... }
package backlog
