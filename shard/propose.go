package shard

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// Propose hands an entry to the log of this shard. reply is called exactly once,
// never on the caller's goroutine before Propose returns, with the state
// machine's answer or with an error after which the entry's fate is unknown
// (except for NotLeaderError and ErrBusy: those are certain). It never blocks.
func (s *Shard) Propose(data []byte, reply func(any, error)) {
	if s.raft.State() != raft.Leader {
		go reply(nil, s.notLeader())
		return
	}
	select {
	case s.proposals <- proposal{data, reply}:
		if s.ctx.Err() != nil { // closed meanwhile: nobody reads the queue any more
			go s.refuseRest()
		}
	default:
		go reply(nil, ErrBusy)
	}
}

func (s *Shard) notLeader() error {
	id := s.leader()
	if id == s.self {
		id = ""
	}
	return &NotLeaderError{Shard: s.id, Leader: id}
}

// propose feeds raft in the order of arrival.
func (s *Shard) propose(ctx context.Context) {
	for {
		select {
		case p := <-s.proposals:
			s.waiting <- inFlight{s.raft.Apply(p.data, 0), p.reply}
		case <-ctx.Done():
			close(s.waiting)
			s.refuseRest()
			return
		}
	}
}

func (s *Shard) refuseRest() {
	for {
		select {
		case p := <-s.proposals:
			p.reply(nil, s.notLeader())
		default:
			return
		}
	}
}

// answer waits for the futures in order; raft resolves them in order.
func (s *Shard) answer(context.Context) {
	for w := range s.waiting {
		err := w.future.Error()
		s.took(err)
		switch {
		case err == nil:
			w.reply(w.future.Response(), nil)
		case errors.Is(err, raft.ErrNotLeader):
			w.reply(nil, s.notLeader())
		default:
			w.reply(nil, fmt.Errorf("commit entry in shard %d: %w", s.id, err))
		}
	}
}

// Call proposes data and waits for the answer.
func (s *Shard) Call(ctx context.Context, data []byte) (any, error) {
	type answer struct {
		v   any
		err error
	}
	ch := make(chan answer, 1)
	s.Propose(data, func(v any, err error) { ch <- answer{v, err} })
	select {
	case a := <-ch:
		if err, ok := a.v.(error); ok && a.err == nil {
			return nil, err
		}
		return a.v, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("propose to shard %d: %w", s.id, ctx.Err())
	}
}
