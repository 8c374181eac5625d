// Package gossip knows which nodes are there and how to reach them. It wraps
// hashicorp/memberlist, encrypted with a key derived from the cluster's secret.
// It discovers and suspects; it decides nothing.
//
// It owns one UDP and one TCP socket on the same port, memberlist's goroutines
// and four of its own: one that joins the seeds, for ever and with backoff, so
// that seeds may start later; one that looks after silent members; one that
// reports changes; and, for a moment, those that ping.
//
// # Invariants
//
//   - A member's name in memberlist is its node id; the incarnation travels in
//     its metadata. So a node that comes back replaces itself, and two processes
//     with one node id are noticed.
//   - A member of another cluster is never listed, whatever its key.
//   - Suspicion is this node's own: two direct pings in a row without an answer.
//     memberlist keeps its suspicions to itself until it declares a node dead.
//   - After this process has been paused nothing is suspected until every member
//     has had the time to answer again.
//
// # What it does not do
//
// It stores nothing, elects nobody and does not authenticate a node beyond its
// knowledge of the secret.
//
// # Concurrency and failure
//
// All methods may be called from any goroutine. Subscribers are called one after
// the other from one goroutine, with the latest state of a member: states that
// were passed through meanwhile are skipped. A node that restarts on another port
// is accepted again when the old one has been declared dead, after some seconds.
//
//	g, err := gossip.New(logger, reg, gossip.Config{Bind: "127.0.0.1:7946", Seeds: seeds, Secret: secret, Self: self})
//	defer g.Close()
//	g.Subscribe(func(e gossip.Event) { fmt.Println(e.Member.Node, e.Member.State) })
//	addr, err := g.Resolve("n1.5f3a9c1e")
//	err = g.Leave(ctx)
package gossip
