package shard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// HandOverAll gives every leadership of this node to other replicas, before the
// node stops or while it drains. What could not be handed over is reported; it
// costs an election, nothing else.
func (h *Host) HandOverAll(ctx context.Context) error {
	h.mu.Lock()
	h.draining = true
	h.mu.Unlock()
	var errs []error
	for _, s := range h.all() {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		if err := h.giveAway(s); err != nil {
			errs = append(errs, fmt.Errorf("hand over shard %d: %w", s.id, err))
		}
	}
	return errors.Join(errs...)
}

// errNobody answers a hand-over without a replica to hand over to.
var errNobody = errors.New("no other voter can take it")

// giveAway hands one shard to the first of its heirs that takes it.
func (h *Host) giveAway(s *hosted) error {
	if s.raft.State() != raft.Leader {
		return nil
	}
	err := errNobody
	for _, p := range h.heirs(s) {
		if err = s.HandOver(p); err == nil || s.raft.State() != raft.Leader {
			return nil
		}
	}
	return err
}

// heirs lists the voters that may lead a shard instead of this node: the
// preferred one first, the others from a place that depends on the shard, so
// that the leaderships of a node spread over those that remain. A peer that
// cannot be reached or is draining itself is none.
func (h *Host) heirs(s *hosted) []string {
	voters := s.voters()
	place := s.replica()
	var out []string
	for i := range voters {
		p := voters[(int(s.id)+i)%len(voters)]
		switch {
		case !h.mayLead(p) || !slices.Contains(place.Peers, p): // leaving, or not yet arrived
		case p == place.Preferred:
			out = append([]string{p}, out...)
		default:
			out = append(out, p)
		}
	}
	return out
}

func (h *Host) mayLead(peer string) bool {
	return peer != h.cfg.Self && h.deps.Transport.Connected(peer) && (h.deps.Draining == nil || !h.deps.Draining(peer))
}

// leads hears that a replica here has won an election. A draining node gives
// the leadership away again: its peers may not know yet that it drains, and
// hand to the preferred replica whatever is its.
func (h *Host) leads(s *Shard) {
	h.mu.RLock()
	hs, draining := h.shards[s.id], h.draining
	h.mu.RUnlock()
	if draining && hs != nil {
		h.background(func() {
			if err := h.giveAway(hs); err != nil {
				s.logger.Debug("leadership stays with a draining node", "err", err)
			}
		})
	}
}

// balance hands leaderships to the replicas that should have them, a few at a
// time.
func (h *Host) balance() {
	h.mu.RLock()
	draining := h.draining
	h.mu.RUnlock()
	if draining {
		return
	}
	if h.slow.Load() {
		return // see tendDisk
	}
	moved := 0
	for _, s := range h.all() {
		if h.ctx.Err() != nil {
			return
		}
		p := s.replica().Preferred
		if moved == handOversATick || p == "" || s.raft.State() != raft.Leader || s.readable.Load() == 0 || !h.mayLead(p) || !slices.Contains(s.voters(), p) {
			continue
		}
		moved++
		if !h.near(s, p) {
			continue // it will be asked again
		}
		if err := s.HandOver(p); err != nil {
			s.logger.Debug("leadership stays", "peer", p, "err", err)
			continue
		}
		h.metrics.handOvers.Inc()
	}
}

const (
	// nearMax is how many entries a replica may be behind to be handed a
	// leadership: what one append brings.
	nearMax = appendEntriesMax
	// nearIn is how soon it has to answer, several times a round trip between
	// zones.
	nearIn = 200 * time.Millisecond
)

// near reports whether a peer's replica answers quickly and has nearly all of
// the log. raft takes no entry of a shard while it waits for the one that is to
// lead it, for two seconds if that one is behind or stands still, and balance is
// not worth that.
func (h *Host) near(s *hosted, peer string) bool {
	if s.ask == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(h.ctx, nearIn)
	defer cancel()
	b, err := s.ask(ctx, peer, GroupOf(s.id), []byte{askTerm})
	if err != nil {
		return false
	}
	if b, err = readAnswer(s.id, b); err != nil {
		return false
	}
	r := wire.NewReader(b)
	_, last, slow := r.Uint(), r.Uint(), r.Bool()
	return r.Err() == nil && !slow && last+nearMax >= s.raft.LastIndex()
}

// tendDisk gives leaderships away while the disk of the log is slow. Peers hear of
// it from AnswerAtOnce and hand nothing here meanwhile.
func (h *Host) tendDisk() {
	if h.deps.SlowDisk == nil {
		return
	}
	if slow := h.deps.SlowDisk(); slow != h.slow.Load() {
		h.slow.Store(slow)
		h.logger.Warn("disk of the log", "slow", slow)
	}
	if h.slow.Load() {
		h.relieve(func(*hosted) bool { return true })
	}
}

// unfit reports whether a shard should rather be led elsewhere.
func (h *Host) unfit(id telemetry.ShardID) bool {
	return h.slow.Load() || h.unrepaired(id) != nil
}

// relieve gives leaderships away from a node with a bad disk, to replicas whose
// disk is well. Where all are bad, they stay. Each hand-over waits for syncs of that
// disk, so they go together: one after the other they would take seconds.
func (h *Host) relieve(from func(*hosted) bool) {
	var under sync.WaitGroup
	defer under.Wait()
	places := make(chan struct{}, relievesMax)
	for _, s := range h.all() {
		if s.raft.State() != raft.Leader || s.readable.Load() == 0 || !from(s) {
			continue
		}
		places <- struct{}{}
		under.Go(func() {
			defer func() { <-places }()
			h.relieveOne(s)
		})
	}
}

// relievesMax bounds the hand-overs at a time, each of them an election elsewhere.
const relievesMax = 16

func (h *Host) relieveOne(s *hosted) {
	for _, p := range h.heirs(s) {
		if h.ctx.Err() != nil {
			return
		}
		if !h.near(s, p) {
			continue
		}
		if err := s.HandOver(p); err != nil {
			s.logger.Debug("leadership stays on a bad disk", "peer", p, "err", err)
			continue
		}
		h.metrics.handOvers.Inc()
		return
	}
}
