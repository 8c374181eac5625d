package shard

import (
	"time"

	"github.com/hashicorp/raft"
)

const (
	// overtakeAfter is what a candidate gets to win without this replica's vote.
	overtakeAfter = 20 * time.Millisecond
	// overtakeStagger is between two that are ahead of it: the first one's election ends the wait of the
	// second.
	overtakeStagger = 60 * time.Millisecond
)

// watchVotes stands for election when a candidate asks for a vote that it cannot have
// because its log is behind this one's. The first in line may be the follower that lags, and where two of
// three replicas are left nobody else can win; the vote that was asked for has made this replica
// forget the dead leader, so that nothing else would make it stand for most of a second.
func (h *Host) watchVotes(s *hosted) {
	s.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if req, ok := o.Data.(raft.RequestVoteRequest); ok && req.LastLogIndex <= s.raft.LastIndex() {
			h.background(func() { h.overtake(s, req) })
		}
		return false // on raft's own goroutine: nothing is to be sent
	}))
}

// overtake stands if the candidate is behind and has not won in the meantime.
func (h *Host) overtake(s *hosted, req raft.RequestVoteRequest) {
	select {
	case <-h.ctx.Done():
		return
	case <-time.After(overtakeAfter + time.Duration(h.rank(s, string(req.ID)))*overtakeStagger):
	}
	if s.leader() != "" || s.raft.State() != raft.Follower || s.raft.CurrentTerm() != req.Term || !s.aheadOf(req.LastLogTerm, req.LastLogIndex) {
		return
	}
	s.logger.Info("overtaking a candidate whose log is behind", "candidate", string(req.ID), "term", req.Term)
	h.stand(s)
}

// aheadOf reports whether this replica's log is the more up-to-date one, as raft compares them.
func (s *Shard) aheadOf(term, index uint64) bool {
	last := s.raft.LastIndex()
	var e raft.Log
	if err := s.log.GetLog(last, &e); err != nil {
		return false // a snapshot's end: raft's own timers remain
	}
	return e.Term > term || e.Term == term && last > index
}
