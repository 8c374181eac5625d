// Package serverid names the replicas of raft groups: which node one is on, and
// which of those that this node has had.
//
// A replica that begins anew, with an empty log, is another raft server than the
// one before: what that one has voted and acknowledged, this one does not know. It
// has the same address, the peer id of its node, and another server id, the peer id
// with the number of its incarnation. The first incarnation is the peer id alone.
//
//	serverid.Of("n1.5f3a9c1e", 1) // n1.5f3a9c1e
//	serverid.Of("n1.5f3a9c1e", 2) // n1.5f3a9c1e~2
//
// The incarnation of a replica is not that of its node, the eight digits of the
// peer id: a node that has lost its log is another peer, and its replicas begin with
// their first incarnation again.
//
// The functions are pure and safe for concurrent use.
package serverid
