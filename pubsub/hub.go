package pubsub

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// Hub is one node's part of the cluster-wide broker.
type Hub struct {
	log     *slog.Logger
	cfg     Config
	net     Net
	shards  Shards
	metrics *metrics
	board   *board
	routes  *routes
	local   atomic.Pointer[Local]
	once    once

	mu      sync.Mutex
	peers   map[string]*peer
	known   atomic.Pointer[map[string]*peer] // a copy of peers, for who may not take mu: find does under the lock of the routes
	own     map[string]int                   // subscriptions of this node's clients, by filter
	lanes   map[telemetry.ShardID]*lane
	stopped bool

	leadMu sync.Mutex
	led    map[telemetry.ShardID]uint64 // terms of the shards that are led here
	wills  map[willKey]bool             // being sent

	waitMu     sync.Mutex
	waiting    []waitingPublish // until every shard's lease is there, in order
	waitBytes  int
	routing    bool // some that waited are on their way
	freshUntil time.Time
	wholeUntil time.Time
	onBeat     func(time.Time)

	silent   atomic.Pointer[silence] // as of the last beat
	followMu sync.Mutex
	followed []*following // telemetry that waits for shards, in order

	ctx  context.Context // ends with Close; the lifetime of the goroutines
	stop context.CancelFunc
	done sync.WaitGroup
}

// New makes a hub. reg may be nil.
func New(logger *slog.Logger, reg prometheus.Registerer, cfg Config, net Net, shards Shards) (*Hub, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("pubsub configuration: %w", err)
	}
	if cfg.OutboxBytesMax == 0 {
		cfg.OutboxBytesMax = outboxBytesDefault
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	h := &Hub{log: logger, cfg: cfg, net: net, shards: shards, metrics: m, routes: newRoutes(cfg.Self),
		peers: map[string]*peer{}, own: map[string]int{}, lanes: map[telemetry.ShardID]*lane{}, led: map[telemetry.ShardID]uint64{}, wills: map[willKey]bool{}}
	h.board = newBoard(time.Now, h.speaksFor)
	h.board.sight = h.routes.seen
	h.ctx, h.stop = context.WithCancel(context.Background())
	h.board.open(cfg.Self, cfg.Epoch, nil)
	h.routes.apply(cfg.Self, mark{cfg.Epoch << eraBits, 1}, true, nil)
	if reg != nil {
		if err := h.registerGauges(reg); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// speaksFor reports whether a source is this node's to announce right now.
func (h *Hub) speaksFor(source string) bool {
	id, ok := shardOfSource(source)
	return !ok || h.shards.Leads(id)
}

// Start begins to exchange indexes with the peers; messages for this node's
// clients go to local.
func (h *Hub) Start(local Local) {
	h.local.Store(&local)
	h.adopt()
	h.done.Go(h.run)
}

// Synced waits until this node has the announcements of every peer that it can
// reach, so that what it publishes from then on finds their subscribers.
func (h *Hub) Synced(ctx context.Context) error {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		missing := ""
		for _, id := range h.others() {
			if p := h.peer(id); p != nil && h.net.Connected(id) && !p.synced.Load() {
				missing = id
			}
		}
		if missing == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("learn the subscriptions of %s: %w", missing, ctx.Err())
		case <-tick.C:
		}
	}
}

// Flush waits until the shards have everything that this node has to tell them.
func (h *Hub) Flush(ctx context.Context) error {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for !h.idle() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("tell the shards what became of the clients: %w", ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// client is the broker of this node, nobody until there is one.
func (h *Hub) client() Local {
	if l := h.local.Load(); l != nil {
		return *l
	}
	return deaf{}
}

// deaf is the broker of a node that does not serve yet.
type deaf struct{}

func (deaf) Deliver(*session.Message, []string)               {}
func (deaf) Queued(session.Ref, *session.Item, uint64)        {}
func (deaf) Fence(session.Ref)                                {}
func (deaf) Recheck(telemetry.ShardID)                        {}
func (deaf) Strayed([]session.Astray)                         {}
func (deaf) Will(_ string, _ *session.Message, d func(error)) { d(errClosed) }

// Close ends everything; what waits for peers is dropped.
func (h *Hub) Close() error {
	h.mu.Lock()
	h.stopped = true
	h.mu.Unlock()
	h.stop()
	h.done.Wait()
	h.waitMu.Lock()
	rest := h.waiting
	h.waiting = nil
	h.waitMu.Unlock()
	for _, w := range rest {
		w.done(errClosed)
	}
	return nil
}

// run is the hub's beat.
func (h *Hub) run() {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	last := time.Now()
	for n := 0; ; n++ {
		select {
		case <-h.ctx.Done():
			return
		case now := <-tick.C:
			if now.Sub(last) > pauseMax {
				h.routes.excuse()
			}
			last = now
			h.board.expire(now)
			h.renewOwn(now)
			h.routeWaiting(now)
			h.lookAfterFollowed(now)
			if h.onBeat != nil {
				h.onBeat(now)
			}
			if n%16 == 0 {
				h.adopt()
			}
		}
	}
}

// adopt begins with peers that are new and forgets those that are no more.
func (h *Hub) adopt() {
	now := h.net.Peers()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return
	}
	for _, id := range now {
		if id == h.cfg.Self || h.peers[id] != nil {
			continue
		}
		p := newPeer(h, id)
		h.peers[id] = p
		h.done.Go(p.pull)
		h.done.Go(p.send)
	}
	for id, p := range h.peers {
		if !slices.Contains(now, id) {
			delete(h.peers, id)
			p.stop()
			h.routes.drop(id)
		}
	}
	copied := maps.Clone(h.peers)
	h.known.Store(&copied)
}

// peer takes no lock: the routes ask with theirs held, and whoever holds mu may be
// waiting for that one.
func (h *Hub) peer(id string) *peer {
	if known := h.known.Load(); known != nil {
		return (*known)[id]
	}
	return nil
}

// Ended says that a peer's process has certainly ended: nobody waits for it.
func (h *Hub) Ended(peer string) { h.board.gone(peer) }

// Subscribe announces a filter of a client of this node. announced waits until every
// node holds it, or has no lease to use an older index: at most about leaseMax +
// leaseMargin.
func (h *Hub) Subscribe(filter string) (announced func(context.Context) error) {
	m := h.count(1, filter)
	return func(ctx context.Context) error { return h.board.wait(ctx, h.cfg.Self, m, h.others()) }
}

// Unsubscribe takes one announcement back.
func (h *Hub) Unsubscribe(filter string) { h.count(-1, filter) }

func (h *Hub) count(by int, filter string) mark {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.own[filter]
	n := max(before+by, 0)
	if n == 0 {
		delete(h.own, filter)
	} else {
		h.own[filter] = n
	}
	var changes []change
	if _, shared := session.SplitShared(filter); shared {
		changes = []change{{filter, uint64(n) * weightHere}}
	} else if (n > 0) != (before > 0) {
		changes = []change{{filter, uint64(min(n, 1))}}
	}
	m, _ := h.board.set(h.cfg.Self, h.cfg.Epoch, changes) // the own source is always open
	h.routes.apply(h.cfg.Self, m, false, changes)
	return m
}

func (h *Hub) others() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]string, 0, len(h.peers))
	for id := range h.peers {
		out = append(out, id)
	}
	return out
}

// Wanted reports whether anybody anywhere has subscribed to anything that reaches
// telemetry or is not a device's own command.
func (h *Hub) Wanted() bool { return h.routes.filters.Load() > 0 }

// reachable reports whether messages may be queued for a peer. One that is away
// for a moment gets them later; the choice within a shared group falls on others.
func (h *Hub) reachable(id string, shared bool) bool {
	p := h.peer(id)
	return p != nil && !p.away.Load() && (!shared || h.net.Connected(id))
}
