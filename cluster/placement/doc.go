// Package placement decides which nodes hold which shard. It is pure: the same
// arguments give the same table on every machine, nothing is remembered, and no
// clock, randomness or map order enters.
//
// A table is made once by Seed, stored in the meta group, and afterwards changed
// only by Rebalance, which moves as little as possible. Seed uses rendezvous
// hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit
// rates", 1998) with a bound on the load (after Mirrokni, Thorup and
// Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018). Hashing rather
// than dealing in turn gives every node many different partners: a table dealt
// in turn forms copysets, and the partners of a dead node carry 1.5x.
//
// # Invariants of every table made here
//
//   - A shard has min(replicas, nodes) replicas, all on different nodes.
//   - No zone holds more replicas of a shard than it must: with at least as many
//     zones as replicas, one.
//   - A node of zone z holds at most ceil(LoadBound x fair(z)), where fair(z) is
//     the zone's share divided by its nodes. Zones have equal fair shares unless
//     one is too small for that and has a replica of every shard.
//   - Preferred leads: it is one of the replicas, and the leads per node are as
//     even as the replicas allow (an optimal semi-matching).
//
// It does not know whether a node is alive; the caller passes the nodes that
// shall hold shards.
//
//	table := placement.Seed(nodes, 64, 3)
//	table = placement.Rebalance(table, append(nodes, joined), 3)
//	safe := placement.ZoneSafe(table, nodes)
package placement
