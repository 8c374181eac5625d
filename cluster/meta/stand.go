package meta

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// leaderlessTick is how often a voter without a leader asks the others.
	leaderlessTick = 50 * time.Millisecond
	// leaderTick is how often it looks for one unasked: news of leaders wake it,
	// but a configuration that makes it a voter does not.
	leaderTick = 500 * time.Millisecond
	// standStagger separates the candidates: an election over a LAN takes a
	// third of it, so the second stands only when the first has not won.
	standStagger = 300 * time.Millisecond
	// candidateMax is how long a candidate may go on by itself: a few elections.
	candidateMax = 10 * time.Second
	// waitsMax is how often a voter gives way to one that stands already: one that
	// cannot win stands for ever.
	waitsMax = 3
	// roundTimeout ends the question who leads; slower voters do not count.
	roundTimeout = 250 * time.Millisecond
)

// LeaderDown tells the group that the detector holds a peer for gone. If that is
// the leader, the voters with the most complete logs stand for election in turn,
// without waiting for raft's timers.
func (m *Meta) LeaderDown(peer string) {
	if peer == m.Leader() && peer != m.cfg.Peer {
		m.suspect.Store(&peer)
		rouse(m.look)
	}
}

// Stand makes this node stand for election at once, when it votes. Other voters
// follow even though they have a leader, so it is for a leader known to be gone.
func (m *Meta) Stand() {
	if slices.Contains(m.Voters(), m.cfg.Peer) {
		m.stand()
	}
}

func (m *Meta) stand() {
	if m.deps.Poker == nil {
		return
	}
	if err := m.deps.Poker.Poke(Group); err != nil {
		m.logger.Warn("cannot stand for election, waiting for the election timeout", "err", err)
		return
	}
	m.metrics.stands.Inc()
}

// leader is the leader this node believes in: not the one reported down.
func (m *Meta) leader() string {
	l := m.Leader()
	if s := m.suspect.Load(); s != nil && *s == l {
		return ""
	}
	return l
}

// keepLeader stands for election when a quorum of the voters answers, none of
// them knows a leader, and it is this node's turn. After a full restart that
// gives a leader as soon as a quorum is up.
func (m *Meta) keepLeader(ctx context.Context) {
	if m.deps.Poker == nil {
		return
	}
	turn := turn{term: m.raft.CurrentTerm()}
	timer := time.NewTimer(leaderlessTick)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.look:
		}
		voters := m.Voters()
		if m.leader() != "" || !slices.Contains(voters, m.cfg.Peer) {
			turn = turn.led(m.raft.CurrentTerm())
			timer.Reset(leaderTick)
			continue
		}
		if turn = turn.leaderless(time.Now(), m.raft.CurrentTerm()); turn.begun(time.Now()) {
			m.standInTurn(ctx, &turn, voters)
		}
		timer.Reset(leaderlessTick)
	}
}

func (m *Meta) standInTurn(ctx context.Context, t *turn, voters []string) {
	rank, standing, ok := m.rank(ctx, voters)
	now := time.Now()
	*t = t.leaderless(now, m.raft.CurrentTerm()) // others may have stood during the survey
	if standing && t.waits < waitsMax {
		*t = t.wait(now)
		return
	}
	// A candidate cannot be made to begin again before its timeout. But it asks
	// first whether it may, and a voter that lags and does not know it as a voter
	// yet says no to that for ever.
	stuck := m.raft.State() == raft.Candidate && now.Sub(t.from) >= candidateMax
	if !ok || !t.mine(now, rank) || m.leader() != "" || m.raft.State() != raft.Follower && !stuck {
		return
	}
	m.stand()
	*t = t.stood(now, m.cfg.ElectionTimeout)
}

// turn says when this node may stand. A change of the term shows that somebody
// else does: two at once cost both of them the election.
type turn struct {
	term  uint64    // last seen
	from  time.Time // when the voter of rank 0 may stand; zero while there is a leader
	tries int
	waits int // times that it has let another one try
}

func (t turn) led(term uint64) turn { return turn{term: term} }

func (t turn) leaderless(now time.Time, term uint64) turn {
	if t.from.IsZero() {
		t.from = now
	}
	if t.term != term {
		t.term, t.from = term, later(t.from, now.Add(standStagger))
	}
	return t
}

func (t turn) begun(now time.Time) bool { return !now.Before(t.from) }

func (t turn) mine(now time.Time, rank int) bool {
	return !now.Before(t.from.Add(time.Duration(rank) * standStagger))
}

// stood gives the election time to be won, longer each time: on a busy machine a
// vote may take as long as its slowest fsync. The term is then our own.
func (t turn) stood(now time.Time, most time.Duration) turn {
	t.tries++
	t.term++
	t.from = now.Add(min(most, time.Duration(t.tries+1)*standStagger))
	return t
}

// wait gives way to a voter whose election is under way: its votes may hang on a
// slow disk.
func (t turn) wait(now time.Time) turn {
	t.waits++
	t.from = later(t.from, now.Add(standStagger))
	return t
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// rank asks the other voters how they are and returns how many of them should
// stand before this node: those with a longer log, and of equals those with the
// smaller id, and whether one of them stands already. ok is false when there is
// no quorum or somebody has a leader.
func (m *Meta) rank(ctx context.Context, voters []string) (rank int, standing, ok bool) {
	answers := m.survey(ctx, voters)
	if 2*(len(answers)+1) <= len(voters) {
		return 0, false, false
	}
	mine := m.status()
	for _, s := range answers {
		if s.Leader != "" && s.Leader != m.Leader() && s.Leader != m.cfg.Peer {
			return 0, false, false
		}
		standing = standing || s.Standing
		if s.Last > mine.Last || (s.Last == mine.Last && s.Peer < mine.Peer) {
			rank++
		}
	}
	return rank, standing, true
}

func (m *Meta) survey(ctx context.Context, voters []string) []status {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	down := m.suspect.Load()
	answers := make(chan status, len(voters))
	var wg sync.WaitGroup
	for _, peer := range voters {
		if peer == m.cfg.Peer || (down != nil && *down == peer) {
			continue
		}
		wg.Go(func() {
			if s, err := m.askStatus(ctx, peer); err == nil {
				answers <- s
			}
		})
	}
	wg.Wait()
	close(answers)
	var all []status
	for s := range answers {
		all = append(all, s)
	}
	return all
}
