// Package pubsub makes the brokers of all nodes one: what a node's clients
// publish reaches the matching subscribers of every node and the durable sessions
// in every shard, and what is retained anywhere is found from everywhere.
//
// # What it owns
//
// A Hub owns the index of who subscribed to what (routes), what its own node
// announces (board), a queue of messages per peer, a lane of three streams of
// operations per shard, and the goroutines of these: per peer one that pulls its news
// and one that sends to it, per stream with something under way one that waits for
// it, and one beat.
// It owns neither sockets nor the log: those are Net and Shards.
//
// # Invariants
//
//   - A filter is on the board before its SUBACK, and every node whose lease has
//     not run out holds it by then (Announced).
//   - A node decides that nobody durable wants a message only while it holds a
//     lease of every shard's leader; without one, a publish of QoS 1 or 2 waits, unless it is
//     telemetry, which its own shard has: it follows what was known last.
//   - A message goes to each matching node once, to each shard once (its lane
//     repeats nothing that was applied), and of a shared group to one owner.
//   - What one connection publishes stays in order on its way to a node and to a
//     shard, within its class: no batch of bulk is in the way of an urgent message.
//   - Every queue is bounded in bytes; what does not fit is counted.
//
// # What it does not do
//
// It knows no packet ids and no sockets of clients (package broker), and decides
// nothing that must survive: that is package session, in the shards' logs.
//
// # Concurrency and failure
//
// All methods may be called from any goroutine; none blocks unless it takes a
// context. A peer that is away misses messages for its connected clients, as they
// do when their connection breaks; durable sessions miss nothing. Leases are
// measured by the holder from before it asked and by the giver from after it
// answered, so clocks need not agree, only run at the same speed.
//
// FORMAT.md has the bytes between nodes, DESIGN.md the reasons.
//
//	hub, err := pubsub.New(logger, reg, pubsub.Config{Self: peer, Epoch: epoch}, net, shards)
//	hub.Serve(broker)  // where messages for this node's clients go
//	hub.Start(ctx)
//	hub.Publish(m, func(err error) { ... })
//	defer hub.Close()
package pubsub
