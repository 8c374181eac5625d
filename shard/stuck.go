package shard

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"
)

// A hand-over that never ends. raft 1.8.0 takes no entries while it transfers
// leadership, and forgets to take them again where the replica loses its
// leadership in the middle, to a peer that does not answer: the next time it leads
// it refuses everything, for ever. Nothing but another raft helps, so the replica
// is opened again.

// handOverMax is how long a leader may refuse entries because of a hand-over:
// raft gives one up after an election timeout of two seconds.
const handOverMax = 10 * time.Second

// took notes what became of an entry.
func (s *Shard) took(err error) {
	if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		if err == nil {
			s.refusing.Store(nil)
		}
		return
	}
	now := time.Now()
	s.refusing.CompareAndSwap(nil, &now)
}

// unstick opens the replica again if it has refused entries for too long.
func (s *Shard) unstick(now time.Time) {
	since := s.refusing.Load()
	if since == nil || now.Sub(*since) < handOverMax {
		return
	}
	s.refusing.Store(nil)
	s.logger.Warn("a hand-over does not end and no entry is taken: the replica is opened again", "dur", now.Sub(*since))
	s.onStuck(s)
}

// stuck opens a replica again, unless it is another one by now.
func (h *Host) stuck(s *Shard) {
	h.mu.RLock()
	hs := h.shards[s.id]
	h.mu.RUnlock()
	if hs != nil && hs.Shard == s {
		h.background(func() { h.reopen(hs) })
	}
}
