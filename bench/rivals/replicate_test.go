package rivals

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftwal "github.com/hashicorp/raft-wal"

	"github.com/sluice-iot/sluice/cluster/mux"
	"github.com/sluice-iot/sluice/wal"
)

const (
	nodes      = 3
	inFlight   = 64 // per group
	entryBytes = 2 << 10
)

// BenchmarkReplicated applies entries of 2 KiB through raft with three replicas in
// this process, over real sockets and with a sync before every answer, on the
// shared log of a node and on one hashicorp/raft-wal per replica. Everything else
// is the same: raft, its settings, and the transport. Snapshots of nothing let
// both logs truncate.
func BenchmarkReplicated(b *testing.B) {
	for _, groups := range []int{1, 24, 64} {
		for _, kind := range []string{"sluice", "raft-wal"} {
			b.Run(fmt.Sprintf("log=%s/groups=%d", kind, groups), func(b *testing.B) { benchReplicated(b, kind, groups) })
		}
	}
}

// store is what raft needs of a log.
type store interface {
	raft.LogStore
	raft.StableStore
}

// node is one of the three: its transport, and where its replicas' logs are.
type node struct {
	mux  *mux.Mux
	open func(group uint32) store
}

func benchReplicated(b *testing.B, kind string, groups int) {
	c := newCluster(b, kind)
	rafts := make([]*raft.Raft, groups) // the leaders
	for g := range groups {
		rafts[g] = c.start(b, uint32(g+1))
	}
	data := make([]byte, entryBytes)
	run := func(total int) {
		var wg sync.WaitGroup
		var left atomic.Int64
		left.Store(int64(total))
		for _, r := range rafts {
			for range inFlight {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if err := r.Apply(data, time.Minute).Error(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
		}
		wg.Wait()
	}
	run(200 * groups) // until everything is allocated and all pipelines are open
	cpu := cpuTime(b)
	b.ResetTimer()
	run(b.N)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/1000/float64(b.N), "cpu-us/entry")
}

// cpuTime is what this process has used, user and system.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

type cluster struct {
	nodes []*node
	mu    sync.Mutex
	addrs map[string]string
}

// Resolve implements mux.Resolver.
func (c *cluster) Resolve(peer string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.addrs[peer]; ok {
		return a, nil
	}
	return "", fmt.Errorf("nobody knows %s", peer)
}

func newCluster(b *testing.B, kind string) *cluster {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	c := &cluster{addrs: map[string]string{}}
	for i := range nodes {
		m, err := mux.New(quiet, nil, mux.Config{Self: fmt.Sprintf("n%d.0000000%d", i, i+1), Listen: "127.0.0.1:0", Secret: []byte("a secret of the benchmarks")}, c)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = m.Close() })
		c.addrs[m.Self()] = m.Addr().String()
		n := &node{mux: m}
		dir := b.TempDir()
		if kind == "sluice" {
			l, err := wal.Open(quiet, nil, wal.Config{Dir: dir})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = l.Close() })
			n.open = func(group uint32) store {
				g := l.Group(group)
				g.SetFloor(math.MaxUint64) // nothing is kept for a flusher
				return g
			}
		} else {
			n.open = func(group uint32) store {
				own := filepath.Join(dir, fmt.Sprint(group))
				if err := os.MkdirAll(own, 0o750); err != nil {
					b.Fatal(err)
				}
				l, err := raftwal.Open(own)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { _ = l.Close() })
				return l
			}
		}
		c.nodes = append(c.nodes, n)
	}
	return c
}

// start runs a group on all nodes and returns the leader, another node for each
// group in turn.
func (c *cluster) start(b *testing.B, group uint32) *raft.Raft {
	var all raft.Configuration
	for _, n := range c.nodes {
		all.Servers = append(all.Servers, raft.Server{ID: raft.ServerID(n.mux.Self()), Address: raft.ServerAddress(n.mux.Self())})
	}
	var rafts []*raft.Raft
	for _, n := range c.nodes {
		conf := raft.DefaultConfig()
		conf.LocalID = raft.ServerID(n.mux.Self())
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 10*time.Second, 10*time.Second, 10*time.Second // the machine is busy on purpose
		conf.CommitTimeout, conf.MaxAppendEntries, conf.BatchApplyCh = 500*time.Millisecond, 64, true
		conf.SnapshotThreshold, conf.SnapshotInterval, conf.TrailingLogs = 4096, time.Second, 1024
		conf.Logger, conf.NoLegacyTelemetry = hclog.NewNullLogger(), true
		logs := n.open(group)
		trans := n.mux.Group(group)
		r, err := raft.NewRaft(conf, nothing{}, logs, logs, raft.NewInmemSnapshotStore(), trans)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { trans.Interrupt(); _ = r.Shutdown().Error() })
		rafts = append(rafts, r)
	}
	lead := int(group) % len(c.nodes)
	if err := rafts[lead].BootstrapCluster(all).Error(); err != nil {
		b.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); rafts[lead].State() != raft.Leader; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("group %d has no leader", group)
		}
		_ = c.nodes[lead].mux.Poke(group)
	}
	return rafts[lead]
}

// nothing is a state machine without a state.
type nothing struct{}

func (nothing) Apply(*raft.Log) any                 { return nil }
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nothing{}, nil }
func (nothing) Restore(rc io.ReadCloser) error      { return rc.Close() }
func (nothing) Persist(sink raft.SnapshotSink) error {
	return sink.Close()
}
func (nothing) Release() {}
