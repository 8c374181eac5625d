// Package mux is the node-to-node transport: one authenticated TCP connection
// per ordered pair of nodes carries the requests of the dialing node, of every
// raft group and of every service, and the answers to them.
//
// A [Mux] owns its listener, one goroutine for pings, one for events, two per
// connection (reader and writer) and, only while a raft group has an unanswered
// request of a peer, one for that group. [Mux.Close] ends and waits for all of
// them. It keeps no file and no state that outlives the process.
//
// Identity. A peer is "<node>.<incarnation>" (see [ParsePeer]). Both ends of a
// connection prove the shared secret to each other and name both incarnations;
// every frame names its receiver's incarnation, and a frame for another one is
// dropped, so that a node that comes back empty is never mistaken for the one
// that voted. The same goes for a raft group's replica that has begun anew on a
// node that has not: a request of raft names the replica's incarnation, and only
// the one that runs sees it ([Mux.GroupAs]). Cluster ids are compared when both ends have one
// ([Mux.SetClusterID]); a node that has not joined yet has none.
//
// Invariants:
//
//   - A request is completed exactly once: by its answer, by its deadline (raft
//     only), or by the end of its connection. Nothing is sent again by the mux.
//   - Frames of one class on one connection arrive in the order they were sent:
//     control (pings, heartbeats, votes, answers to raft, urgent kinds) before
//     raft appends before bulk. Raft cannot starve bulk nor the other way round.
//   - A reader never waits for a group, a handler, or another connection. Each
//     queue has a bound; beyond it the sender gets [ErrBusy].
//   - No application byte is interpreted before the handshake is complete.
//
// Failure. A connection that resets ends at once ([Down]). One that goes silent,
// as after a power loss, is announced ([Quiet], [Silent]) and later closed. Redials run
// in the background; a call to a peer without a connection waits for at most one
// quick attempt and then fails with [ErrNotConnected].
//
// [ErrNotConnected], [ErrBusy], [ErrNoGroup], [ErrNoHandler] and [ErrTooLarge]
// mean that the request was not executed; after [ErrConnectionLost], [ErrTimeout]
// and [ErrClosed] that is unknown.
//
// What it does not do: it does not retry requests, find addresses (that is the
// [Resolver]), decide that a node is dead, or encrypt unless Config has TLS: the
// handshake alone authenticates the two ends when they connect, it does not
// protect the bytes that follow from somebody who can alter the network's
// packets. Frame checksums detect accidents, not attackers.
//
//	m, err := mux.New(logger, reg, mux.Config{Self: "n0.5f3a9c1e", Listen: ":7946", Secret: secret}, resolver)
//	m.Handle(64, func(from string, group uint32, body []byte, reply func([]byte, error)) { reply(body, nil) })
//	answer, err := m.Call(ctx, "n1.00c0ffee", 64, 7, []byte("ping"))
//	node, err := raft.NewRaft(conf, fsm, logs, stable, snaps, m.Group(7))
//	defer m.Close()
//
// The bytes are described in FORMAT.md.
package mux
