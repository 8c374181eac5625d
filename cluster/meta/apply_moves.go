package meta

import (
	"slices"

	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/cluster/placement"
	"github.com/sluice-iot/sluice/telemetry"
)

func applyReplace(s *State, c ReplaceNode) (*State, result) {
	if r := validNode(c.Node); r.Code != codeOK {
		return s, r
	}
	if s.Evicted[c.Node.Peer()] {
		return s, refuse(codeEvicted, "peer %s", c.Node.Peer())
	}
	now, ok := s.Nodes[c.Node.ID]
	if ok && now.Incarnation == c.Node.Incarnation {
		return s, result{} // a repeat
	}
	id, inc, err := cluster.SplitPeer(c.Old)
	if err != nil || id != c.Node.ID {
		return s, refuse(codeInvalid, "%s cannot take the place of %q", c.Node.Peer(), c.Old)
	}
	if !ok || now.Incarnation != inc {
		return s, refuse(codeIncarnation, "node %s is not %s any more", id, c.Old)
	}
	next := s.clone()
	next.Evicted[c.Old] = true
	c.Node.Draining = now.Draining
	next.Nodes[id] = c.Node
	next.Version++
	return next, result{}
}

func applyStartMove(s *State, c StartMove) (*State, result) {
	if now, moving := s.Moves[c.Shard]; moving {
		if now == c.Move {
			return s, result{} // a repeat
		}
		return s, refuse(codeMove, "shard %d moves from %q to %q", c.Shard, now.From, now.To)
	}
	if r := s.validMove(c.Shard, c.Move); r.Code != codeOK {
		return s, r
	}
	next := s.clone()
	next.Moves[c.Shard] = c.Move
	next.Version++
	return next, result{}
}

// validMove judges an intent by the table as it is: that is its compare-and-set.
func (s *State) validMove(shard telemetry.ShardID, m Move) result {
	if uint64(shard) >= uint64(len(s.Table)) {
		return refuse(codeInvalid, "shard %d, the cluster has %d", shard, s.Shards)
	}
	p := s.Table[shard]
	switch _, known := s.Nodes[m.To]; {
	case m.From == "" && m.To == "":
		return refuse(codeInvalid, "a move of shard %d from nowhere to nowhere", shard)
	case m.From != "" && !p.Has(m.From), m.To != "" && p.Has(m.To):
		return refuse(codeMove, "shard %d is on %v", shard, p.Replicas)
	case m.To != "" && !known:
		return refuse(codeUnknownNode, "%q", m.To)
	case m.To == "" && len(p.Replicas) < 2:
		return refuse(codeInvalid, "the only replica of shard %d is on %q", shard, m.From)
	}
	return result{}
}

func applyEndMove(s *State, c EndMove) (*State, result) {
	if now, moving := s.Moves[c.Shard]; !moving || now != c.Move {
		if moved(s, c) {
			return s, result{} // a repeat
		}
		return s, refuse(codeMove, "shard %d does not move from %q to %q", c.Shard, c.From, c.To)
	}
	next := s.clone()
	delete(next.Moves, c.Shard)
	if c.Done {
		p := placement.Placement{Replicas: s.Target(c.Shard), Preferred: s.Table[c.Shard].Preferred}
		if !p.Has(p.Preferred) {
			p.Preferred = c.To
			if c.To == "" {
				p.Preferred = p.Replicas[0]
			}
		}
		next.Table = slices.Clone(s.Table)
		next.Table[c.Shard] = p
		next.TableVersion++
	}
	next.Version++
	return next, result{}
}

// moved reports whether the table already says what the end of a move would make
// of it.
func moved(s *State, c EndMove) bool {
	if uint64(c.Shard) >= uint64(len(s.Table)) {
		return false
	}
	if _, moving := s.Moves[c.Shard]; moving {
		return false
	}
	p := s.Table[c.Shard]
	arrived := (c.To == "" || p.Has(c.To)) && (c.From == "" || !p.Has(c.From))
	return !c.Done || arrived
}
