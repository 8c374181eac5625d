package shard

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/telemetry"
)

// Fast elections. Raft's own timers are long, so that a busy CPU never causes an
// election; these make the common cases fast:
//
//   - a leader's node is down by two independent signals: the survivors stand,
//     the first in line at once, the next one standStagger later;
//   - the whole cluster restarts: nobody knows a leader, so replicas stand in
//     line as soon as a quorum of them says so;
//   - leaders pile up on one node: they are handed to the preferred replica;
//   - the disk under a leader's log is slow: it hands over to one whose is not.
const (
	standStagger = 300 * time.Millisecond
	standEvery   = 100 * time.Millisecond
	// standAfter is how long no leader is known before a replica asks around; a
	// leader that is alive is heard of within a heartbeat, a tenth of its timeout.
	standAfter = 400 * time.Millisecond
	// candidateMax is how long a candidate may go on by itself: a few elections.
	candidateMax   = 10 * time.Second
	balanceEvery   = 2 * time.Second
	diskEvery      = 50 * time.Millisecond // half of what makes a sync slow
	handOversATick = 2
)

// Peers asks other nodes about leaders.
type Peers interface {
	// Leaders returns, for each of the given shards that has a replica on peer,
	// the leader that replica knows ("" for none).
	Leaders(ctx context.Context, peer string, shards []telemetry.ShardID) (map[telemetry.ShardID]string, error)
	// Member asks a peer how far its replica of a shard is; with admit, whether
	// it has room to be built one.
	Member(ctx context.Context, peer string, shard telemetry.ShardID, admit bool) (Member, error)
	// Rebuild tells a shard's leader that the incarnations of a peer's replica below
	// one are gone, so that it removes the one that is a member.
	Rebuild(ctx context.Context, shard telemetry.ShardID, peer string, below uint32) error
}

// Run watches over leaderships and the groups' members until ctx ends.
func (h *Host) Run(ctx context.Context, peers Peers) {
	var balancing sync.WaitGroup
	balancing.Go(func() { every(ctx, balanceEvery, func(time.Time) { h.balance() }) }) // a hand-over may wait for seconds
	balancing.Go(func() { every(ctx, diskEvery, func(time.Time) { h.tendDisk(); h.tendBallots() }) })
	balancing.Go(func() { every(ctx, membersEvery, func(time.Time) { h.tendMembers(ctx, peers) }) })
	balancing.Go(func() { every(ctx, goneEvery, func(time.Time) { h.reportGone(ctx, peers) }) })
	every(ctx, standEvery, func(now time.Time) { h.standLeaderless(ctx, now, peers) })
	balancing.Wait()
}

func every(ctx context.Context, d time.Duration, f func(time.Time)) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			f(now)
		}
	}
}

// PeerDown stands for the shards that a dead peer led. It returns at once.
func (h *Host) PeerDown(ctx context.Context, peer string) {
	told := time.Now()
	for _, s := range h.all() {
		leader := s.leader()
		if leader != peer || s.raft.State() != raft.Follower {
			continue
		}
		wait := time.Duration(h.rank(s, peer)) * standStagger
		h.background(func() {
			select {
			case <-ctx.Done():
				return
			case <-h.ctx.Done():
				return
			case <-time.After(wait):
			}
			now := s.leader()
			alive := s.raft.LastContact().After(told) || h.deps.Sessions.Astray(s.id) // it was not dead after all
			if now == leader && s.raft.State() == raft.Follower && !alive {
				h.stand(s)
			}
		})
	}
}

// rank is this node's place in the line of a shard's voters that can be
// reached: the preferred leader first, the others from a place that depends on
// the shard, so that a dead node's shards spread over the survivors.
func (h *Host) rank(s *hosted, dead string) int {
	preferred := s.replica().Preferred
	if preferred == h.cfg.Self {
		return 0
	}
	voters := s.voters()
	rank := 0
	if preferred != dead && slices.Contains(voters, preferred) && h.deps.Transport.Connected(preferred) {
		rank++
	}
	n := len(voters)
	for i := range n {
		p := voters[(int(s.id)+i)%n]
		switch {
		case p == h.cfg.Self:
			return rank
		case p != dead && p != preferred && h.deps.Transport.Connected(p):
			rank++
		}
	}
	return rank
}

func (h *Host) stand(s *hosted) {
	if !s.votes() || h.abstains(s.id, s.ballot) != nil {
		return
	}
	if err := h.deps.Transport.Poke(GroupOf(s.id)); err != nil {
		s.logger.Debug("could not stand for election", "err", err)
		return
	}
	h.metrics.stands.Inc()
}

// standLeaderless stands for the shards of which nobody knows a leader.
func (h *Host) standLeaderless(ctx context.Context, now time.Time, peers Peers) {
	var lost []*hosted
	for _, s := range h.all() {
		led := s.leader() != "" || s.raft.State() == raft.Leader
		s.ballot.hears(led, now)
		if led {
			s.leaderless = time.Time{}
			continue
		}
		if s.leaderless.IsZero() {
			s.leaderless = now
		}
		// A candidate asks by itself, but asks first whether it may: a voter that
		// lags, and does not know it as one yet, says no to that for ever.
		stuck := s.raft.State() == raft.Candidate && now.Sub(s.leaderless) >= candidateMax
		if (s.raft.State() == raft.Follower || stuck) && s.votes() && now.Sub(s.leaderless) >= standAfter+time.Duration(h.rank(s, ""))*standStagger {
			lost = append(lost, s)
		}
	}
	if len(lost) == 0 {
		return
	}
	none := h.countLeaderless(ctx, lost, peers)
	for _, s := range lost {
		if none[s.id]+1 > len(s.voters())/2 {
			h.stand(s)
			s.leaderless = now
		}
	}
}

// countLeaderless asks every peer once and counts, per shard, the replicas that
// know no leader. One that knows a leader makes the count useless: -1000.
func (h *Host) countLeaderless(ctx context.Context, lost []*hosted, peers Peers) map[telemetry.ShardID]int {
	ctx, cancel := context.WithTimeout(ctx, standStagger)
	defer cancel()
	ask := map[string][]telemetry.ShardID{}
	for _, s := range lost {
		for _, p := range s.voters() {
			if p != h.cfg.Self && h.deps.Transport.Connected(p) {
				ask[p] = append(ask[p], s.id)
			}
		}
	}
	count := map[telemetry.ShardID]int{}
	for p, ids := range ask {
		leaders, err := peers.Leaders(ctx, p, ids)
		if err != nil {
			continue // a peer that does not answer is not counted
		}
		for id, leader := range leaders {
			if leader == "" || leader == h.cfg.Self { // we know that we do not lead
				count[id]++
			} else {
				count[id] -= 1000
			}
		}
	}
	return count
}
