package meta

import (
	"slices"

	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/cluster/placement"
	"github.com/sluice-iot/sluice/telemetry"
)

// apply is the state machine: pure, the same on every replica. A refusal or a
// repeat returns the state it was given.
func apply(s *State, c Command) (*State, result) {
	if init, ok := c.(initCluster); ok {
		return applyInit(s, init)
	}
	if !s.Initialized() {
		return s, result{Code: codeNotInitialized}
	}
	switch c := c.(type) {
	case RegisterNode:
		return applyRegister(s, c.Node)
	case SetDraining:
		return applyDraining(s, c)
	case SetTable:
		return applyTable(s, c)
	case SetPlacement:
		return applyPlacement(s, c)
	case SetFeature:
		return applyFeature(s, c)
	case Evict:
		return applyEvict(s, c)
	case nextEpoch:
		return applyNextEpoch(s, c)
	case ReplaceNode:
		return applyReplace(s, c)
	case StartMove:
		return applyStartMove(s, c)
	case EndMove:
		return applyEndMove(s, c)
	default:
		return s, refuse(codeInvalid, "unknown command %T", c)
	}
}

func applyInit(s *State, c initCluster) (*State, result) {
	if s.Initialized() {
		if s.ClusterID == c.ClusterID {
			return s, result{}
		}
		return s, refuse(codeInitialized, "as %s", s.ClusterID)
	}
	if c.ClusterID == "" || c.Shards == 0 || uint32(len(c.Table)) != c.Shards || c.Replicas < 1 || len(c.Nodes) == 0 {
		return s, refuse(codeInvalid, "init with %d shards, a table of %d, %d replicas, %d nodes", c.Shards, len(c.Table), c.Replicas, len(c.Nodes))
	}
	next := s.clone()
	next.ClusterID, next.Shards, next.Replicas = c.ClusterID, c.Shards, c.Replicas
	next.Table, next.TableVersion = c.Table, 1
	for _, n := range c.Nodes {
		if r := validNode(n); r.Code != codeOK {
			return s, r
		}
		if _, twice := next.Nodes[n.ID]; twice {
			return s, refuse(codeInvalid, "node %s is listed twice", n.ID)
		}
		next.Nodes[n.ID] = n
		next.Founders[n.ID] = n.Peer()
	}
	next.Version++
	return next, result{}
}

func validNode(n Node) result {
	if err := cluster.ValidateNodeID(n.ID); err != nil {
		return refuse(codeInvalid, "%v", err)
	}
	if _, _, err := cluster.SplitPeer(n.Peer()); err != nil {
		return refuse(codeInvalid, "%v", err)
	}
	if err := cluster.ValidateZone(n.Zone); err != nil {
		return refuse(codeInvalid, "%v", err)
	}
	return result{}
}

func applyRegister(s *State, n Node) (*State, result) {
	if r := validNode(n); r.Code != codeOK {
		return s, r
	}
	if s.Evicted[n.Peer()] {
		return s, refuse(codeEvicted, "peer %s", n.Peer())
	}
	if old, ok := s.Nodes[n.ID]; ok {
		if old.Incarnation != n.Incarnation {
			r := refuse(codeIncarnation, "node %s is incarnation %s, this is %s", n.ID, old.Incarnation, n.Incarnation)
			r.Registered = old.Peer()
			return s, r
		}
		n.Draining = old.Draining
		if old == n {
			return s, result{}
		}
	}
	next := s.clone()
	next.Nodes[n.ID] = n
	next.Version++
	return next, result{}
}

func applyDraining(s *State, c SetDraining) (*State, result) {
	n, ok := s.Nodes[c.Node]
	if !ok {
		return s, refuse(codeUnknownNode, "%q", c.Node)
	}
	if n.Draining == c.Draining {
		return s, result{}
	}
	n.Draining = c.Draining
	next := s.clone()
	next.Nodes[c.Node] = n
	next.Version++
	return next, result{}
}

func applyTable(s *State, c SetTable) (*State, result) {
	if c.Expect+1 == s.TableVersion && s.Table.Equal(c.Table) {
		return s, result{} // a repeat
	}
	if c.Expect != s.TableVersion {
		return s, refuse(codeVersion, "version is %d, expected %d", s.TableVersion, c.Expect)
	}
	if uint32(len(c.Table)) != s.Shards {
		return s, refuse(codeInvalid, "table of %d shards, the cluster has %d", len(c.Table), s.Shards)
	}
	for i, p := range c.Table {
		if r := s.validPlacement(i, p); r.Code != codeOK {
			return s, r
		}
	}
	next := s.clone()
	next.Table = c.Table
	next.TableVersion++
	next.Version++
	return next, result{}
}

// validPlacement refuses replicas on nodes that were never registered. One on an
// evicted node is fine: its replacement is the business of the next table.
func (s *State) validPlacement(shard int, p placement.Placement) result {
	for i, id := range p.Replicas {
		if _, ok := s.Nodes[id]; !ok && !s.Table[shard].Has(id) {
			return refuse(codeUnknownNode, "replica of shard %d on %q", shard, id)
		}
		if slices.Contains(p.Replicas[:i], id) {
			return refuse(codeInvalid, "shard %d has two replicas on %q", shard, id)
		}
	}
	if _, moving := s.Moves[telemetry.ShardID(shard)]; moving && !slices.Equal(p.Replicas, s.Table[shard].Replicas) {
		return refuse(codeMove, "shard %d is moving", shard)
	}
	if len(p.Replicas) == 0 || !p.Has(p.Preferred) {
		return refuse(codeInvalid, "shard %d prefers %q, its replicas are %v", shard, p.Preferred, p.Replicas)
	}
	return result{}
}

func applyPlacement(s *State, c SetPlacement) (*State, result) {
	if uint64(c.Shard) >= uint64(len(s.Table)) {
		return s, refuse(codeInvalid, "shard %d, the cluster has %d", c.Shard, s.Shards)
	}
	if c.Expect+1 == s.TableVersion && s.Table[c.Shard].Equal(c.Placement) {
		return s, result{} // a repeat
	}
	if c.Expect != s.TableVersion {
		return s, refuse(codeVersion, "version is %d, expected %d", s.TableVersion, c.Expect)
	}
	if r := s.validPlacement(int(c.Shard), c.Placement); r.Code != codeOK {
		return s, r
	}
	next := s.clone()
	next.Table = slices.Clone(s.Table)
	next.Table[c.Shard] = c.Placement
	next.TableVersion++
	next.Version++
	return next, result{}
}

func applyFeature(s *State, c SetFeature) (*State, result) {
	if c.Level <= s.Feature {
		return s, result{}
	}
	next := s.clone()
	next.Feature = c.Level
	next.Version++
	return next, result{}
}

func applyEvict(s *State, c Evict) (*State, result) {
	id, inc, err := cluster.SplitPeer(c.Peer)
	if err != nil {
		return s, refuse(codeInvalid, "%v", err)
	}
	if s.Evicted[c.Peer] {
		return s, result{}
	}
	n, ok := s.Nodes[id]
	if !ok || n.Incarnation != inc {
		return s, refuse(codeUnknownNode, "peer %s", c.Peer)
	}
	next := s.clone()
	delete(next.Nodes, id)
	next.Evicted[c.Peer] = true
	for shard, m := range next.Moves {
		if m.To == id { // nothing will arrive there
			delete(next.Moves, shard)
		}
	}
	next.Version++
	return next, result{}
}

func applyNextEpoch(s *State, c nextEpoch) (*State, result) {
	if s.Evicted[c.Peer] {
		return s, refuse(codeEvicted, "peer %s", c.Peer)
	}
	n, ok := s.ByPeer(c.Peer)
	if !ok {
		return s, refuse(codeUnknownNode, "peer %s", c.Peer)
	}
	next := s.clone()
	next.Epochs[n.ID]++
	next.Version++
	return next, result{Epoch: next.Epochs[n.ID]}
}
