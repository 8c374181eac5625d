package gossip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/telemetry"
)

// ErrUnknownPeer is returned for a peer that gossip has not heard of, or whose
// node now runs as another incarnation.
var ErrUnknownPeer = errors.New("peer is not known to gossip")

const (
	// membersMax bounds what strangers with the secret can make us remember: ten
	// times the largest cluster that placement was tested with.
	membersMax = 1024
	// leaveTimeout is how long a goodbye may take to go out.
	leaveTimeout = time.Second
)

// Event tells that a member has changed: it appeared, described itself anew, or
// is in another state. When a node comes back as another incarnation, the old one
// is reported dead before the new one is reported alive.
type Event struct{ Member Member }

// Gossip is this node's view of the members.
type Gossip struct {
	logger  *slog.Logger
	cfg     Config
	metrics *metrics
	list    *memberlist.Memberlist
	addr    net.TCPAddr // that is advertised; memberlist writes its own copy while others read it

	mu      sync.Mutex // leaf: memberlist calls us with its own lock held
	self    Member
	members map[telemetry.NodeID]*member
	changed map[telemetry.NodeID]bool // for the reporter
	former  []Member                  // incarnations that were replaced, for the reporter
	subs    []func(Event)

	life   sync.Mutex // Leave and Close: memberlist panics when they cross
	closed bool
	wake   chan struct{} // reporter
	look   chan struct{} // prober
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// New listens and begins to join the seeds in the background.
func New(logger *slog.Logger, reg prometheus.Registerer, cfg Config) (*Gossip, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure gossip: %w", err)
	}
	cfg = cfg.withDefaults()
	g := &Gossip{
		logger:  logger,
		cfg:     cfg,
		metrics: newMetrics(reg),
		self:    cfg.Self,
		members: map[telemetry.NodeID]*member{},
		changed: map[telemetry.NodeID]bool{},
		wake:    make(chan struct{}, 1),
		look:    make(chan struct{}, 1),
	}
	mc, err := cfg.memberlist(logger)
	if err != nil {
		return nil, fmt.Errorf("configure gossip: %w", err)
	}
	d := delegate{g}
	mc.Delegate, mc.Events, mc.Alive, mc.Merge, mc.Ping, mc.Conflict = d, d, d, d, d, d
	list, err := memberlist.Create(mc)
	if err != nil {
		return nil, fmt.Errorf("listen for gossip on %s: %w: choose a free address", cfg.Bind, err)
	}
	g.list = list
	n := list.LocalNode() // nobody but Update changes it, and that comes later
	g.addr = net.TCPAddr{IP: slices.Clone(n.Addr), Port: int(n.Port)}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	g.wg.Go(func() { g.joinSeeds(ctx) })
	g.wg.Go(func() { g.probeSilent(ctx) })
	g.wg.Go(func() { g.report(ctx) })
	return g, nil
}

// Addr is the address that this node advertises.
func (g *Gossip) Addr() net.Addr {
	addr := g.addr
	return &addr
}

// Members lists all members ever seen in this process's life, this node first,
// the others sorted by node id.
func (g *Gossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	ms := make([]Member, 0, len(g.members)+1)
	for _, m := range g.members {
		ms = append(ms, m.Member)
	}
	slices.SortFunc(ms, func(a, b Member) int { return cmp.Compare(a.Node, b.Node) })
	return slices.Insert(ms, 0, g.self)
}

// Peers lists the peer ids of all other members that are not dead.
func (g *Gossip) Peers() []string {
	var peers []string
	for _, m := range g.Members()[1:] {
		if m.State != Dead {
			peers = append(peers, m.Peer)
		}
	}
	return peers
}

// Resolve gives the mux address of a peer, also of a dead one: it may be back
// before gossip knows. It never blocks.
func (g *Gossip) Resolve(peer string) (string, error) {
	node, _, err := cluster.SplitPeer(peer)
	if err != nil {
		return "", fmt.Errorf("resolve %q: %w", peer, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if peer == g.self.Peer {
		return g.self.Mux, nil
	}
	m, ok := g.members[node]
	if !ok {
		return "", fmt.Errorf("resolve %s: %w", peer, ErrUnknownPeer)
	}
	if m.Peer != peer {
		return "", fmt.Errorf("resolve %s: %w: node %s runs as %s", peer, ErrUnknownPeer, node, m.Peer)
	}
	return m.Mux, nil
}

// Subscribe calls f for every member known already and for every change from now
// on; earlier subscribers hear of the known ones again. f is called on gossip's
// goroutine and delays all later events, so it should not block.
func (g *Gossip) Subscribe(f func(Event)) {
	g.mu.Lock()
	g.subs = append(g.subs, f)
	for id, m := range g.members {
		m.reported = nil
		g.changed[id] = true
	}
	g.mu.Unlock()
	rouse(g.wake)
}

// Update changes what this node says of itself: the cluster it has joined, an
// address. Peer and node id stay.
func (g *Gossip) Update(self Member) error {
	if self.Peer != g.cfg.Self.Peer {
		return fmt.Errorf("update member: peer %s is not this node (%s)", self.Peer, g.cfg.Self.Peer)
	}
	if n := len(encodeMember(self)); n > memberlist.MetaMaxSize {
		return fmt.Errorf("update member: addresses, zone and ids take %d bytes, %d are allowed: shorten them", n, memberlist.MetaMaxSize)
	}
	g.mu.Lock()
	self.Node, self.State = g.self.Node, Alive
	g.self = self
	g.mu.Unlock()
	if err := g.list.UpdateNode(leaveTimeout); err != nil {
		// The new alive message is queued and travels with the next state
		// exchange at the latest.
		g.logger.Debug("gossip update is still under way", "err", err)
	}
	return nil
}

// Leave tells the others that this node goes, so that nobody suspects it. Close
// follows.
func (g *Gossip) Leave(ctx context.Context) error {
	wait := leaveTimeout
	if d, ok := ctx.Deadline(); ok {
		wait = min(wait, max(time.Millisecond, time.Until(d)))
	}
	g.life.Lock()
	defer g.life.Unlock()
	if g.closed {
		return errors.New("leave gossip: already closed")
	}
	if err := g.list.Leave(wait); err != nil {
		return fmt.Errorf("leave gossip: %w", err)
	}
	return nil
}

// Close stops all goroutines and closes the sockets. Without Leave the others
// find out by themselves.
func (g *Gossip) Close() error {
	g.life.Lock()
	defer g.life.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	g.cancel()
	err := g.list.Shutdown()
	g.wg.Wait()
	if err != nil {
		return fmt.Errorf("close gossip: %w", err)
	}
	return nil
}

func rouse(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
