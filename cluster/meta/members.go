package meta

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// changeTimeout bounds how long a membership change may wait to be accepted by
// raft; it is then waited for until committed or leadership is lost.
const changeTimeout = 5 * time.Second

const (
	// candidateTick is how often a node that should vote is asked whether it has
	// caught up: the time with too few voters should be short.
	candidateTick = 100 * time.Millisecond
	// evenPatience is how long the step to an even number of voters waits for the
	// one that makes it odd again. Two voters stop when either does, so going from
	// one to three should not rest there; but for ever alone is worse: then one
	// disk holds everything.
	evenPatience = 30 * time.Second
)

// membership is what the leader remembers between its looks at the members.
type membership struct {
	synced uint64    // the term in which a barrier has shown us all earlier commits
	said   string    // the last problem logged: it comes back every tick
	even   time.Time // since when a single candidate waits for a second one
}

// keepMembers makes raft's members follow the registry while this node leads.
func (m *Meta) keepMembers(ctx context.Context) {
	var w membership
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := m.Watch()
		next := m.cfg.ReconcileInterval
		if m.IsLeader() {
			complete, err := m.reconcile(ctx, &w)
			if !complete {
				next = min(next, candidateTick)
			}
			if err == nil {
				w.said = ""
			} else if ctx.Err() == nil && m.IsLeader() && err.Error() != w.said {
				w.said = err.Error()
				m.logger.Warn("members of the meta group differ from the registry", "err", err)
			}
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		case <-changed:
		case <-timer.C:
		}
	}
}

// reconcile makes one change after the other until raft's members are what they
// should be (complete) or a node cannot be reached. Only the leader changes the
// configuration, only from this goroutine, and a deposed leader's change fails:
// so each is decided on the latest configuration, although raft v1.8.0 does not
// tell its index (ConfigurationFuture.Index is 0) to compare-and-set with.
func (m *Meta) reconcile(ctx context.Context, w *membership) (complete bool, err error) {
	if term := m.raft.CurrentTerm(); w.synced != term {
		// Before the barrier State may lack commits of earlier leaders.
		if err := m.await(ctx, m.raft.Barrier(changeTimeout)); err != nil {
			return true, fmt.Errorf("wait for own log: %w", err)
		}
		w.synced = term
	}
	for m.IsLeader() && m.State().Initialized() {
		f := m.raft.GetConfiguration()
		if err := f.Error(); err != nil {
			return true, fmt.Errorf("read configuration: %w", err)
		}
		change, complete := m.nextChange(ctx, f.Configuration(), w)
		if change.act == "" {
			return complete, nil
		}
		if err := m.change(ctx, change); err != nil {
			return true, fmt.Errorf("%s %s: %w", change.act, change.peer, err)
		}
		m.metrics.members.Inc()
		m.logger.Info("member of the meta group changed", "peer", change.peer, "change", string(change.act))
	}
	return true, nil
}

type act string

const (
	actRemove  act = "remove"
	actAdd     act = "add"
	actPromote act = "promote"
	actDemote  act = "demote"
	actResign  act = "resign"
)

type change struct {
	act  act
	peer string
}

// nextChange compares the configuration with the registry: evicted peers go,
// registered ones come as non-voters, chosen ones vote once they have the log,
// and only then do the others stop voting. Without an act, complete tells that
// nobody is waited for.
func (m *Meta) nextChange(ctx context.Context, c raft.Configuration, w *membership) (next change, complete bool) {
	s := m.State()
	votes, members := map[string]bool{}, map[string]bool{}
	for _, server := range c.Servers {
		peer := string(server.ID)
		members[peer], votes[peer] = true, server.Suffrage == raft.Voter
		if s.Evicted[peer] && peer != m.cfg.Peer {
			return change{actRemove, peer}, true
		}
	}
	if s.Evicted[m.cfg.Peer] {
		return change{actResign, m.cfg.Peer}, true
	}
	for _, peer := range peersOf(s) {
		if !members[peer] {
			return change{actAdd, peer}, true
		}
	}
	chosen := chooseVoters(s.Nodes, func(peer string) bool { return votes[peer] }, m.cfg.VotersMax)
	if next, complete = m.nextVoter(ctx, chosen, votes, w); next.act != "" || !complete {
		return next, complete
	}
	for _, server := range c.Servers {
		peer := string(server.ID)
		if votes[peer] && !slices.ContainsFunc(chosen, func(n Node) bool { return n.Peer() == peer }) {
			if peer == m.cfg.Peer {
				return change{actResign, peer}, true
			}
			return change{actDemote, peer}, true
		}
	}
	return change{}, true
}

// nextVoter promotes a chosen node that has caught up. Towards an even number it
// waits for a second one, see evenPatience.
func (m *Meta) nextVoter(ctx context.Context, chosen []Node, votes map[string]bool, w *membership) (next change, complete bool) {
	voters := 0
	for _, v := range votes {
		if v {
			voters++
		}
	}
	var ready []string
	wanted := 0
	for _, n := range chosen {
		if votes[n.Peer()] {
			continue
		}
		wanted++
		if len(ready) < 2 && m.caughtUp(ctx, n.Peer()) {
			ready = append(ready, n.Peer())
		}
	}
	if wanted == 0 {
		w.even = time.Time{}
		return change{}, true
	}
	if len(ready) == 0 {
		return change{}, false
	}
	if len(ready) == 1 && wanted > 1 && voters%2 == 1 {
		if w.even.IsZero() {
			w.even = time.Now()
		}
		if time.Since(w.even) < evenPatience {
			return change{}, false
		}
	}
	return change{actPromote, ready[0]}, true
}

func peersOf(s *State) []string {
	peers := make([]string, 0, len(s.Nodes))
	for _, n := range s.Nodes {
		peers = append(peers, n.Peer())
	}
	slices.Sort(peers)
	return peers
}

// caughtUp asks a non-voter whether it has the log up to what is committed now.
// As a voter it counts for the quorum from the first moment, so one that lags or
// is away would stop the group.
func (m *Meta) caughtUp(ctx context.Context, peer string) bool {
	commit := m.raft.CommitIndex()
	s, err := m.askStatus(ctx, peer)
	return err == nil && s.Last >= commit && s.Leader == m.cfg.Peer
}

func (m *Meta) change(ctx context.Context, c change) error {
	id, addr := raft.ServerID(c.peer), raft.ServerAddress(c.peer)
	switch c.act {
	case actRemove:
		return m.await(ctx, m.raft.RemoveServer(id, 0, changeTimeout))
	case actAdd:
		return m.await(ctx, m.raft.AddNonvoter(id, addr, 0, changeTimeout))
	case actPromote:
		return m.await(ctx, m.raft.AddVoter(id, addr, 0, changeTimeout))
	case actDemote:
		return m.await(ctx, m.raft.DemoteVoter(id, 0, changeTimeout))
	default: // a leader cannot demote or remove itself cleanly: another does it
		return m.await(ctx, m.raft.LeadershipTransfer())
	}
}
