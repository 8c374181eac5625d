// Package shard is the heart of Sluice: one shard is one raft group over the
// node's shared log, with a deterministic state machine on every replica that
// deduplicates, keeps the devices' latest values, scores every reading and
// remembers what the store does not hold yet. A Host runs the replicas of a
// node, a Router finds a shard's leader from any node and asks it.
//
// # What it owns
//
// Per replica: a raft instance with its transport, the state machine, snapshots
// under HostConfig.Dir, and five goroutines (propose, answer, lead, verify,
// flush; with a database three more, one per lane) beside raft's own. Per Host: one goroutine that takes snapshots, and
// short ones for elections and hand-overs. It owns neither the log nor the store
// nor a socket; those are Deps.
//
// # Invariants
//
//   - The state is a function of the log: no clock, no randomness, no map order.
//     Replicas that applied the same entries have equal digests, whether they
//     applied them one by one or began from a snapshot.
//   - A block of an (origin, epoch) applies if its sequence is last+1. A repeat
//     gets its first answer, a gap says from where to send again, anything else
//     is unknown and must never be acknowledged.
//   - durable <= watermark <= applied, and log floor <= durable: no entry leaves
//     the log before this replica's store (or the shared database) holds its rows.
//     A database has a watermark per lane, and perhaps a gap in the live one;
//     durable is up to where both have nothing left.
//   - A row that is answered by a query comes from the store, as far as its
//     watermarks of the same snapshot go, or from pending blocks, never from both and never from neither.
//   - A group has the members that the table names; its leader sees to that, one
//     change at a time. A replica votes only after it has log, state and rows. One
//     that begins anew with an empty log, because it cannot start from its snapshot
//     or has left and come back, is another server of the group (incarnation.go);
//     one that runs and finds damage stays out of elections until it is repaired.
//   - received = quarantined + duplicate + applied, applied = flushed + pending
//     (refusals are counted by the node that refused).
//
// # Promises under concurrency and failure
//
// All exported methods may be called from any goroutine. Propose never blocks
// and its reply is called exactly once, never on the caller's goroutine. After
// NotLeaderError and ErrBusy an entry is certainly not in the log; after any
// other error its fate is unknown until the same block is sent again. Verify
// answers after one round of questions to a quorum, shared by all who wait, so that
// what is read after it is not stale whatever stood still meanwhile. A put has one
// effect and one answer however often it is proposed; after an
// OutcomeUnknownError it may have had it. Close answers
// everything that waits before raft stops. An entry or a snapshot that cannot be
// understood is refused, alike on every replica; it stops none.
//
// # What it does not do
//
// It does not place shards (cluster/placement), decide who is dead
// (cluster/detector), fetch segments that a rebuilt replica lacks (its owner
// does, see Host.Stored), or know what a session is: their entries go to package
// session, and what follows from them to whoever is Sessions.
//
// FORMAT.md has the bytes, DESIGN.md the reasons.
//
//	host, err := shard.OpenHost(logger, reg, cfg, deps)
//	err = host.Reconcile(table)                   // opens the replicas that live here
//	router := shard.NewRouter(host, caller, directory)
//	router.Propose(id, block, func(res shard.Result, err error) { ... })
//	points, err := router.Readings(ctx, query)    // flushed and unflushed rows as one
package shard
