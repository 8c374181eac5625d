package meta

import (
	"maps"
	"slices"

	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/cluster/placement"
	"github.com/sluice-iot/sluice/telemetry"
)

// Node is a registered node. The addresses are host:port as other nodes (Mux) and
// clients (MQTT, HTTP) reach them.
type Node struct {
	ID          telemetry.NodeID `json:"id"`
	Incarnation string           `json:"incarnation"`
	Zone        telemetry.Zone   `json:"zone"`
	Mux         string           `json:"mux"`
	MQTT        string           `json:"mqtt"`
	HTTP        string           `json:"http"`
	Draining    bool             `json:"draining"`
}

// Peer is the node's name in frames and raft configurations.
func (n Node) Peer() string { return cluster.PeerID(n.ID, n.Incarnation) }

// Move is the intent to bring a shard's replica from one node to another; either
// may be "".
type Move struct {
	From telemetry.NodeID `json:"from"`
	To   telemetry.NodeID `json:"to"`
}

// State is what the cluster agrees on, as far as this node has heard. It is
// immutable: holders may read it for as long as they like, nobody may write it.
type State struct {
	ClusterID    string                    `json:"cluster_id"` // "" before Init
	Shards       uint32                    `json:"shards"`
	Replicas     int                       `json:"replicas"` // wanted per shard; a small cluster has fewer
	Nodes        map[telemetry.NodeID]Node `json:"nodes"`
	Evicted      map[string]bool           `json:"evicted"` // peer ids that may never register again
	Table        placement.Table           `json:"table"`
	TableVersion uint64                    `json:"table_version"` // changes of Table, for compare-and-set
	// Moves are the intents under way: the table says where replicas are, a move
	// where one of them is going.
	Moves map[telemetry.ShardID]Move `json:"moves"`
	// Founders are the peers that Init registered. Only they may start the groups
	// of the first table, and only with each other: a later incarnation that did
	// would vote in a group that does not know it.
	Founders map[telemetry.NodeID]string `json:"founders"`
	Feature  uint32                      `json:"feature"` // what every node understands
	Epochs   map[telemetry.NodeID]uint64 `json:"epochs"`  // last origin epoch handed out
	Version  uint64                      `json:"version"` // changes of the state
}

// Initialized reports whether the cluster has been made.
func (s *State) Initialized() bool { return s.ClusterID != "" }

// ByPeer finds a registered node by its peer id.
func (s *State) ByPeer(peer string) (Node, bool) {
	id, inc, err := cluster.SplitPeer(peer)
	if err != nil {
		return Node{}, false
	}
	n, ok := s.Nodes[id]
	return n, ok && n.Incarnation == inc
}

// PlacementNodes lists the nodes that may hold replicas, for placement.ZoneSafe
// and placement.Rebalance: with draining, all registered ones, otherwise only
// those that are not draining.
func (s *State) PlacementNodes(draining bool) []placement.Node {
	ns := make([]placement.Node, 0, len(s.Nodes))
	for _, n := range s.Nodes {
		if draining || !n.Draining {
			ns = append(ns, placement.Node{ID: n.ID, Zone: n.Zone})
		}
	}
	return ns // placement sorts
}

// Target lists the nodes that should hold a shard once its move is done: those of
// the table unless it moves.
func (s *State) Target(shard telemetry.ShardID) []telemetry.NodeID {
	if uint64(shard) >= uint64(len(s.Table)) {
		return nil
	}
	now := s.Table[shard].Replicas
	m, moving := s.Moves[shard]
	if !moving {
		return now
	}
	next := make([]telemetry.NodeID, 0, len(now)+1)
	for _, id := range now {
		if id != m.From {
			next = append(next, id)
		}
	}
	if m.To != "" {
		next = append(next, m.To)
	}
	slices.Sort(next)
	return next
}

// clone copies what a command may change in place. Replica lists are replaced,
// never written, and so are shared.
func (s *State) clone() *State {
	c := *s
	c.Nodes = maps.Clone(s.Nodes)
	c.Evicted = maps.Clone(s.Evicted)
	c.Epochs = maps.Clone(s.Epochs)
	c.Moves = maps.Clone(s.Moves)
	c.Founders = maps.Clone(s.Founders)
	if c.Nodes == nil {
		c.Nodes = map[telemetry.NodeID]Node{}
	}
	if c.Evicted == nil {
		c.Evicted = map[string]bool{}
	}
	if c.Epochs == nil {
		c.Epochs = map[telemetry.NodeID]uint64{}
	}
	if c.Moves == nil {
		c.Moves = map[telemetry.ShardID]Move{}
	}
	if c.Founders == nil {
		c.Founders = map[telemetry.NodeID]string{}
	}
	return &c
}
