//go:build !race

package wal

// raceEnabled thins out the exhaustive tests, which the race detector makes ten
// times slower and which it has nothing to say about.
const raceEnabled = false
