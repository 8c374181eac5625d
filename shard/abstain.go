package shard

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// A replica that has found a snapshot or rows of its own damaged, and has not got
// them back, stays out of elections: it gives no vote, asks for none, and lets go
// of a leadership. It goes on taking entries, which it has all stored, so that
// commits do not wait for the repair. To its group it is as if its messages about
// elections were lost: raft allows for that, and nothing about safety changes.
//
// That lasts only while somebody leads or may soon. What is damaged is neither
// log nor term nor vote; where no leader is found without this replica for
// abstainMax, nobody is there who could repair it either, or the group has lost
// another member at the same time, and then its vote, which is as good as ever, is
// worth more than its silence: shards would stay without a leader for ever.

// abstainMax is how long a shard may be without a leader before a damaged replica
// takes part in elections all the same: five looks of whoever fetches what is
// missing, and as long as a publish waits for its shard.
const abstainMax = 10 * time.Second

// ElectionGate is how a Transport keeps a replica out of elections; see
// mux.SetElectionGate. A Transport without it leaves that to hand-overs.
type ElectionGate interface {
	OnElection(group uint32, abstains func() error)
}

// errAbstains answers who asks for the vote of a damaged replica.
var errAbstains = errors.New("the replica abstains until it is repaired")

// ballot is a replica's part in elections.
type ballot struct {
	leaderless atomic.Pointer[time.Time] // since when no leader is known; nil while one is
	damaged    atomic.Bool               // as it was last seen
	lone       atomic.Bool               // it is the only voter: nobody else could lead
}

// hears notes whether a leader is known.
func (b *ballot) hears(leader bool, now time.Time) {
	switch known := b.leaderless.Load(); {
	case leader && known != nil:
		b.leaderless.Store(nil)
	case !leader && known == nil:
		b.leaderless.Store(&now)
	}
}

// patient reports whether a leader is known or may be found without this replica.
func (b *ballot) patient(now time.Time, most time.Duration) bool {
	since := b.leaderless.Load()
	return since == nil || now.Sub(*since) < most
}

// unrepaired is what of a replica here is damaged and not back; nil when nothing.
func (h *Host) unrepaired(id telemetry.ShardID) error {
	h.mu.RLock()
	rotten := h.rotten[id]
	h.mu.RUnlock()
	if rotten != nil {
		return rotten
	}
	if h.deps.RottenRows != nil && h.deps.RottenRows(id) {
		return fmt.Errorf("rows of shard %d are damaged", id)
	}
	return nil
}

// abstains is why a replica here takes part in no election, nil when it does. It
// does not block.
func (h *Host) abstains(id telemetry.ShardID, b *ballot) error {
	why := h.unrepaired(id)
	if was := b.damaged.Swap(why != nil); was != (why != nil) {
		logger := h.logger.With("shard", id)
		if why != nil {
			logger.Warn("replica gives no vote and stands in no election until it is repaired", "err", why)
		} else {
			logger.Info("replica is repaired and takes part in elections again")
		}
	}
	if why == nil || b.lone.Load() || !b.patient(time.Now(), h.cfg.Limits.withDefaults().Abstain) {
		return nil
	}
	return fmt.Errorf("%w: %w", errAbstains, why)
}

// RowsRotted tells that RottenRows has something new to say of a shard, so that it
// is acted upon, and said, at once.
func (h *Host) RowsRotted(id telemetry.ShardID) {
	h.mu.RLock()
	s := h.shards[id]
	h.mu.RUnlock()
	if s != nil {
		_ = h.abstains(id, s.ballot) // says so
	}
}

// watchElections keeps a replica that is about to be opened out of elections as
// long as it has to.
func (h *Host) watchElections(id telemetry.ShardID, b *ballot) {
	gate, ok := h.deps.Transport.(ElectionGate)
	if !ok {
		return
	}
	gate.OnElection(GroupOf(id), func() error {
		err := h.abstains(id, b)
		if err != nil {
			h.metrics.abstentions.Inc()
		}
		return err
	})
}

// tendBallots looks at what is damaged, and gives leaderships away from replicas
// that are: they could answer no query for those rows either.
func (h *Host) tendBallots() {
	damaged := 0
	for _, s := range h.all() {
		why := h.abstains(s.id, s.ballot)
		if why == nil && !s.ballot.damaged.Load() {
			continue
		}
		voters := s.voters()
		s.ballot.lone.Store(len(voters) == 1 && voters[0] == h.cfg.Self)
		if why != nil {
			damaged++
		}
	}
	h.metrics.abstaining.Set(float64(damaged))
	h.relieve(func(s *hosted) bool { return s.ballot.damaged.Load() })
}
