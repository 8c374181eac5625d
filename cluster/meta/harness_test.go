package meta_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testLogger() *slog.Logger {
	if os.Getenv("SLUICE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// wire connects the nodes of one test: raft's own in-memory transport, and
// requests handed from one Meta to the other.
type wire struct {
	mu    sync.Mutex
	metas map[string]*meta.Meta
	raft  map[string]*raft.InmemTransport
}

func (w *wire) attach(peer string, t *raft.InmemTransport) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.raft[peer] = t
	for other, o := range w.raft {
		t.Connect(raft.ServerAddress(other), o) // itself too: a poke is a message to oneself
		o.Connect(raft.ServerAddress(peer), t)
	}
}

func (w *wire) detach(peer string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.metas, peer)
	delete(w.raft, peer)
	for _, o := range w.raft {
		o.Disconnect(raft.ServerAddress(peer))
	}
}

func (w *wire) peers() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ps []string
	for p := range w.metas {
		ps = append(ps, p)
	}
	return ps
}

func (w *wire) runs(peer string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.metas[peer] != nil
}

// port is one node's end of the wire.
type port struct {
	w    *wire
	self string
	t    *raft.InmemTransport
}

func (p port) Forward(ctx context.Context, peer string, body []byte) ([]byte, error) {
	p.w.mu.Lock()
	m := p.w.metas[peer]
	p.w.mu.Unlock()
	if m == nil {
		return nil, errors.New("connection refused")
	}
	type answer struct {
		b   []byte
		err error
	}
	ch := make(chan answer, 1)
	m.HandleForward(p.self, body, func(b []byte, err error) { ch <- answer{b, err} })
	select {
	case a := <-ch:
		return a.b, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p port) Poke(uint32) error {
	id := raft.ServerID(p.self)
	return p.t.TimeoutNow(id, raft.ServerAddress(id), &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}, &raft.TimeoutNowResponse{})
}

// node is one process with its disk.
type node struct {
	t     *testing.T
	w     *wire
	spec  meta.Node
	log   *raft.InmemStore
	snaps *raft.InmemSnapshotStore
	tune  func(*meta.Config)
	alive func(peer string) bool
	slow  atomic.Bool // its disk
	*meta.Meta
}

func newWire() *wire {
	return &wire{metas: map[string]*meta.Meta{}, raft: map[string]*raft.InmemTransport{}}
}

func spec(i int, incarnation int) meta.Node {
	return meta.Node{
		ID:          telemetry.NodeID(fmt.Sprintf("n%d", i)),
		Incarnation: fmt.Sprintf("%08x", incarnation),
		Zone:        telemetry.Zone(rune('a' + i%3)),
		Mux:         fmt.Sprintf("127.0.0.1:%d", 7000+i),
		MQTT:        fmt.Sprintf("127.0.0.1:%d", 1883+i),
		HTTP:        fmt.Sprintf("127.0.0.1:%d", 8080+i),
	}
}

func (w *wire) node(t *testing.T, s meta.Node) *node {
	n := &node{t: t, w: w, spec: s, log: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore()}
	t.Cleanup(n.stop)
	return n
}

func (w *wire) nodes(t *testing.T, count int) []*node {
	ns := make([]*node, count)
	for i := range ns {
		ns[i] = w.node(t, spec(i, 0x10+i))
		ns[i].start()
	}
	return ns
}

func (n *node) start() {
	n.t.Helper()
	peer := n.spec.Peer()
	_, trans := raft.NewInmemTransportWithTimeout(raft.ServerAddress(peer), 200*time.Millisecond)
	cfg := meta.DefaultConfig(peer)
	cfg.ElectionTimeout = time.Second
	cfg.CommitTimeout = 20 * time.Millisecond
	cfg.ReconcileInterval = 100 * time.Millisecond
	if n.tune != nil {
		n.tune(&cfg)
	}
	p := port{n.w, peer, trans}
	m, err := meta.Open(testLogger().With("node", string(n.spec.ID)), nil, cfg, meta.Deps{
		Stores: n.log, Snapshots: n.snaps, Transport: trans, Forwarder: p, Poker: p, Contacts: n.w.peers, Alive: n.alive, SlowDisk: n.slow.Load,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.Meta = m
	n.w.attach(peer, trans)
	n.w.mu.Lock()
	n.w.metas[peer] = m
	n.w.mu.Unlock()
}

// stop is a crash as far as the others can see: nothing is handed over.
func (n *node) stop() {
	if n.Meta == nil {
		return
	}
	n.w.detach(n.spec.Peer())
	if err := n.Close(); err != nil {
		n.t.Error(err)
	}
	n.Meta = nil
}

func specs(ns []*node) []meta.Node {
	var all []meta.Node
	for _, n := range ns {
		all = append(all, n.spec)
	}
	return all
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// initialised makes a cluster of all nodes and waits until every one is ready
// and voters vote.
func initialised(t *testing.T, ns []*node, voters int) {
	t.Helper()
	if err := ns[0].Init(within(t, 10*time.Second), meta.InitSpec{ClusterID: "C1", Shards: 24, Replicas: 3, Nodes: specs(ns)}); err != nil {
		t.Fatal(err)
	}
	for _, n := range ns {
		if err := n.WaitReady(within(t, 10*time.Second)); err != nil {
			t.Fatalf("%s: %v", n.spec.ID, err)
		}
	}
	for _, n := range ns { // on every node: a change of voters under way is no quorum yet
		eventually(t, fmt.Sprintf("%d voters of %d members", voters, len(ns)), func() bool {
			return len(n.Voters()) == voters && len(n.Members()) == len(ns)
		})
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// leaderOf waits until all running nodes agree on a running leader.
func leaderOf(t *testing.T, ns []*node) *node {
	t.Helper()
	var leader *node
	eventually(t, "one leader", func() bool {
		leader = nil
		for _, n := range ns {
			if n.Meta != nil && n.IsLeader() {
				leader = n
			}
		}
		if leader == nil {
			return false
		}
		for _, n := range ns {
			if n.Meta != nil && n.Leader() != leader.spec.Peer() {
				return false
			}
		}
		return true
	})
	return leader
}
