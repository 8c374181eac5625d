// Package wire is the hand-written binary encoding that entries, snapshots and
// node-to-node answers share: little pieces appended to a byte slice, and a
// Reader that is checked once at the end instead of after every field.
//
// It owns nothing and allocates only what Reader.String and Reader.Copy return.
// A Reader never panics on hostile input: the first field that does not fit
// latches Err, and every later field reads as zero.
package wire
