package pubsub

import (
	"context"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// gathering waits for several outcomes.
type gathering struct {
	mu   sync.Mutex
	left int
	err  error
}

// one takes an outcome; last says that it was the last, with the first error of all.
func (g *gathering) one(err error) (last bool, first error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
	g.left--
	return g.left == 0, g.err
}

// toShard adds a shard to a route.
func (r *route) toShard(id telemetry.ShardID) {
	if r.shards == nil {
		r.shards = map[telemetry.ShardID][]string{}
	}
	if _, ok := r.shards[id]; !ok {
		r.shards[id] = nil
	}
}

// onlyGroups takes away the shards that have no group to serve: messages of QoS 0
// reach the other durable sessions from node to node.
func (r *route) onlyGroups() {
	for id, groups := range r.shards {
		if len(groups) == 0 {
			delete(r.shards, id)
		}
	}
}

// waitingPublish is one that must wait until this node knows who wants it.
type waitingPublish struct {
	m    *session.Message
	key  session.Key
	done func(error)
}

// mayRoute reports whether this node may decide who wants m. If not, m waits and is
// routed later, in order.
func (h *Hub) mayRoute(m *session.Message, key session.Key, done func(error)) bool {
	h.waitMu.Lock()
	defer h.waitMu.Unlock()
	if len(h.waiting) == 0 && !h.routing && h.isFresh(time.Now()) {
		return true
	}
	room := laneBytesMax
	if !m.Urgent() {
		room -= room / 4 // as in the lanes that it goes to
	}
	if h.waitBytes+m.Bytes() > room {
		go done(ErrBusy)
		return false
	}
	h.waitBytes += m.Bytes()
	h.waiting = append(h.waiting, waitingPublish{m, key, done})
	return false
}

// isFresh reports whether this node holds a lease of every shard. waitMu is held.
func (h *Hub) isFresh(now time.Time) bool {
	if now.Before(h.freshUntil) {
		return true
	}
	if h.routes.fresh(h.shards.Count(), now) {
		h.freshUntil = now.Add(beat / 2) // a lease that ends meanwhile has leaseMargin behind it
		return true
	}
	return false
}

// routeWaiting routes what had to wait.
func (h *Hub) routeWaiting(now time.Time) {
	for {
		h.waitMu.Lock()
		if len(h.waiting) == 0 || !h.isFresh(now) {
			h.waitMu.Unlock()
			return
		}
		batch := h.waiting
		h.waiting, h.waitBytes = nil, 0
		h.routing = true
		h.waitMu.Unlock()
		for _, w := range batch {
			h.route(w.m, w.key, w.done)
		}
		h.waitMu.Lock()
		h.routing = false
		h.waitMu.Unlock()
	}
}

// Lead implements shard.Sessions: the node announces the filters of the shard's
// durable sessions from now on.
func (h *Hub) Lead(id telemetry.ShardID, term uint64, filters []session.FilterChange) {
	source := shardSource(id)
	h.leadMu.Lock()
	defer h.leadMu.Unlock()
	h.led[id] = term
	changes := h.changes(id, filters)
	h.routes.apply(source, h.board.open(source, term, changes), true, changes)
}

// Lost implements shard.Sessions.
func (h *Hub) Lost(id telemetry.ShardID) {
	h.leadMu.Lock()
	defer h.leadMu.Unlock()
	delete(h.led, id)
	h.board.close(shardSource(id))
}

// changes is what has to be announced of filters.
func (h *Hub) changes(id telemetry.ShardID, filters []session.FilterChange) []change {
	out := make([]change, 0, len(filters))
	for _, f := range filters {
		if !h.covered(id, f.Filter) {
			out = append(out, change{f.Filter, f.Here*weightOf(f) + f.Away})
		}
	}
	return out
}

func (h *Hub) announceLocked(id telemetry.ShardID, term uint64, filters []session.FilterChange) {
	changes := h.changes(id, filters)
	if len(changes) == 0 {
		return
	}
	if m, ok := h.board.set(shardSource(id), term, changes); ok {
		h.routes.apply(shardSource(id), m, false, changes)
	}
}

// weightOf is what a member that is connected counts.
func weightOf(f session.FilterChange) uint64 {
	if _, shared := session.SplitShared(f.Filter); shared {
		return weightHere
	}
	return 1
}

// Effects implements shard.Sessions: filters are announced, messages go to the
// nodes of their clients, wills are sent.
func (h *Hub) Effects(id telemetry.ShardID, e session.Effects) {
	if len(e.Filters) > 0 {
		h.leadMu.Lock()
		if term, ok := h.led[id]; ok {
			h.announceLocked(id, term, e.Filters)
		}
		h.leadMu.Unlock()
	}
	for i := range e.Deliveries {
		d := &e.Deliveries[i]
		ref := session.Ref{Client: d.To, Epoch: d.Epoch}
		if d.Node == h.cfg.Self {
			h.client().Queued(ref, &d.Item, d.Item.Seq)
		} else if p := h.peer(d.Node); p != nil {
			p.push(ref, &d.Item, d.Item.Seq)
		}
	}
}

// Hints implements shard.Sessions.
func (h *Hub) Hints(_ telemetry.ShardID, hints []session.Hint) {
	for _, x := range hints {
		ref := session.Ref{Client: x.Client, Epoch: x.Epoch}
		if x.Owner.Node == h.cfg.Self {
			h.client().Queued(ref, nil, x.Last)
		} else if p := h.peer(x.Owner.Node); p != nil {
			p.push(ref, nil, x.Last)
		}
	}
}

// push queues an item, or a hint how far the queue goes, for a client of the peer.
// One that is lost is found by the next hint.
func (p *peer) push(ref session.Ref, it *session.Item, last uint64) {
	b := wire.AppendUint(wire.AppendString([]byte{pieceQueued}, ref.Client), ref.Epoch)
	b = wire.AppendUint(b, last)
	if it != nil {
		b = session.AppendItems(b, []session.Item{*it})
	} else {
		b = session.AppendItems(b, nil)
	}
	p.post(b, it != nil && it.Message.Urgent())
}

// Wills implements shard.Sessions: each is sent once at a time, the oldest first.
func (h *Hub) Wills(id telemetry.ShardID, wills []session.Will) {
	for _, w := range wills[:min(len(wills), willsMax)] {
		h.leadMu.Lock()
		key := willKey{id, w.ID}
		started := !h.wills[key]
		if started {
			h.wills[key] = true
		}
		h.leadMu.Unlock()
		if started {
			if !h.spawn(func() { h.sendWill(id, w) }) {
				h.willDone(id, w.ID)
			}
		}
	}
}

// willsMax is how many wills of a shard, the oldest that are due, are on their way at the
// same time: when a node full of clients is lost there are thousands.
const willsMax = 256

type willKey struct {
	shard telemetry.ShardID
	id    uint64
}

func (h *Hub) willDone(id telemetry.ShardID, will uint64) {
	h.leadMu.Lock()
	defer h.leadMu.Unlock()
	delete(h.wills, willKey{id, will})
}

// goneAfter is how long a process may be silent before its connections are given
// up: longer than its lease, so that it has noticed.
const goneAfter = leaseMax + 2*time.Second

// Gone implements shard.Sessions: a process is gone when a later one of its node
// speaks, when its port refuses connections, or when it has not asked for news for
// long.
func (h *Hub) Gone(o session.Owner, ledSince time.Time) bool {
	if o.Node == h.cfg.Self {
		return o.Epoch < h.cfg.Epoch
	}
	at, epoch, known := h.board.heard(o.Node)
	if known && epoch > o.Epoch {
		return true
	}
	if known && at.IsZero() && epoch <= o.Epoch {
		return true // the process was seen to have ended
	}
	if ledSince.After(at) {
		at = ledSince
	}
	return time.Since(at) > goneAfter
}

// Settled implements shard.Sessions.
func (h *Hub) Settled(ctx context.Context, id telemetry.ShardID) error {
	source := shardSource(id)
	return h.board.wait(ctx, source, h.board.at(source), h.others())
}

// renewOwn keeps what this node announces itself reliable for itself, and looks for
// shards that were out of reach for too long and are back.
func (h *Hub) renewOwn(now time.Time) {
	h.leadMu.Lock()
	led := make([]telemetry.ShardID, 0, len(h.led))
	for id := range h.led {
		led = append(led, id)
	}
	h.leadMu.Unlock()
	for _, id := range led {
		if h.shards.Leads(id) {
			h.routes.renewOwn(shardSource(id), now, now.Add(4*beat))
		}
	}
	for _, id := range h.routes.returned(h.shards.Count(), now) {
		h.client().Recheck(id)
	}
}
