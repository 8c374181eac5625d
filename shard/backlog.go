package shard

import "github.com/hashicorp/raft"

// Backlog is what of this node's replicas waits for the store.
type Backlog struct {
	Bytes    int64  // of log behind what is stored
	Messages uint64 // of the shards that this node leads
	Spilled  int64  // bytes on disk beside the log, see marks
}

// Backlog adds up the replicas of this node.
func (h *Host) Backlog() (out Backlog) {
	for _, s := range h.all() {
		m := s.fsm.machine
		m.mu.Lock()
		durable, waiting := m.pending.durable, m.counts.Applied-m.counts.Flushed
		m.mu.Unlock()
		out.Bytes += s.log.BytesSince(durable)
		out.Spilled += s.flush.spillBytes.Load()
		if s.raft.State() == raft.Leader {
			out.Messages += waiting
		}
	}
	return out
}
