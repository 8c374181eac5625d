// Package block packs messages into the columnar block that is a shard's log
// entry: built and compressed once on the node that a device is connected to,
// forwarded, written to every replica's log and decoded on apply, always the
// same bytes. FORMAT.md draws it.
//
// A Builder owns the memory of one block in the making, a Block that of one
// decoded block; both are for one goroutine at a time, start no goroutine, hold
// no file, and reuse their memory for the next block.
//
// Invariants: what Decode and Message return equals what Add was given, field
// for field, and the bytes depend on nothing but the messages, their order and
// the header. Decode never panics, allocates at most what the limits allow
// whatever the input says, and reports ErrCorrupt for anything that Append does
// not write, except columns of unknown id, which it skips.
//
// It does not know what is a repeat, which shard a device belongs to, or how
// large a block should be: callers watch Len and Size.
//
//	b := block.NewBuilder()
//	position := b.Add(&message)
//	entry, err := b.Append(nil, block.Header{Origin: peer, Epoch: 3, Seq: 17, Shard: 5})
//	var d block.Block
//	err = d.Decode(entry)
package block
