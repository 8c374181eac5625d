package mux

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

var testSecret = []byte("a secret of the tests, long enough")

// directory is a Resolver whose addresses a test moves about.
type directory struct {
	mu    sync.Mutex
	addrs map[string]string
}

func newDirectory() *directory { return &directory{addrs: make(map[string]string)} }

func (d *directory) Resolve(peer string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a, ok := d.addrs[peer]; ok {
		return a, nil
	}
	return "", fmt.Errorf("nobody knows %s", peer)
}

func (d *directory) set(peer, addr string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addrs[peer] = addr
}

func peerID(i int) string { return fmt.Sprintf("n%d.0000000%d", i, i+1) }

// testLogger is silent unless MUX_TEST_LOG is set.
func testLogger() *slog.Logger {
	if os.Getenv("MUX_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return nil
}

// newTestMux starts a mux on loopback and puts it into d.
func newTestMux(t testing.TB, d *directory, self string, change ...func(*Config)) *Mux {
	t.Helper()
	cfg := Config{Self: self, Listen: "127.0.0.1:0", Secret: testSecret}
	for _, f := range change {
		f(&cfg)
	}
	m, err := New(testLogger(), nil, cfg, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	d.set(self, m.Addr().String())
	return m
}

func echo(_ string, _ uint32, body []byte, reply func([]byte, error)) { reply(body, nil) }

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for what other goroutines bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited 20 s in vain for: %s", what)
		}
	}
}

// recorder is a raft state machine that keeps what was applied.
type recorder struct {
	mu       sync.Mutex
	applied  []string
	restored int64 // bytes of the last snapshot
	size     int   // of its snapshots
}

func (r *recorder) Apply(l *raft.Log) any {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.applied = append(r.applied, string(l.Data))
	return len(r.applied)
}

func (r *recorder) Snapshot() (raft.FSMSnapshot, error) { return fixedSnapshot{r.size}, nil }

func (r *recorder) Restore(rc io.ReadCloser) error {
	n, err := io.Copy(io.Discard, rc)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.restored = n
	return err
}

func (r *recorder) has() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.applied)
}

type fixedSnapshot struct{ size int }

func (s fixedSnapshot) Persist(sink raft.SnapshotSink) error {
	buf := make([]byte, 64<<10)
	for left := s.size; left > 0; {
		n, err := sink.Write(buf[:min(left, len(buf))])
		if err != nil {
			return err
		}
		left -= n
	}
	return sink.Close()
}

func (s fixedSnapshot) Release() {}

// replica is one group on one node.
type replica struct {
	*raft.Raft
	fsm   *recorder
	store *raft.InmemStore
	snaps raft.SnapshotStore
}

func raftConfig(self string) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(self)
	c.HeartbeatTimeout, c.ElectionTimeout = time.Second, time.Second
	c.LeaderLeaseTimeout, c.CommitTimeout = 500*time.Millisecond, 50*time.Millisecond
	c.Logger = hclog.NewNullLogger()
	if os.Getenv("MUX_TEST_LOG") != "" {
		c.Logger = hclog.New(&hclog.LoggerOptions{Name: self, Level: hclog.Info})
	}
	return c
}

func startReplica(t testing.TB, m *Mux, group uint32, old *replica, change ...func(*raft.Config)) *replica {
	t.Helper()
	r := &replica{fsm: &recorder{}, store: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore()}
	if old != nil {
		r.store, r.snaps = old.store, old.snaps
	}
	conf := raftConfig(m.Self())
	for _, f := range change {
		f(conf)
	}
	var err error
	if r.Raft, err = raft.NewRaft(conf, r.fsm, r.store, r.store, r.snaps, m.Group(group)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Group(group).Interrupt()
		_ = r.Shutdown().Error()
	})
	return r
}

func servers(peers ...string) raft.Configuration {
	var c raft.Configuration
	for _, p := range peers {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(p), Address: raft.ServerAddress(p)})
	}
	return c
}

// raftCluster runs groups 1..groups on every mux.
type raftCluster struct {
	peers    []string
	muxes    []*Mux
	replicas []map[uint32]*replica // by node
	dir      *directory
}

func newRaftCluster(t testing.TB, nodes int, groups uint32, change ...func(*Config)) *raftCluster {
	t.Helper()
	rc := &raftCluster{dir: newDirectory()}
	for i := range nodes {
		rc.peers = append(rc.peers, peerID(i))
		rc.muxes = append(rc.muxes, newTestMux(t, rc.dir, peerID(i), change...))
		rc.replicas = append(rc.replicas, make(map[uint32]*replica))
	}
	for g := uint32(1); g <= groups; g++ {
		for i, m := range rc.muxes {
			rc.replicas[i][g] = startReplica(t, m, g, nil)
		}
		if err := rc.replicas[int(g)%nodes][g].BootstrapCluster(servers(rc.peers...)).Error(); err != nil {
			t.Fatal(err)
		}
		if err := rc.muxes[int(g)%nodes].Poke(g); err != nil {
			t.Fatal(err)
		}
	}
	return rc
}

// leader waits for the node that leads group g, down excepted.
func (rc *raftCluster) leader(t testing.TB, g uint32, down ...int) int {
	t.Helper()
	found := -1
	eventually(t, fmt.Sprintf("a leader of group %d", g), func() bool {
		for i, rs := range rc.replicas {
			skip := false
			for _, d := range down {
				skip = skip || d == i
			}
			if !skip && rs[g].State() == raft.Leader && rs[g].VerifyLeader().Error() == nil {
				found = i
				return true
			}
		}
		return false
	})
	return found
}

// apply puts an entry into every group and waits until all nodes have it; before
// that some may not even know who the voters are.
func (rc *raftCluster) apply(t testing.TB, entry string) {
	t.Helper()
	for g := range rc.replicas[0] {
		if err := rc.replicas[rc.leader(t, g)][g].Apply([]byte(entry), 5*time.Second).Error(); err != nil {
			t.Fatal(err)
		}
	}
	for g := range rc.replicas[0] {
		for i := range rc.replicas {
			eventually(t, "the entry on all nodes", func() bool { return rc.replicas[i][g].fsm.has() > 0 })
		}
	}
}
