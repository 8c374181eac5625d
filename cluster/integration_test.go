package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/cluster/detector"
	"github.com/sluice-iot/sluice/cluster/gossip"
	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/cluster/mux"
	"github.com/sluice-iot/sluice/cluster/placement"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/wal"
)

const kindMeta = mux.KindUrgent

var secret = []byte("a secret of the tests, long enough")

// machine is a node on loopback: its disk, its fixed gossip address, and, while
// it runs, everything that makes it a member.
type machine struct {
	t      *testing.T
	id     telemetry.NodeID
	zone   telemetry.Zone
	dir    string
	gossip string
	seeds  []string

	*process
}

type process struct {
	identity *cluster.Identity
	log      *wal.Log
	cable    *cable
	mux      *mux.Mux
	members  *gossip.Gossip
	detector *detector.Detector
	meta     *meta.Meta
	downs    atomic.Int32
}

// address resolves through gossip, which starts after the mux.
type address struct{ g atomic.Pointer[gossip.Gossip] }

func (a *address) Resolve(peer string) (string, error) {
	if g := a.g.Load(); g != nil {
		return g.Resolve(peer)
	}
	return "", errors.New("gossip has not started")
}

type forwarder struct{ m *mux.Mux }

func (f forwarder) Forward(ctx context.Context, peer string, body []byte) ([]byte, error) {
	return f.m.Call(ctx, peer, kindMeta, meta.Group, body)
}

func integrationLogger() *slog.Logger {
	if os.Getenv("SLUICE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	return slog.New(slog.DiscardHandler)
}

func machines(t *testing.T, n int) []*machine {
	t.Helper()
	var ms []*machine
	var seeds []string
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{t: t, id: telemetry.NodeID(fmt.Sprintf("n%d", i)), zone: telemetry.Zone(rune('a' + i%3)), dir: filepath.Join(t.TempDir(), "data"), gossip: l.Addr().String()}
		_ = l.Close()
		seeds = append(seeds, m.gossip)
		ms = append(ms, m)
		t.Cleanup(m.kill)
	}
	for _, m := range ms {
		m.seeds = seeds
		m.start()
	}
	return ms
}

func (m *machine) start() {
	m.t.Helper()
	p := &process{}
	m.process = p
	logger := integrationLogger().With("node", string(m.id))
	must := func(err error) {
		m.t.Helper()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	var err error
	p.identity, err = cluster.LoadOrCreateIdentity(m.dir, m.id, m.zone)
	must(err)
	peer := p.identity.Peer()
	p.log, err = wal.Open(logger, nil, wal.Config{Dir: filepath.Join(m.dir, "wal"), SegmentBytes: 1 << 20})
	must(err)
	resolver := &address{}
	p.cable, err = newCable()
	must(err)
	p.mux, err = mux.New(logger, nil, mux.Config{Self: peer, Listener: p.cable, Dial: p.cable.dial, Secret: secret, ClusterID: p.identity.ClusterID()}, resolver)
	must(err)
	self := gossip.Member{Peer: peer, Zone: m.zone, Mux: p.mux.Addr().String(), ClusterID: p.identity.ClusterID()}
	p.members, err = gossip.New(logger, nil, gossip.Config{Bind: m.gossip, Seeds: m.seeds, Secret: secret, Self: self})
	must(err)
	resolver.g.Store(p.members)
	p.detector, err = detector.New(logger, nil, detector.DefaultConfig(), p.members)
	must(err)
	p.watchPeers()
	snaps, err := raft.NewFileSnapshotStoreWithLogger(filepath.Join(m.dir, "meta"), 1, hclog.NewNullLogger())
	must(err)
	cfg := meta.DefaultConfig(peer)
	cfg.ClusterID = p.identity.ClusterID()
	p.meta, err = meta.Open(logger, nil, cfg, meta.Deps{
		Stores: p.log.Group(meta.Group), Snapshots: snaps, Transport: p.mux.Group(meta.Group),
		Forwarder: forwarder{p.mux}, Poker: p.mux, Contacts: p.members.Peers,
	})
	must(err)
	p.mux.Handle(kindMeta, func(from string, _ uint32, body []byte, reply func([]byte, error)) {
		p.meta.HandleForward(from, body, reply)
	})
	p.detector.Subscribe(func(e detector.Event) {
		if e.Down {
			p.downs.Add(1)
			p.meta.LeaderDown(e.Peer)
		}
	})
}

func (p *process) watchPeers() {
	p.mux.Subscribe(func(e mux.Event) {
		switch e.Kind {
		case mux.Up:
			p.detector.Observe(e.Peer, detector.Connected)
		case mux.Down:
			p.detector.Observe(e.Peer, detector.Reset)
		case mux.Silent:
			p.detector.Observe(e.Peer, detector.Silent)
		}
	})
	p.members.Subscribe(func(e gossip.Event) {
		if e.Member.State == gossip.Alive {
			p.mux.Connect(e.Member.Peer)
			p.detector.Observe(e.Member.Peer, detector.Heard)
			return
		}
		p.detector.Observe(e.Member.Peer, detector.Suspected)
	})
}

// kill ends the process without a word to anybody; the disk stays.
func (m *machine) kill() {
	p := m.process
	if p == nil {
		return
	}
	m.process = nil
	p.cable.cut()
	for _, c := range []interface{ Close() error }{p.members, p.meta, p.mux, p.detector, p.log, p.identity} {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			m.t.Errorf("close %T of %s: %v", c, m.id, err)
		}
	}
}

func (m *machine) spec() meta.Node {
	return meta.Node{ID: m.id, Incarnation: m.identity.Incarnation(), Zone: m.zone, Mux: m.mux.Addr().String()}
}

func (m *machine) join(ctx context.Context) error {
	if err := m.meta.Join(ctx, m.spec(), func(error) {}); err != nil {
		return err
	}
	return m.identity.AdoptCluster(m.meta.State().ClusterID)
}

func patience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// found waits until everybody is connected with everybody.
func found(t *testing.T, ms []*machine) {
	t.Helper()
	for _, m := range ms {
		for _, o := range ms {
			until(t, fmt.Sprintf("%s connects to %s", m.id, o.id), func() bool { return m == o || m.mux.Connected(o.identity.Peer()) })
		}
	}
}

func made(t *testing.T, ms []*machine) {
	t.Helper()
	found(t, ms)
	var specs []meta.Node
	for _, m := range ms {
		specs = append(specs, m.spec())
	}
	if err := ms[0].meta.Init(patience(t), meta.InitSpec{Shards: 24, Replicas: 3, Nodes: specs}); err != nil {
		t.Fatal(err)
	}
	joinAll(t, ms)
	for _, m := range ms { // on every node: a change of voters under way is no quorum yet
		until(t, "all vote", func() bool { return len(m.meta.Voters()) == len(ms) })
	}
	for _, m := range ms {
		if err := m.meta.Sync(patience(t)); err != nil {
			t.Fatal(err)
		}
	}
}

func joinAll(t *testing.T, ms []*machine) {
	t.Helper()
	var wg sync.WaitGroup
	for _, m := range ms {
		wg.Go(func() {
			if err := m.join(patience(t)); err != nil {
				t.Errorf("%s: %v", m.id, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func TestClusterOverRealSocketsAndDisksSurvivesALostLeader(t *testing.T) {
	ms := machines(t, 3)
	made(t, ms)
	table := ms[0].meta.State().Table
	if !placement.ZoneSafe(table, ms[2].meta.State().PlacementNodes(true)) {
		t.Error("table is not zone safe")
	}
	leader := slices.IndexFunc(ms, func(m *machine) bool { return m.meta.IsLeader() })
	victim := ms[leader]
	alive := slices.Delete(slices.Clone(ms), leader, leader+1)
	was := victim.mux.Addr().String()
	start := time.Now()
	var killed sync.WaitGroup
	killed.Go(victim.kill)
	if err := alive[1].meta.Propose(patience(t), meta.SetFeature{Level: 1}); err != nil {
		t.Fatal(err)
	}
	t.Logf("committed %v after the leader died", time.Since(start).Round(time.Millisecond))
	killed.Wait()
	victim.start()
	if now := victim.mux.Addr().String(); now == was {
		t.Logf("the restarted node has the same port by chance")
	}
	start = time.Now()
	if err := victim.join(patience(t)); err != nil {
		t.Fatal(err)
	}
	t.Logf("rejoined on another port after %v", time.Since(start).Round(time.Millisecond))
	if s := victim.meta.State(); s.Feature != 1 || !s.Table.Equal(table) || s.Nodes[victim.id].Mux != victim.mux.Addr().String() {
		t.Errorf("rejoined with level %d and address %s", s.Feature, s.Nodes[victim.id].Mux)
	}
}

func TestClusterRestartedAsAWholeHasALeaderSoon(t *testing.T) {
	ms := machines(t, 3)
	made(t, ms)
	id := ms[0].meta.State().ClusterID
	first, err := ms[1].meta.NextEpoch(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		m.kill()
	}
	for _, m := range ms {
		m.start()
	}
	start := time.Now()
	joinAll(t, ms)
	t.Logf("all joined %v after the last start", time.Since(start).Round(time.Millisecond))
	for _, m := range ms {
		if got := m.meta.State().ClusterID; got != id || m.identity.ClusterID() != id {
			t.Errorf("%s is of cluster %s, its directory of %s, want %s", m.id, got, m.identity.ClusterID(), id)
		}
	}
	if second, err := ms[1].meta.NextEpoch(patience(t)); err != nil || second <= first {
		t.Errorf("epoch %d after %d, %v", second, first, err)
	}
}

func TestNodeThatLostItsDiskTakesItsPlaceAgainAndLateNodesJoin(t *testing.T) {
	ms := machines(t, 4)
	made(t, ms[:3])
	if err := ms[3].join(patience(t)); err != nil { // was not part of init
		t.Fatal(err)
	}
	old := ms[2].identity.Peer()
	ms[2].kill()
	if err := os.RemoveAll(ms[2].dir); err != nil {
		t.Fatal(err)
	}
	ms[2].start()
	if err := ms[2].join(patience(t)); err != nil {
		t.Fatal(err)
	}
	until(t, "the evicted peer is no member", func() bool {
		return !slices.Contains(ms[3].meta.Members(), old) && slices.Contains(ms[3].meta.Members(), ms[2].identity.Peer())
	})
}
