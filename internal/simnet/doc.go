// Package simnet is a network of streams in memory with faults per direction:
// what is written to a blocked link waits, as TCP would retransmit it, and comes
// out in order when the link is released; links may be slow; a host may go down
// with a reset, as after kill -9, or in silence, as after a power loss.
//
// It is made for testing/synctest: every wait is on a channel or a timer of the
// bubble it was made in, so that an hour of partitions takes milliseconds. It
// works with real time as well.
//
// # What it owns
//
// No goroutine. A connection holds at most windowBytes per direction; a writer
// waits for room, and for its deadline.
//
// # What it does not do
//
// No reordering or corruption within a stream, which TCP hides. Datagrams are
// lost on a blocked link and may overtake each other where links have delays.
//
// # Example
//
//	n := simnet.New(rng)
//	l := n.Listen("a")
//	c, err := n.Dial("b")(ctx, "a")
//	n.Block("a", "b") // what a writes to b waits
//	n.Release("a", "b")
//	n.Down("a", false) // a is gone; b does not hear of it
package simnet
