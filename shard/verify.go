package shard

import (
	"context"
	"sync"

	"github.com/hashicorp/raft"
)

// verifier gathers those who want to know whether this replica still leads, so
// that one round to the quorum answers all who asked before it began.
type verifier struct {
	mu     sync.Mutex
	next   *verification // not begun; nil when nobody waits
	closed bool
	signal chan struct{}
}

type verification struct {
	done chan struct{}
	err  error
}

// Verify returns nil when this replica leads now and has applied everything
// acknowledged before the call: what is read after it is not stale.
func (s *Shard) Verify() error {
	term := s.raft.CurrentTerm()
	if s.raft.State() != raft.Leader || s.readable.Load() != term {
		return s.notLeader()
	}
	v := s.verifier.join()
	if v == nil {
		return s.notLeader()
	}
	<-v.done
	if v.err == nil && s.raft.CurrentTerm() != term {
		return s.notLeader() // deposed and elected again: what came between may not be applied here
	}
	return v.err
}

// join enters the round that begins next; nil after the end.
func (q *verifier) join() *verification {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	if q.next == nil {
		q.next = &verification{done: make(chan struct{})}
		q.signal <- struct{}{} // holds one, and is empty while next is nil
	}
	return q.next
}

// take begins a round.
func (q *verifier) take(last bool) *verification {
	q.mu.Lock()
	defer q.mu.Unlock()
	v := q.next
	q.next, q.closed = nil, last
	return v
}

// verify runs the rounds, one after the other.
func (s *Shard) verify(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			if v := s.verifier.take(true); v != nil {
				v.err = s.notLeader()
				close(v.done)
			}
			return
		case <-s.verifier.signal:
			v := s.verifier.take(false)
			if err := s.raft.VerifyLeader().Error(); err != nil {
				v.err = s.notLeader()
			}
			close(v.done)
		}
	}
}
