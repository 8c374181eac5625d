package shard

import (
	"context"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/mutate"
	"github.com/sluice-iot/sluice/internal/serverid"
	"github.com/sluice-iot/sluice/internal/wire"
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

// Asker puts a question to a peer's Host and waits for Host.Answer's answer.
type Asker func(ctx context.Context, peer string, group uint32, question []byte) ([]byte, error)

// Verify returns nil when this replica leads now and has applied everything
// acknowledged before the call: what is read after it is not stale.
func (s *Shard) Verify() error {
	if mutate.On(mutate.StaleRead) && s.raft.State() == raft.Leader {
		return nil
	}
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
			if !s.leads(ctx) {
				v.err = s.notLeader()
			}
			close(v.done)
		}
	}
}

// roundMax is how long a round waits for a quorum; a leader without one is
// deposed by its own lease in that time.
const roundMax = leaderLease

// leads asks the other voters for their terms. A voter that is in no later term
// than ours has helped to elect nobody after us, so a quorum of them means that
// nobody has been, up to the moment of asking. The answer of a later incarnation
// counts for the voter that it was: that one will never vote again, and its term has
// been taken over.
//
// raft's own VerifyLeader takes answers to heartbeats that were sent before the
// question for that proof: a process that stood still finds such answers in its
// socket, from a time before its successor, and reads what is stale.
func (s *Shard) leads(ctx context.Context) bool {
	if s.ask == nil {
		return s.raft.VerifyLeader().Error() == nil
	}
	term := s.raft.CurrentTerm()
	f := s.raft.GetConfiguration()
	if s.raft.State() != raft.Leader || f.Error() != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, roundMax)
	var asked sync.WaitGroup
	defer asked.Wait() // at once, since cancel comes first
	defer cancel()
	voters, votes := 0, 0
	answers := make(chan bool, len(f.Configuration().Servers))
	for _, srv := range f.Configuration().Servers {
		switch {
		case srv.Suffrage != raft.Voter:
			continue
		case srv.ID == s.server:
			votes++
		default:
			asked.Go(func() { answers <- s.follows(ctx, serverid.Peer(srv.ID), term) })
		}
		voters++
	}
	for open := voters - votes; votes <= voters/2; open-- {
		if open == 0 {
			return false
		}
		if <-answers {
			votes++
		}
	}
	return true
}

// follows asks whether a peer's replica is in no later term than ours.
func (s *Shard) follows(ctx context.Context, peer string, term uint64) bool {
	b, err := s.ask(ctx, peer, GroupOf(s.id), []byte{askTerm})
	if err != nil {
		return false
	}
	if b, err = readAnswer(s.id, b); err != nil {
		return false
	}
	theirs, err := readUint(b)
	return err == nil && theirs <= term
}

// AnswerAtOnce answers the questions that need neither the store nor a quorum;
// false for any other. It never blocks, so that it may run where frames are
// read: leaders wait for it.
func (h *Host) AnswerAtOnce(group uint32, question []byte) ([]byte, bool) {
	if len(question) != 1 || question[0] != askTerm {
		return nil, false
	}
	s, ok := h.Shard(ShardOfGroup(group))
	if !ok {
		return appendAnswer(nil, nil, &NotLeaderError{Shard: ShardOfGroup(group)}), true
	}
	b := wire.AppendUint(nil, s.raft.CurrentTerm())
	b = wire.AppendUint(b, s.raft.LastIndex())
	return appendAnswer(nil, wire.AppendBool(b, h.unfit(s.id)), nil), true
}
