// Package cluster owns what makes a process a member of one particular cluster:
// the identity file in its data directory and the lock that keeps a second
// process out of it.
//
// The parts of a cluster are sub-packages: placement (pure functions from nodes
// to a shard table), gossip (who is there), meta (what all must agree on),
// detector (who is gone) and mux (the connection between two nodes). None of
// them is imported here.
//
// # Invariants
//
//   - A data directory belongs to one node id and, once it has adopted one, one
//     cluster id. Neither ever changes. Its incarnation changes only in Renew,
//     which sets aside everything that the old one remembered.
//   - The incarnation is made when the directory is created, so an emptied
//     directory is a new peer and cannot vote under the name of the old one.
//   - node.json is replaced as a whole (temporary file, fsync, rename, fsync of
//     the directory): after a crash the old or the new content is there.
//   - While an Identity is open no other process can open the same directory.
//
// It does not decide whether a node may join; that is the meta group's job.
// An Identity may be used from several goroutines.
//
//	id, err := cluster.LoadOrCreateIdentity(dir, "n0", "a")
//	if err != nil {
//		return err // names the remedy
//	}
//	defer id.Close()
//	fmt.Println(id.Peer()) // "n0.5f3a9c1e"
package cluster
