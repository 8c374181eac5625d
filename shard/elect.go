package shard

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/telemetry"
)

// Fast elections. Raft's own timers are long, so that a busy CPU never causes an
// election; these three make the common cases fast:
//
//   - a leader's node is down by two independent signals: the survivors stand,
//     the first in line at once, the next one standStagger later;
//   - the whole cluster restarts: nobody knows a leader, so replicas stand in
//     line as soon as a quorum of them says so;
//   - leaders pile up on one node: they are handed to the preferred replica.
const (
	standStagger = 300 * time.Millisecond
	standEvery   = 100 * time.Millisecond
	// standAfter is how long no leader is known before a replica asks around; a
	// leader that is alive is heard of within a heartbeat, a tenth of its timeout.
	standAfter     = 400 * time.Millisecond
	balanceEvery   = 2 * time.Second
	handOversATick = 2
)

// Peers asks other nodes about leaders.
type Peers interface {
	// Leaders returns, for each of the given shards that has a replica on peer,
	// the leader that replica knows ("" for none).
	Leaders(ctx context.Context, peer string, shards []telemetry.ShardID) (map[telemetry.ShardID]string, error)
}

// Run watches over leaderships until ctx ends.
func (h *Host) Run(ctx context.Context, peers Peers) {
	var balancing sync.WaitGroup
	balancing.Go(func() { every(ctx, balanceEvery, func(time.Time) { h.balance() }) }) // a hand-over may wait for seconds
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
		_, leader := s.raft.LeaderWithID()
		if string(leader) != peer || s.raft.State() != raft.Follower {
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
			_, now := s.raft.LeaderWithID()
			alive := s.raft.LastContact().After(told) // it was not dead after all
			if now == leader && s.raft.State() == raft.Follower && !alive {
				h.stand(s)
			}
		})
	}
}

// rank is this node's place in the line of a shard's replicas that can be
// reached: the preferred leader first, the others from a place that depends on
// the shard, so that a dead node's shards spread over the survivors.
func (h *Host) rank(s *hosted, dead string) int {
	if s.replica.Preferred == h.cfg.Self {
		return 0
	}
	rank := 0
	if p := s.replica.Preferred; p != dead && h.deps.Transport.Connected(p) {
		rank++
	}
	n := len(s.replica.Peers)
	for i := range n {
		p := s.replica.Peers[(int(s.id)+i)%n]
		switch {
		case p == h.cfg.Self:
			return rank
		case p != dead && p != s.replica.Preferred && h.deps.Transport.Connected(p):
			rank++
		}
	}
	return rank
}

func (h *Host) stand(s *hosted) {
	if !h.votes(s) {
		return
	}
	if err := h.deps.Transport.Poke(GroupOf(s.id)); err != nil {
		s.logger.Debug("could not stand for election", "err", err)
		return
	}
	h.metrics.stands.Inc()
}

// votes reports whether this replica is a voter of the latest configuration.
func (h *Host) votes(s *hosted) bool {
	f := s.raft.GetConfiguration()
	if f.Error() != nil {
		return false
	}
	for _, srv := range f.Configuration().Servers {
		if string(srv.ID) == h.cfg.Self {
			return srv.Suffrage == raft.Voter
		}
	}
	return false
}

// standLeaderless stands for the shards of which nobody knows a leader.
func (h *Host) standLeaderless(ctx context.Context, now time.Time, peers Peers) {
	var lost []*hosted
	for _, s := range h.all() {
		if _, leader := s.raft.LeaderWithID(); leader != "" || s.raft.State() == raft.Leader {
			s.leaderless = time.Time{}
			continue
		}
		if s.leaderless.IsZero() {
			s.leaderless = now
		}
		if s.raft.State() == raft.Follower && now.Sub(s.leaderless) >= standAfter+time.Duration(h.rank(s, ""))*standStagger {
			lost = append(lost, s)
		}
	}
	if len(lost) == 0 {
		return
	}
	none := h.countLeaderless(ctx, lost, peers)
	for _, s := range lost {
		if none[s.id]+1 > len(s.replica.Peers)/2 {
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
		for _, p := range s.replica.Peers {
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
