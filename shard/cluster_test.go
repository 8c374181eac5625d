package shard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/cluster/mux"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/store/postgres"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
	"github.com/sluice-iot/sluice/wal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	frameTestBlock   = mux.KindApplication + 0
	frameTestAsk     = mux.KindApplication + 1
	frameTestSession = mux.KindApplication + 2
)

// testCluster is nodes with real logs, stores and sockets in one process.
type testCluster struct {
	t      *testing.T
	shards uint32
	nodes  []*testNode
	// url of a node's database; nil is the embedded store.
	database func(n *testNode) string
	flush    FlushConfig
	abstain  time.Duration
	seed     []string // peers that start the groups

	mu      sync.Mutex
	addrs   map[string]string
	want    []string // peers that should hold the shards; nil: all nodes
	holds   []string // peers that hold them although they should not any more
	evicted map[string]bool
	settled int
}

type testNode struct {
	c          *testCluster
	peer       string
	dir        string
	log        *wal.Log
	files      *parquet.Store
	db         *postgres.DB
	mux        *mux.Mux
	host       *Host
	router     *Router
	cancel     context.CancelFunc
	done       sync.WaitGroup
	away       atomic.Bool           // its store refuses what is written
	gate       *gate                 // shut while the node stands still
	links      map[string]*link      // to the other nodes; nil: straight to them
	using      sync.RWMutex          // who is not to be killed meanwhile
	asked      atomic.Pointer[Asker] // answers in place of the peers
	slowDisk   atomic.Bool           // of its log
	rottenRows atomic.Bool           // of every shard
}

func newTestCluster(t *testing.T, nodes int, shards uint32) *testCluster {
	c := makeTestCluster(t, nodes, shards)
	c.start()
	return c
}

// newPausableCluster is a cluster whose nodes stand still while their gate is
// shut.
func newPausableCluster(t *testing.T, nodes int, shards uint32) *testCluster {
	c := makeTestCluster(t, nodes, shards)
	for _, from := range c.nodes {
		from.links = map[string]*link{}
		for _, to := range c.nodes {
			if from == to {
				continue
			}
			l, err := newLink(func() (string, error) { return c.Resolve(to.peer) }, from.gate, to.gate)
			if err != nil {
				t.Fatal(err)
			}
			from.links[to.peer] = l
			t.Cleanup(func() {
				if err := l.close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	c.start()
	return c
}

func makeTestCluster(t *testing.T, nodes int, shards uint32) *testCluster {
	c := &testCluster{t: t, shards: shards, addrs: map[string]string{}, evicted: map[string]bool{}, flush: FlushConfig{Interval: 300 * time.Millisecond, RowsMax: 2000}}
	for i := range nodes {
		n := &testNode{c: c, peer: fmt.Sprintf("n%d.0000000%d", i, i+1), dir: t.TempDir(), gate: newGate()}
		c.nodes = append(c.nodes, n)
	}
	return c
}

func (c *testCluster) start() {
	c.seed = c.peers()
	for _, n := range c.nodes {
		n.start()
	}
	c.t.Cleanup(func() {
		for _, n := range c.nodes {
			n.gate.release()
		}
		for _, n := range c.nodes {
			n.kill()
		}
	})
}

// Resolve implements mux.Resolver with the way of one node to the others.
func (n *testNode) Resolve(peer string) (string, error) {
	if l, ok := n.links[peer]; ok {
		return l.listener.Addr().String(), nil
	}
	return n.c.Resolve(peer)
}

func (c *testCluster) peers() (out []string) {
	for _, n := range c.nodes {
		out = append(out, n.peer)
	}
	return out
}

// Resolve implements mux.Resolver.
func (c *testCluster) Resolve(peer string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.addrs[peer]; ok {
		return a, nil
	}
	return "", fmt.Errorf("nobody knows %s", peer)
}

func (c *testCluster) Shards() uint32                      { return c.shards }
func (c *testCluster) Replicas(telemetry.ShardID) []string { return c.peers() }
func (c *testCluster) Peers() []string                     { return c.peers() }

// table is what a node is told.
func (c *testCluster) table(n *testNode) (out []Replica) {
	c.mu.Lock()
	defer c.mu.Unlock()
	want := c.want
	if want == nil {
		want = c.peers()
	}
	for s := range c.shards {
		r := Replica{Shard: telemetry.ShardID(s), Peers: want, Preferred: want[int(s)%len(want)], Moving: len(c.holds) > 0}
		r.Here = slices.Contains(want, n.peer) || slices.Contains(c.holds, n.peer)
		r.Left = !r.Here
		if slices.Contains(c.seed, n.peer) {
			r.Seed = c.seed
		}
		out = append(out, r)
	}
	return out
}

// place changes the table on every node that runs.
func (c *testCluster) place(want, holds []string) {
	c.t.Helper()
	c.mu.Lock()
	c.want, c.holds = want, holds
	c.mu.Unlock()
	for _, n := range c.nodes {
		if n.mux == nil {
			continue
		}
		if err := n.host.Reconcile(c.table(n)); err != nil {
			c.t.Fatal(err)
		}
	}
}

// wipe gives a dead node an empty directory, and with it another incarnation;
// the old one is evicted when the cluster hears of it.
func (n *testNode) wipe(incarnation string) (old string) {
	old = n.peer
	n.peer = old[:len(old)-len(incarnation)] + incarnation
	n.dir = n.c.t.TempDir()
	return old
}

func (c *testCluster) evict(peer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.evicted[peer] = true
}

// Group, Propose, Ask: the mux as shard wants it.
func (n *testNode) Group(group, incarnation uint32) raft.Transport {
	return n.mux.GroupAs(group, incarnation)
}
func (n *testNode) Poke(group uint32) error                        { return n.mux.Poke(group) }
func (n *testNode) OnElection(group uint32, abstains func() error) { n.mux.OnElection(group, abstains) }
func (n *testNode) Connected(peer string) bool                     { return n.mux.Connected(peer) }

func (n *testNode) OnSnapshot(group uint32, offered func(*raft.InstallSnapshotRequest) bool, installed func(*raft.InstallSnapshotRequest)) {
	n.mux.Group(group).SetGate(mux.Gate{Known: offered, Installed: installed})
}

func (n *testNode) Propose(peer string, group uint32, entry []byte, done func([]byte, error)) {
	n.mux.Go(peer, frameTestBlock, group, entry, done)
}

func (n *testNode) Submit(peer string, group uint32, batch []byte, done func([]byte, error)) {
	n.mux.Go(peer, frameTestSession, group, batch, done)
}

func (n *testNode) Ask(ctx context.Context, peer string, group uint32, question []byte) ([]byte, error) {
	if ask := n.asked.Load(); ask != nil {
		return (*ask)(ctx, peer, group, question)
	}
	return n.mux.Call(ctx, peer, frameTestAsk, group, question)
}

func (n *testNode) start() {
	t := n.c.t
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatalf("start %s: %v", n.peer, err)
		}
	}
	var err error
	n.log, err = wal.Open(quiet(), nil, wal.Config{Dir: filepath.Join(n.dir, "wal"), Node: n.peer, SegmentBytes: 1 << 20})
	must(err)
	stores := Stores{}
	if n.c.database != nil {
		n.db, err = postgres.Open(quiet(), nil, postgres.Config{URL: n.c.database(n), Cluster: func() string { return "c1" }})
		must(err)
		stores.Shared = n.db
	} else {
		n.files, err = parquet.Open(quiet(), nil, parquet.Config{Dir: filepath.Join(n.dir, "store")})
		must(err)
		stores.Local = awayStore{testFiles{n.files}, &n.away}
	}
	n.mux, err = mux.New(quiet(), nil, mux.Config{Self: n.peer, Listen: "127.0.0.1:0", Secret: []byte("a secret of the tests, long enough")}, n)
	must(err)
	n.c.mu.Lock()
	n.c.addrs[n.peer] = n.mux.Addr().String()
	n.c.mu.Unlock()
	n.host, err = OpenHost(quiet(), nil, HostConfig{
		Self: n.peer, Dir: filepath.Join(n.dir, "shards"), FlushesMax: 2,
		Flush:  n.c.flush,
		Limits: Limits{SnapshotLogBytes: 32 << 10, TrailingLogs: 8, Abstain: n.c.abstain},
	}, Deps{
		Log: func(group uint32) Log { return gatedLog{n.log.Group(group), n.gate} }, Transport: n, Ask: n.Ask,
		Stores: stores, Detector: testDetector(), Emit: func([]Event) {},
		SlowDisk:   n.slowDisk.Load,
		RottenRows: func(telemetry.ShardID) bool { return n.rottenRows.Load() },
		Evicted: func(peer string) bool {
			n.c.mu.Lock()
			defer n.c.mu.Unlock()
			return n.c.evicted[peer]
		},
		Complete: func(id telemetry.ShardID, upTo uint64) bool {
			return n.files == nil || len(n.files.Missing(id, upTo)) == 0
		},
		Drop: func(id telemetry.ShardID) error {
			if n.files == nil {
				return nil
			}
			return n.files.Drop(id)
		},
		Settled: func(context.Context, Replica) {
			n.c.mu.Lock()
			defer n.c.mu.Unlock()
			n.c.settled++
		},
	})
	must(err)
	n.router = NewRouter(n.host, n, n.c)
	var ctx context.Context
	ctx, n.cancel = context.WithCancel(context.Background())
	n.serve(ctx)
	for _, p := range n.c.peers() {
		if p != n.peer {
			n.mux.Connect(p)
		}
	}
	must(n.host.Reconcile(n.c.table(n)))
	n.done.Go(func() { n.host.Run(ctx, n.router) })
	if n.files != nil {
		n.done.Go(func() { n.fetch(ctx) })
	}
}

func (n *testNode) serve(ctx context.Context) {
	n.mux.Handle(frameTestBlock, func(_ string, group uint32, b []byte, reply func([]byte, error)) {
		n.host.Accept(group, b, func(b []byte) { reply(b, nil) })
	})
	n.mux.Handle(frameTestSession, func(_ string, group uint32, b []byte, reply func([]byte, error)) {
		n.host.AcceptSession(group, b, func(b []byte) { reply(b, nil) })
	})
	n.mux.Handle(frameTestAsk, func(_ string, group uint32, q []byte, reply func([]byte, error)) {
		n.done.Go(func() { reply(n.host.Answer(ctx, group, q), nil) })
	})
	n.mux.Subscribe(func(e mux.Event) {
		if e.Kind == mux.Down && ctx.Err() == nil {
			n.host.PeerDown(ctx, e.Peer)
		}
	})
}

// fetch brings the segments that this node lacks from the other nodes' stores.
func (n *testNode) fetch(ctx context.Context) {
	every(ctx, 200*time.Millisecond, func(time.Time) {
		for id, upTo := range n.host.Stored() {
			for _, missing := range n.files.Missing(id, upTo) {
				for _, other := range n.c.nodes {
					if other != n {
						n.copySegments(ctx, id, other.files, missing)
					}
				}
			}
		}
	})
}

func (n *testNode) copySegments(ctx context.Context, id telemetry.ShardID, from *parquet.Store, r parquet.Range) {
	_ = from.Export(ctx, id, r, func(seg parquet.Segment, body io.Reader) error { // fails while that node is down
		err := n.files.Install(ctx, seg, body)
		if err == nil {
			n.host.Fetched(1)
		}
		return err
	})
}

// kill stops the node without handing anything over: its leaderships end when
// its peers notice.
func (n *testNode) kill() {
	if n.mux == nil {
		return
	}
	n.cancel()
	err := n.host.Close()
	err = errors.Join(err, n.mux.Close())
	n.done.Wait()
	if n.db != nil {
		err = errors.Join(err, n.db.Close())
	} else {
		err = errors.Join(err, n.files.Close())
	}
	if err := errors.Join(err, n.log.Close()); err != nil {
		n.c.t.Errorf("stop %s: %v", n.peer, err)
	}
	n.mux = nil
}

type testFiles struct{ *parquet.Store }

func (s testFiles) Write(ctx context.Context, b *telemetry.Batch) ([16]byte, error) {
	seg, err := s.Store.Write(ctx, b)
	return seg.Digest, err
}

func (s testFiles) Digest(id telemetry.ShardID, from, to uint64) ([16]byte, bool) {
	seg, ok, err := s.Find(context.Background(), id, from, to)
	return seg.Digest, ok && err == nil
}

// publisher is a client with a ledger: it knows what was acknowledged.
type publisher struct {
	c        *testCluster
	id       telemetry.ShardID
	device   string
	seq      uint64
	acked    int
	received int64 // the latest time of receipt
}

func (c *testCluster) publisher(id telemetry.ShardID) *publisher {
	p := &publisher{c: c, id: id}
	for i := 0; ; i++ { // a device that lives in the shard
		if p.device = fmt.Sprintf("d%d", i); telemetry.ShardOf(p.device, c.shards) == id {
			return p
		}
	}
}

// publish sends blocks of ten messages, each until it is acknowledged.
func (p *publisher) publish(blocks int) {
	p.c.t.Helper()
	for range blocks {
		p.seq++
		var ms []telemetry.Message
		for range 10 {
			ms = append(ms, message(p.device, epoch2026+int64(p.acked+len(ms))*second, float64(len(ms)), 40, 1013.25))
		}
		data := encode(p.c.t, block.Header{Origin: "n7.0000000f", Epoch: 1, Seq: p.seq, Shard: p.id}, ms...)
		p.send(data)
		p.acked += len(ms)
		p.received = max(p.received, ms[9].Received)
	}
}

func (p *publisher) send(data []byte) {
	p.c.t.Helper()
	type answer struct {
		res Result
		err error
	}
	deadline := time.Now().Add(time.Minute)
	var last answer
	for i := 0; time.Now().Before(deadline); i++ {
		n := p.c.nodes[i%len(p.c.nodes)]
		if !n.using.TryRLock() {
			time.Sleep(time.Millisecond)
			continue
		}
		if n.mux == nil {
			n.using.RUnlock()
			continue
		}
		ch := make(chan answer, 1)
		n.router.Propose(p.id, data, func(res Result, err error) { ch <- answer{res, err} })
		last = <-ch
		n.using.RUnlock()
		if last.err == nil && last.res.Status == StatusApplied && last.res.Outcomes == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.c.t.Fatalf("block %d of shard %d was not acknowledged in time: %+v", p.seq, p.id, last)
}

// check reads everything through one node and compares it with the ledger.
func (p *publisher) check(n *testNode) {
	p.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	q := queryAll(p.device)
	q.Sensor = "temperature"
	var points []store.Point
	var err error
	for ctx.Err() == nil {
		if points, err = n.router.Readings(ctx, q); err == nil {
			break
		}
	}
	if err != nil {
		p.c.t.Fatalf("read through %s: %v", n.peer, err)
	}
	if len(points) != p.acked {
		p.c.t.Fatalf("%d readings of %s through %s, want the %d acknowledged", len(points), p.device, n.peer, p.acked)
	}
	for i, pt := range points {
		if pt.Time != epoch2026+int64(i)*second || pt.Value != float64(i%10) {
			p.c.t.Fatalf("reading %d is %+v", i, pt)
		}
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

func (c *testCluster) leader(id telemetry.ShardID) *testNode {
	for _, n := range c.nodes {
		if n.mux == nil {
			continue
		}
		if s, ok := n.host.Shard(id); ok && s.Verify() == nil {
			return n
		}
	}
	return nil
}

// sameDigests waits until all replicas of a shard have applied the same and
// compares their states.
func (c *testCluster) sameDigests(id telemetry.ShardID) {
	c.t.Helper()
	var last []ReplicaStatus
	eventually(c.t, "all replicas at one index", func() bool {
		last = last[:0]
		for _, n := range c.nodes {
			s, ok := n.host.Shard(id)
			if !ok {
				return false
			}
			last = append(last, s.Status(true))
		}
		for _, st := range last {
			if st.Applied != last[0].Applied {
				return false
			}
		}
		return true
	})
	for i, st := range last {
		if st.Digest != last[0].Digest {
			c.t.Fatalf("shard %d at entry %d: %s has digest %x, %s has %x", id, st.Applied, c.nodes[i].peer, st.Digest, c.nodes[0].peer, last[0].Digest)
		}
	}
}
