// Package meta is the meta group: raft group 0, whose state is what every node
// of a cluster must agree on. That is the cluster's id, its shard count, the
// registry of nodes, the shard table, the feature level, and the counter that
// numbers the starts of each node.
//
// Up to five voters in different zones decide; every other registered node is a
// non-voter, so that each node has the whole state in memory. Any node may
// propose: a follower forwards to the leader, a node that knows no leader asks
// its contacts.
//
// It owns one raft instance over the stores and the transport it is given, a
// goroutine for each of its duties (membership, standing for election, leaving a
// slow disk), a few that serve
// forwarded requests, and no file and no socket.
//
// # Invariants
//
//   - A cluster begins by exactly one Init on one node. An empty directory never
//     bootstraps by itself; it waits to be contacted by a leader.
//   - A node id belongs to one incarnation, until an operator evicts that or a
//     new one takes its place in one entry; an evicted incarnation never comes
//     back. Only founders (the peers that Init registered) start the groups of
//     the first table.
//   - A shard's replicas in the table change only by an intent that was recorded
//     and has been carried out, or by a table proposed as a whole.
//   - The table changes only from the version the proposer has seen.
//   - An origin epoch is handed out once.
//   - A State is never changed after it has been published.
//   - A node becomes a voter only after its log has caught up as a non-voter.
//
// # What it does not do
//
// It does not decide whether a node is alive, moves no shard (it records that one
// is to be moved) and chooses no placement but the first. Gossip, the detector and the operator tell it.
//
// # Concurrency and failure
//
// All methods may be called from any goroutine. Propose retries until its
// context ends; a proposal whose answer is lost may have been committed, so
// every command has the same effect when it is applied twice. Without a quorum
// of voters State still answers, with what this node has last seen. After Close
// every method that needs the group returns ErrClosed.
//
// A lost leader is replaced 30 to 85 ms after its sockets reset (15 runs of the
// integration test in package cluster, race detector, two busy cores). When it
// dies while voters change or a log entry is still on its way, two voters can
// stand at once, and then raft's timers decide: 0.9 and 1.4 s in 2 of 20 runs.
//
//	m, err := meta.Open(logger, reg, meta.DefaultConfig(peer), deps)
//	defer m.Close()
//	err = m.Init(ctx, meta.InitSpec{Shards: 24, Replicas: 3, Nodes: nodes}) // once, on one node
//	err = m.WaitReady(ctx)                                                  // on every node
//	table := m.State().Table
package meta
