package shard

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/serverid"
	"github.com/sluice-iot/sluice/telemetry"
)

// The leader of a shard makes its group's members what the table says, one
// change after the other. Nothing is remembered between two looks: what is to be
// done follows from the table and from the group's configuration, so a new
// leader goes on where the old one died. Only the leader changes the
// configuration, one goroutine per shard at a time, after the barrier of its
// term, and a deposed leader's change fails: each is decided on the latest
// configuration, and that is committed.
const (
	membersEvery = 250 * time.Millisecond
	// changesMax bounds the shards whose members one node changes at once.
	changesMax = 4
	// buildsMax bounds the replicas that are built on one node at once: each is
	// a snapshot and a store read from the disks that serve the devices.
	buildsMax = 2
	// buildPatience is how long a replica may be built before another may begin
	// beside it: its leader may be gone.
	buildPatience = time.Minute
	memberAskMax  = time.Second
	changeTimeout = 5 * time.Second // to be taken up by raft
	// lagMax is how many entries a replica may be behind when it becomes a voter:
	// a busy shard never stands still, and that many are sent in a few appends.
	lagMax = 1024
)

// Member is how a replica sees itself while it is built.
type Member struct {
	Admitted bool // it is open, and there is room to build it
	// Incarnation is which one it is; a member is told apart by it.
	Incarnation uint32
	Last        uint64 // end of its log
	Applied     uint64
	Leader      string // peer id it knows as leader
	Complete    bool   // the local store has, verified, all that it should have
}

// step is one change of a group's members.
type step struct {
	do string // add, promote, remove, resign or settled
	// id is the member's. Of add it is the peer: which incarnation comes, it says.
	id raft.ServerID
}

// steps lists what could be done next, the most pressing first. It is pure.
// Members that are gone go before anybody comes, so that the quorum never counts
// on more absent voters than it must; those that only left the table go when
// everybody who should vote does.
func steps(servers []raft.Server, want []string, self string, gone func(raft.ServerID) bool) []step {
	members := map[string]raft.Server{}
	for _, srv := range servers {
		p := serverid.Peer(srv.ID)
		members[p] = srv
		if p != self && gone(srv.ID) {
			return []step{{"remove", srv.ID}}
		}
	}
	var out []step
	for _, p := range want {
		if srv, member := members[p]; !member {
			out = append(out, step{"add", raft.ServerID(p)})
		} else if srv.Suffrage != raft.Voter {
			out = append([]step{{"promote", srv.ID}}, out...)
		}
	}
	if len(out) > 0 || len(want) == 0 {
		return out
	}
	for _, srv := range servers {
		if p := serverid.Peer(srv.ID); p != self && !slices.Contains(want, p) {
			return []step{{"remove", srv.ID}}
		}
	}
	if !slices.Contains(want, self) {
		return []step{{"resign", raft.ServerID(self)}} // the next leader removes us
	}
	return []step{{"settled", raft.ServerID(self)}}
}

// nextSteps are those of a shard led here.
func (h *Host) nextSteps(s *hosted, place *Replica) []step {
	return steps(s.servers(), place.Peers, h.cfg.Self, func(id raft.ServerID) bool {
		peer, n, err := serverid.Parse(id)
		return err == nil && n < h.goneBelow(s.id, peer) || h.evicted(peer) && !slices.Contains(place.Peers, peer)
	})
}

// tendMembers looks at every shard led here.
func (h *Host) tendMembers(ctx context.Context, peers Peers) {
	h.countBuilding()
	var wg sync.WaitGroup
	room := make(chan struct{}, changesMax)
	for _, s := range h.all() {
		if ctx.Err() != nil || s.raft.State() != raft.Leader || s.readable.Load() != s.raft.CurrentTerm() {
			continue
		}
		place := s.replica()
		todo := h.nextSteps(s, place)
		if len(todo) == 0 || todo[0].do == "settled" && !place.Moving {
			continue
		}
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			continue
		}
		wg.Go(func() {
			defer func() { <-room }()
			h.tend(ctx, s, place, todo, peers)
		})
	}
	wg.Wait()
}

func (h *Host) evicted(peer string) bool { return h.deps.Evicted != nil && h.deps.Evicted(peer) }

// tend carries out the first step that can be.
func (h *Host) tend(ctx context.Context, s *hosted, place *Replica, todo []step, peers Peers) {
	for _, t := range todo {
		done, err := h.take(ctx, s, place, t, peers)
		if err != nil && ctx.Err() == nil {
			s.logger.Warn("members of the shard not changed", "change", t.do, "server", t.id, "err", err)
		}
		if done || err != nil {
			return
		}
	}
}

// take reports whether the step was carried out; false is "not yet".
func (h *Host) take(ctx context.Context, s *hosted, place *Replica, t step, peers Peers) (done bool, err error) {
	id, peer := t.id, serverid.Peer(t.id)
	addr := raft.ServerAddress(peer)
	var change func() raft.Future
	switch t.do {
	case "add":
		if s.Verify() != nil {
			return false, nil // who asks makes a broken replica let go of its log
		}
		m, ok := h.ask(ctx, peers, peer, s.id, true)
		if !ok || !m.Admitted || m.Incarnation < h.goneBelow(s.id, peer) {
			return false, nil
		}
		id = serverid.Of(peer, m.Incarnation)
		change = func() raft.Future { return s.raft.AddNonvoter(id, addr, 0, changeTimeout) }
	case "promote":
		commit := s.raft.CommitIndex()
		m, ok := h.ask(ctx, peers, peer, s.id, false)
		if !ok || id != serverid.Of(peer, m.Incarnation) || m.Leader != h.cfg.Self || m.Applied+lagMax < commit || m.Last+lagMax < commit || !m.Complete || !h.bears(s) {
			return false, nil
		}
		change = func() raft.Future { return s.raft.AddVoter(id, addr, 0, changeTimeout) }
	case "remove":
		change = func() raft.Future { return s.raft.RemoveServer(id, 0, changeTimeout) }
	case "resign":
		return true, h.giveAway(s)
	default:
		return true, h.settled(ctx, s, place)
	}
	if err := await(ctx, change()); err != nil {
		return false, err
	}
	h.metrics.members.WithLabelValues(t.do).Inc()
	s.logger.Info("member of the shard changed", "change", t.do, "server", id)
	return true, nil
}

func (h *Host) ask(ctx context.Context, peers Peers, peer string, id telemetry.ShardID, admit bool) (Member, bool) {
	if !h.deps.Transport.Connected(peer) {
		return Member{}, false
	}
	ctx, cancel := context.WithTimeout(ctx, memberAskMax)
	defer cancel()
	m, err := peers.Member(ctx, peer, id, admit)
	return m, err == nil
}

// bears reports whether the group can bear a voter more without depending on it:
// of three or more voters that are there now, enough must be for a quorum of the
// larger group.
func (h *Host) bears(s *hosted) bool {
	voters := s.voters()
	there := 0
	for _, p := range voters {
		if p == h.cfg.Self || h.deps.Transport.Connected(p) {
			there++
		}
	}
	return len(voters) < 3 || there >= (len(voters)+1)/2+1
}

// settled tells that a moving shard has the voters it should have, once that is
// certain: everything in the log is committed, and this is still the leader.
func (h *Host) settled(ctx context.Context, s *hosted, place *Replica) error {
	if !place.Moving || h.deps.Settled == nil {
		return nil
	}
	if err := await(ctx, s.raft.Barrier(changeTimeout)); err != nil {
		return err
	}
	if todo := h.nextSteps(s, place); len(todo) != 1 || todo[0].do != "settled" {
		return nil
	}
	if err := s.Verify(); err != nil {
		return nil // the next leader tells
	}
	h.deps.Settled(ctx, *place)
	return nil
}

// await waits for a future of raft or the end of ctx: a shutdown of raft 1.8.0
// drops futures that its goroutines have not reached, and those never answer.
func await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// member answers a leader about a replica here.
func (h *Host) member(id telemetry.ShardID, admit bool) Member {
	if admit {
		h.reopenBroken(id)
	}
	h.mu.RLock()
	s := h.shards[id]
	h.mu.RUnlock()
	if s == nil {
		return Member{}
	}
	m := Member{Incarnation: serverid.Incarnation(s.server), Last: s.raft.LastIndex(), Applied: s.raft.AppliedIndex(), Leader: s.leader()}
	s.fsm.mu.Lock()
	durable := s.fsm.pending.durable
	s.fsm.mu.Unlock()
	m.Complete = h.deps.Complete == nil || h.deps.Complete(id, durable)
	m.Admitted = admit && h.admit(id)
	return m
}

// admit reserves one of the places in which replicas are built.
func (h *Host) admit(id telemetry.ShardID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for other, since := range h.builds {
		s := h.shards[other]
		if s == nil || s.votes() || time.Since(since) > buildPatience {
			delete(h.builds, other)
		}
	}
	if _, ok := h.builds[id]; !ok && len(h.builds) >= buildsMax {
		return false
	}
	h.builds[id] = time.Now()
	return true
}

// Building reports whether a replica here does not vote yet.
func (h *Host) Building() bool {
	return slices.ContainsFunc(h.all(), func(s *hosted) bool { return !s.votes() })
}

// countBuilding keeps the gauge of replicas here that do not vote.
func (h *Host) countBuilding() {
	n := 0
	for _, s := range h.all() {
		if !s.votes() {
			n++
		}
	}
	h.metrics.building.Set(float64(n))
}

// errNotRemovable answers a retirement of a log that cannot forget a group.
var errNotRemovable = errors.New("the log cannot remove a group")
