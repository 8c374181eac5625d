package shard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// Sessions is what acts on the sessions of shards that are led here. Nothing of it
// may block, but for Settled.
type Sessions interface {
	// Lead says that this replica leads and has applied everything before its term;
	// filters are those of its durable sessions. It is called under the machine's
	// lock: what Effects brings later happened after it.
	Lead(id telemetry.ShardID, term uint64, filters []session.FilterChange)
	// Lost says that it leads no more.
	Lost(id telemetry.ShardID)
	// Effects is what entries of a shard that is led here have brought about.
	Effects(id telemetry.ShardID, e session.Effects)
	// Hints repeats, every hintEvery, how far the queues of connected clients go.
	Hints(id telemetry.ShardID, hints []session.Hint)
	// Wills are due; each is offered again until it is reported as sent.
	Wills(id telemetry.ShardID, wills []session.Will)
	// Gone reports whether a process certainly no longer acts for its clients, as
	// far as a leader since ledSince can know.
	Gone(owner session.Owner, ledSince time.Time) bool
	// Astray reports whether another node hears the leader of a shard that is silent
	// here: it lives, and who stands against it only unseats it.
	Astray(id telemetry.ShardID) bool
	// Settled waits until all nodes know the filters that this leader has announced.
	Settled(ctx context.Context, id telemetry.ShardID) error
}

// nobody is the Sessions of a host that serves none.
type nobody struct{}

func (nobody) Lead(telemetry.ShardID, uint64, []session.FilterChange) {}
func (nobody) Lost(telemetry.ShardID)                                 {}
func (nobody) Effects(telemetry.ShardID, session.Effects)             {}
func (nobody) Hints(telemetry.ShardID, []session.Hint)                {}
func (nobody) Wills(telemetry.ShardID, []session.Will)                {}
func (nobody) Gone(session.Owner, time.Time) bool                     { return false }
func (nobody) Astray(telemetry.ShardID) bool                          { return false }
func (nobody) Settled(context.Context, telemetry.ShardID) error       { return nil }

// hintEvery is how often a leader repeats what clients may have missed.
const hintEvery = 2 * time.Second

// sessionEntry makes an entry of a batch, with the leader's clock.
func sessionEntry(now int64, batch []byte) []byte {
	return append(wire.AppendInt(appendControl(nil, EntrySession), now), batch...)
}

// sessionTick does what a leader owes the sessions of its shard.
func (s *Shard) sessionTick(ctx context.Context, now time.Time) {
	term := s.readable.Load()
	m := s.fsm.machine
	m.mu.Lock()
	st := m.sessions
	if s.announced != term && term > 0 {
		s.announced, s.ledSince = term, now
		s.sessions.Lead(s.id, term, st.Filters())
	}
	due := st.NextDue()
	owners, wills := st.Owners(), st.Wills()
	var hints []session.Hint
	if now.Sub(s.hinted) >= hintEvery {
		s.hinted = now
		hints = st.Hints()
	}
	m.mu.Unlock()
	if len(hints) > 0 {
		s.sessions.Hints(s.id, hints)
	}
	if len(wills) > 0 {
		s.sessions.Wills(s.id, wills)
	}
	var ops [][]byte
	if due > 0 && due <= s.clock.Micros(now) {
		ops = append(ops, session.AppendTick(nil))
	}
	for _, o := range owners {
		if s.sessions.Gone(o, s.ledSince) {
			s.logger.Info("connections of a lost process are given up", "peer", o.Node, "epoch", o.Epoch)
			ops = append(ops, session.AppendGone(nil, o.Node, o.Epoch))
		}
	}
	if len(ops) == 0 {
		return
	}
	if _, err := s.Call(ctx, sessionEntry(s.clock.Micros(now), session.AppendBatch(nil, "", 0, 0, ops))); err != nil {
		s.logger.Debug("sessions not moved on", "err", err)
	}
}

// lostSessions tells that this replica leads no more.
func (s *Shard) lostSessions() {
	if s.announced > 0 {
		s.announced = 0
		s.sessions.Lost(s.id)
	}
}

// Leads reports whether this node leads a shard as far as it can know without
// asking: a deposed leader notices within its lease of a second.
func (h *Host) Leads(id telemetry.ShardID) bool {
	s, ok := h.Shard(id)
	return ok && s.raft.State() == raft.Leader && s.readable.Load() == s.raft.CurrentTerm()
}

// SessionCounts adds up the figures of the sessions of the shards that are led here.
func (h *Host) SessionCounts() (c session.Counts) {
	for _, s := range h.all() {
		if s.raft.State() != raft.Leader {
			continue
		}
		s.fsm.mu.Lock()
		n := s.fsm.sessions.Counts()
		s.fsm.mu.Unlock()
		c.Sessions += n.Sessions
		c.Connected += n.Connected
		c.Queued += n.Queued
		c.QueuedBytes += n.QueuedBytes
		c.Retained += n.Retained
		c.Wills += n.Wills
		c.Drops.Full += n.Drops.Full
		c.Drops.Aged += n.Drops.Aged
		c.Drops.Expired += n.Drops.Expired
	}
	return c
}

// Submit sends a batch of session operations to the leader of a shard. done is
// called exactly once, with the state machine's answer or an error: after a
// NotLeaderError or ErrBusy the batch has not been taken, after any other its fate
// is unknown until it is sent again.
func (r *Router) Submit(id telemetry.ShardID, batch []byte, done func([]byte, error)) {
	leader := r.Leader(id)
	switch leader {
	case "":
		go done(nil, &NotLeaderError{Shard: id})
	case r.host.cfg.Self:
		r.host.submit(id, batch, done)
	default:
		r.caller.Submit(leader, GroupOf(id), batch, r.underway.follow(id, leader, func(answer []byte, err error) {
			if err == nil && len(answer) > 0 && answer[0] == answerBusy {
				err = ErrBusy
			}
			if err == nil {
				answer, err = readAnswer(id, answer)
			}
			if err != nil {
				r.learn(id, err)
			}
			done(answer, err)
		}))
	}
}

func (h *Host) submit(id telemetry.ShardID, batch []byte, done func([]byte, error)) {
	s, ok := h.Shard(id)
	if !ok {
		go done(nil, &NotLeaderError{Shard: id})
		return
	}
	s.Propose(sessionEntry(s.clock.Micros(time.Now()), batch), func(v any, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		switch v := v.(type) {
		case []byte:
			done(v, nil)
		case error:
			done(nil, v)
		default:
			done(nil, fmt.Errorf("state machine answered a batch with %T", v))
		}
	})
}

// AcceptSession takes a batch that another node forwards and replies with the
// encoded answer. It never blocks.
func (h *Host) AcceptSession(group uint32, batch []byte, reply func([]byte)) {
	h.submit(ShardOfGroup(group), batch, func(answer []byte, err error) {
		if errors.Is(err, ErrBusy) {
			reply([]byte{answerBusy})
			return
		}
		reply(appendAnswer(nil, answer, err))
	})
}

// Bounds of one answer with queued messages.
const (
	fetchMax      = 256
	fetchBytesMax = 256 << 10
)

// Fetch asks the leader for what is queued for a session from a number on.
func (r *Router) Fetch(ctx context.Context, id telemetry.ShardID, ref session.Ref, from uint64) (items []session.Item, last uint64, err error) {
	q := wire.AppendUint(wire.AppendUint(wire.AppendString([]byte{askFetch}, ref.Client), ref.Epoch), from)
	b, err := r.ask(ctx, id, q)
	if err != nil {
		return nil, 0, err
	}
	rd := wire.NewReader(b)
	last = rd.Uint()
	items = session.DecodeItems(rd)
	return items, last, rd.Err()
}

func (s *Shard) answerFetch(body []byte) ([]byte, error) {
	r := wire.NewReader(body)
	ref, from := session.Ref{Client: r.String(), Epoch: r.Uint()}, r.Uint()
	if r.Err() != nil {
		return nil, r.Err()
	}
	if s.raft.State() != raft.Leader {
		return nil, s.notLeader()
	}
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	items, last, err := s.fsm.sessions.Fetch(ref, from, fetchMax, fetchBytesMax)
	if errors.Is(err, session.ErrFenced) {
		return nil, fmt.Errorf("%w: %w", err, ErrNotFound)
	}
	return session.AppendItems(wire.AppendUint(nil, last), items), err
}

// Settled waits until all nodes know what the durable sessions of a shard have
// subscribed to by now.
func (r *Router) Settled(ctx context.Context, id telemetry.ShardID) error {
	_, err := r.ask(ctx, id, []byte{askSettled})
	return err
}
