// Package node is what one process of a cluster does: it puts the packages
// together, in one order, and answers for them. Whoever wants to know how Sluice
// works reads runLife (node.go) first; everything else is in a package of its own.
//
// # What it owns
//
// A node owns its data directory (locked), its listeners, the connections to the
// other nodes, and everything that runs in the process. A life is one pass through
// the start, which is a list of functions, and through the stop, which is the same
// list backwards. Run begins another one where the node found itself damaged (it
// goes on as a new incarnation, damage.go) or where that is simpler than to change
// what runs (anew.go).
//
// Beside the assembly the package has what needs more than one of the others:
//
//   - the configuration: file, environment, settings (config.go)
//   - what the API answers for the whole cluster (backend.go)
//   - which replicas live here, and where they should (follow.go, moves.go)
//   - segments of rows that replicas here lack (fetch.go)
//   - damage that was found: what is said, and what follows (found.go, damage.go,
//     abstain.go)
//   - the disk under the log, and when to refuse (disk.go)
//   - anomaly events on their way to the webhook (gather.go, deliveries.go)
//
// # Invariants
//
//   - Nobody is served before the replicas here vote, no publish is taken before
//     the node is part of the cluster; it stops in the opposite order.
//   - A node whose log has lost or damaged anything never goes on under its name.
//   - Nothing is deleted because this node does not know it: what leaves it is
//     deleted after the table without it is committed.
//
// # What it does not do
//
// It has no command line (cmd/sluice) and starts no other process (devcluster). It
// takes network, disk, clock and gossip from system, so that a simulation can run
// whole nodes in simulated time (sim_test.go, and make sim).
//
//	cfg, err := node.LoadConfig("node.yaml", os.Environ(), nil)
//	err = node.Run(ctx, logger, version, cfg) // until ctx ends or something fatal happens
package node
