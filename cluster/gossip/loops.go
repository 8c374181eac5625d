package gossip

import (
	"cmp"
	"context"
	"net"
	"slices"
	"time"

	"github.com/sluice-iot/sluice/cluster"
)

const (
	// joinPauseMin and joinPauseMax are the backoff of joining: soon after the
	// start, because all nodes start together, and for ever, because it also
	// heals a cluster that has split and brings back a node whose name was still
	// taken.
	joinPauseMin = 250 * time.Millisecond
	joinPauseMax = 15 * time.Second
	// pingsMax bounds the direct pings at a time: with 99 members and none heard
	// from otherwise, each is pinged every 13 probe intervals.
	pingsMax = 8
	// silentAfter is the number of probe intervals without an answer after which
	// a member is pinged directly.
	silentAfter = 2
	// lostMax is the number of lost pings in a row that make a suspect: one
	// packet may always get lost.
	lostMax = 2
)

// joinSeeds contacts every seed, again and again.
func (g *Gossip) joinSeeds(ctx context.Context) {
	var said bool
	for pause := joinPauseMin; ; pause = min(2*pause, joinPauseMax) {
		reached := 0
		for _, seed := range g.cfg.Seeds {
			if ctx.Err() != nil {
				return
			}
			reached += g.joinSeed(seed)
		}
		if reached == 0 && len(g.cfg.Seeds) > 0 && pause == joinPauseMax && !said {
			said = true
			g.logger.Warn("no seed can be reached, trying on", "seeds", g.cfg.Seeds)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (g *Gossip) joinSeed(seed string) int {
	a, err := resolve(seed)
	if err == nil && a.String() == g.Addr().String() {
		return 0 // this node itself
	}
	if err == nil {
		_, err = g.list.Join([]string{a.String()})
	}
	if err != nil {
		g.metrics.joins.WithLabelValues("failed").Inc()
		g.logger.Debug("seed cannot be reached", "seed", seed, "err", err)
		return 0
	}
	g.metrics.joins.WithLabelValues("reached").Inc()
	return 1
}

// Probe asks for direct pings of a peer now, instead of when its turn comes: the
// caller has a reason to doubt it. It does not block; the outcome is an event, or
// none when the peer answers.
func (g *Gossip) Probe(peer string) {
	node, _, err := cluster.SplitPeer(peer)
	if err != nil {
		return
	}
	g.mu.Lock()
	if m, ok := g.members[node]; ok && m.Peer == peer && m.State == Alive {
		m.urgent = true
	}
	g.mu.Unlock()
	rouse(g.look)
}

// probeSilent pings members that have not been heard of for a while, or that
// somebody doubts. memberlist's own probing covers a member only every n-1
// intervals, and keeps what it finds to itself.
func (g *Gossip) probeSilent(ctx context.Context) {
	tick := time.NewTicker(g.cfg.ProbeInterval)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			now := time.Now()
			if now.Sub(last) > 2*g.cfg.ProbeInterval {
				g.forgive(now)
			}
			last = now
		case <-g.look:
		}
		for _, m := range g.silent(time.Now()) {
			g.wg.Go(func() { g.ping(ctx, m.Peer, m.addr) })
		}
	}
}

// forgive begins all waiting anew: this process was paused, so its silence was
// its own.
func (g *Gossip) forgive(now time.Time) {
	g.metrics.paused.Inc()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.members {
		m.heard, m.lost = now, 0 // an urgent probe stays: it asks anew
	}
}

// silent takes the members to ping now, the longest silent first.
func (g *Gossip) silent(now time.Time) []member {
	g.mu.Lock()
	defer g.mu.Unlock()
	var due []*member
	running := 0
	for _, m := range g.members {
		if m.pinging {
			running++
			continue
		}
		if m.State != Dead && (m.urgent || m.lost > 0 || now.Sub(m.heard) > silentAfter*g.cfg.ProbeInterval) {
			due = append(due, m)
		}
	}
	slices.SortFunc(due, func(a, b *member) int {
		if a.urgent != b.urgent {
			if a.urgent {
				return -1
			}
			return 1
		}
		return cmp.Or(a.heard.Compare(b.heard), cmp.Compare(a.Node, b.Node))
	})
	due = due[:max(0, min(len(due), pingsMax-running))]
	out := make([]member, len(due))
	for i, m := range due {
		m.pinging, m.urgent = true, false
		out[i] = *m
	}
	return out
}

// ping sends up to lostMax pings.
func (g *Gossip) ping(ctx context.Context, peer string, addr net.UDPAddr) {
	node, _, _ := cluster.SplitPeer(peer)
	for range lostMax {
		if ctx.Err() != nil {
			break
		}
		if _, err := g.list.Ping(string(node), &addr); err == nil {
			g.metrics.pings.WithLabelValues("answered").Inc()
			g.answered(peer, time.Now())
			break
		}
		if ctx.Err() != nil {
			break
		}
		g.metrics.pings.WithLabelValues("lost").Inc()
		if g.unanswered(peer) {
			break
		}
	}
	g.mu.Lock()
	if m, ok := g.members[node]; ok {
		m.pinging = false
	}
	g.mu.Unlock()
}

// answered takes back a suspicion.
func (g *Gossip) answered(peer string, now time.Time) {
	node, _, _ := cluster.SplitPeer(peer)
	g.mu.Lock()
	defer g.mu.Unlock()
	m, ok := g.members[node]
	if !ok || m.Peer != peer {
		return
	}
	m.heard, m.lost = now, 0
	if m.State == Suspect {
		m.State = Alive
		g.touch(m)
	}
}

// unanswered counts a lost ping and reports whether there were enough.
func (g *Gossip) unanswered(peer string) bool {
	node, _, _ := cluster.SplitPeer(peer)
	g.mu.Lock()
	defer g.mu.Unlock()
	m, ok := g.members[node]
	if !ok || m.Peer != peer {
		return true
	}
	m.lost++
	if m.lost >= lostMax && m.State == Alive {
		m.State = Suspect
		g.touch(m)
	}
	return m.lost >= lostMax
}

// report tells subscribers what has changed, each member's latest state once.
func (g *Gossip) report(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		}
		events, subs := g.collect()
		for _, e := range events {
			g.logger.Info("member changed", "member", string(e.Member.Node), "zone", string(e.Member.Zone), "state", e.Member.State.String())
			for _, f := range subs {
				f(e)
			}
		}
	}
}

func (g *Gossip) collect() ([]Event, []func(Event)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var events []Event
	for id := range g.changed {
		m := g.members[id]
		if m.reported != nil && *m.reported == m.Member {
			continue
		}
		now := m.Member
		m.reported = &now
		events = append(events, Event{now})
	}
	clear(g.changed)
	slices.SortFunc(events, func(a, b Event) int { return cmp.Compare(a.Member.Node, b.Member.Node) })
	for _, m := range g.former {
		events = slices.Insert(events, 0, Event{m})
	}
	g.former = nil
	g.count()
	return events, slices.Clone(g.subs)
}

// count sets the gauge; g.mu is held.
func (g *Gossip) count() {
	var n [3]float64
	for _, m := range g.members {
		n[m.State]++
	}
	for _, s := range []State{Alive, Suspect, Dead} {
		g.metrics.members.WithLabelValues(s.String()).Set(n[s])
	}
}
