package mux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// Resolver finds where a peer listens now. It is asked before every attempt to
// connect and must not block. An unknown peer is an error, whose text reaches
// the callers of that peer.
type Resolver interface {
	Resolve(peer string) (addr string, err error)
}

// Mux is one node's end of all its connections. All methods may be called from
// any goroutine.
type Mux struct {
	cfg         Config
	logger      *slog.Logger
	metrics     *metrics
	resolver    Resolver
	incarnation uint32
	self        []byte
	listener    net.Listener
	started     time.Time
	frames      framePools
	answers     sync.Pool // chan raft.RPCResponse of capacity 1, empty
	syncCalls   sync.Pool // *syncCall
	limiter     *rate.Limiter
	session     uint64 // of the snapshots we send
	snapshotSeq atomic.Uint64
	events      events

	handlers       [applicationKinds]atomic.Pointer[Handler]
	streamHandlers [applicationKinds]atomic.Pointer[StreamHandler]
	cluster        atomic.Pointer[string]

	groups  atomic.Pointer[map[uint32]*Transport] // replaced under mu
	evicted atomic.Pointer[map[string]bool]       // never changed once stored

	peersMu sync.RWMutex
	peers   map[string]*peer

	handshakes atomic.Int32 // of others, under way
	streams    atomic.Int32 // of others, open

	mu      sync.Mutex
	conns   map[*conn]struct{}
	inbound map[string]*conn // by peer
	raw     map[net.Conn]struct{}
	ended   bool
	done    chan struct{}
	wg      sync.WaitGroup
}

// keepAlive finds dead ends under streams, which have no pings.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 4}

// New listens and starts the mux. logger and reg may be nil.
func New(logger *slog.Logger, reg prometheus.Registerer, cfg Config, resolver Resolver) (*Mux, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure transport: %w", err)
	}
	cfg = cfg.withDefaults()
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if resolver == nil {
		return nil, errors.New("configure transport: a resolver is required")
	}
	metrics, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if cfg.Dial == nil {
		dialer := &net.Dialer{KeepAliveConfig: keepAlive}
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) }
	}
	if cfg.Listener == nil {
		lc := net.ListenConfig{KeepAliveConfig: keepAlive}
		if cfg.Listener, err = lc.Listen(context.Background(), "tcp", cfg.Listen); err != nil {
			return nil, fmt.Errorf("listen for peers on %s: %w", cfg.Listen, err)
		}
	}
	m := &Mux{
		cfg: cfg, logger: logger, metrics: metrics, resolver: resolver,
		self: []byte(cfg.Self), listener: cfg.Listener, started: time.Now(), session: newSession(),
		peers: make(map[string]*peer), conns: make(map[*conn]struct{}), inbound: make(map[string]*conn),
		raw: make(map[net.Conn]struct{}), done: make(chan struct{}),
	}
	_, m.incarnation, _ = ParsePeer(cfg.Self)
	m.events.some.L = &m.events.mu
	m.cluster.Store(&cfg.ClusterID)
	m.groups.Store(&map[uint32]*Transport{})
	if cfg.SnapshotBytesPerSecond > 0 {
		m.limiter = rate.NewLimiter(rate.Limit(cfg.SnapshotBytesPerSecond), snapshotChunk)
	}
	m.spawn(m.events.run)
	m.spawn(m.pulse)
	m.spawn(m.accept)
	return m, nil
}

// Addr is where the mux listens.
func (m *Mux) Addr() net.Addr { return m.listener.Addr() }

// Self is our peer id.
func (m *Mux) Self() string { return m.cfg.Self }

// SetClusterID tells the mux which cluster the node has joined. Connections with
// nodes that named another one end, as future handshakes with them will.
func (m *Mux) SetClusterID(id string) error {
	if len(id) > clusterIDBytesMax {
		return fmt.Errorf("set cluster id: %d bytes, at most %d", len(id), clusterIDBytesMax)
	}
	m.cluster.Store(&id)
	for _, c := range m.connections() {
		if clustersDiffer(c.cluster, id) {
			c.fail(&RefusedError{Peer: c.peer, Reason: fmt.Sprintf("wrong cluster: peer belongs to %s, this node to %s", c.cluster, id)})
		}
	}
	return nil
}

// SetEvicted names the peers that must not be heard any more; the map is not
// changed afterwards. Their connections end, and future ones are refused with
// that reason.
func (m *Mux) SetEvicted(peers map[string]bool) {
	m.evicted.Store(&peers)
	for _, c := range m.connections() {
		if peers[c.peer] {
			c.fail(&RefusedError{Peer: c.peer, Reason: "the peer was evicted from the cluster"})
		}
	}
}

func (m *Mux) isEvicted(peer string) bool {
	e := m.evicted.Load()
	return e != nil && (*e)[peer]
}

func (m *Mux) clusterID() string { return *m.cluster.Load() }

// RoundTrip is the smoothed time of a ping to peer; false without a connection
// or before the first answer.
func (m *Mux) RoundTrip(peer string) (time.Duration, bool) {
	c := m.connected(peer)
	if c == nil {
		return 0, false
	}
	rtt := c.rtt.Load()
	return time.Duration(rtt), rtt > 0
}

// Connected reports whether requests to peer would be sent at once.
func (m *Mux) Connected(peer string) bool { return m.connected(peer) != nil }

// Connect begins to connect to peer in the background, so that its death will
// be noticed without anybody calling it.
func (m *Mux) Connect(peer string) {
	_ = m.reach(peer, func(*conn, error) {})
}

func (m *Mux) connected(id string) *conn {
	m.peersMu.RLock()
	p := m.peers[id]
	m.peersMu.RUnlock()
	if p == nil {
		return nil
	}
	return p.conn.Load()
}

// reach hands fn the connection to the peer id, see peer.with; an error means
// that fn does not run.
func (m *Mux) reach(id string, fn func(*conn, error)) error {
	for {
		p, err := m.peer(id)
		if err != nil {
			return err
		}
		if p.with(fn) {
			return nil
		}
		select {
		case <-m.done: // peers stay listed after Close, and none comes back
			return fmt.Errorf("reach %s: %w", id, ErrClosed)
		default: // it was forgotten for being idle: the next one is new
		}
	}
}

// peer returns the dialing side towards id and starts one if there is none.
func (m *Mux) peer(id string) (*peer, error) {
	m.peersMu.RLock()
	p := m.peers[id]
	m.peersMu.RUnlock()
	if p != nil {
		return p, nil
	}
	if _, _, err := ParsePeer(id); err != nil {
		return nil, fmt.Errorf("reach peer: %w: %w", ErrNotConnected, err)
	}
	m.peersMu.Lock()
	defer m.peersMu.Unlock()
	if p := m.peers[id]; p != nil {
		return p, nil
	}
	if len(m.peers) >= peersMax {
		return nil, fmt.Errorf("reach %s: %d peers: %w", id, len(m.peers), ErrBusy)
	}
	p = &peer{m: m, id: id, ended: m.now() - int64(m.cfg.RedialMin), wake: make(chan struct{}, 1), up: make(chan struct{})}
	p.used.Store(m.now())
	if !m.spawn(p.run) {
		return nil, fmt.Errorf("reach %s: %w", id, ErrClosed)
	}
	m.peers[id] = p
	return p, nil
}

// forget removes a peer that nobody wants; false when somebody does after all.
func (m *Mux) forget(p *peer) bool {
	m.peersMu.Lock()
	defer m.peersMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase != phaseIdle {
		return false
	}
	p.phase = phaseGone
	delete(m.peers, p.id)
	m.metrics.forget(p.id)
	return true
}

func (m *Mux) resolve(id string) (string, error) {
	if id == m.cfg.Self {
		return m.listener.Addr().String(), nil
	}
	if m.isEvicted(id) {
		return "", fmt.Errorf("resolve %s: it was evicted from the cluster", id)
	}
	addr, err := m.resolver.Resolve(id)
	if err != nil {
		return "", fmt.Errorf("resolve %s: %w", id, err)
	}
	return addr, nil
}

// now is the time since New, in nanoseconds, never 0 and never back.
func (m *Mux) now() int64 { return int64(time.Since(m.started)) + 1 }

// spawn runs fn on a goroutine that Close waits for; false after Close.
func (m *Mux) spawn(fn func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return false
	}
	m.wg.Go(fn)
	return true
}

func (m *Mux) closed() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// adopt makes Close close nc; release ends that. false after Close.
func (m *Mux) adopt(nc net.Conn) (release func(), ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		_ = nc.Close()
		return nil, false
	}
	m.raw[nc] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.raw, nc)
	}, true
}

// register adds a connection; false after Close.
func (m *Mux) register(c *conn) bool {
	m.mu.Lock()
	if m.ended {
		m.mu.Unlock()
		return false
	}
	m.conns[c] = struct{}{}
	var old *conn
	if !c.dialed {
		old, m.inbound[c.peer] = m.inbound[c.peer], c
	}
	m.mu.Unlock()
	m.metrics.connections.Inc()
	if m.isEvicted(c.peer) { // meanwhile: SetEvicted has not seen this connection
		c.fail(&RefusedError{Peer: c.peer, Reason: "the peer was evicted from the cluster"})
	}
	if old != nil {
		old.fail(errors.New("peer has made a new connection"))
	}
	return true
}

func (m *Mux) unregister(c *conn) {
	m.metrics.connections.Dec()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.conns, c)
	if m.inbound[c.peer] == c {
		delete(m.inbound, c.peer)
	}
}

func (m *Mux) connections() []*conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*conn, 0, len(m.conns))
	for c := range m.conns {
		all = append(all, c)
	}
	return all
}

// Close ends every connection, fails what is pending with ErrConnectionLost, and
// waits for all goroutines, so for running handlers too. It must not be called
// from a callback. The transports of groups stay registered but reach nobody.
func (m *Mux) Close() error {
	m.mu.Lock()
	if m.ended {
		m.mu.Unlock()
		m.wg.Wait()
		return nil
	}
	m.ended = true
	close(m.done)
	raw := make([]net.Conn, 0, len(m.raw))
	for nc := range m.raw {
		raw = append(raw, nc)
	}
	m.mu.Unlock()
	err := m.listener.Close()
	for _, nc := range raw {
		_ = nc.Close()
	}
	for _, c := range m.connections() {
		c.fail(ErrClosed)
	}
	m.peersMu.RLock()
	for _, p := range m.peers {
		p.stop()
	}
	m.peersMu.RUnlock()
	m.events.close()
	m.wg.Wait()
	if err != nil {
		return fmt.Errorf("close listener for peers: %w", err)
	}
	return nil
}
