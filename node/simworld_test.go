package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/internal/simnet"
	"github.com/sluice-iot/sluice/internal/vfs"
	"github.com/sluice-iot/sluice/telemetry"
)

// simWorld is a cluster of whole nodes in one bubble of testing/synctest: broker,
// HTTP, ingest, sessions, shards, raft, meta group, placement, gossip, transport,
// log and Parquet store are those of the binary. Simulated are time, the network
// (links that are blocked, delayed, one-way, packets that get lost), the wall
// clock of each node, and the disk under the log, which loses unsynced sectors and
// names. Identity, snapshots and segments lie in a directory of the machine: what
// they hold when a node dies is what its next life finds, synced or not; the
// faults with real processes take that away, too.
//
// The schedule of faults follows from the seed. Raft, memberlist and the Go
// scheduler draw from sources of their own, so the interleaving does not.
type simWorld struct {
	t      *testing.T
	rng    *rand.Rand
	net    *simnet.Net
	dir    string
	shards uint32

	mu     sync.Mutex
	nodes  []*simNode // that belong to the cluster
	made   int
	events []string
	churns sync.WaitGroup
	busy   atomic.Bool // members change, or a node is rebuilt
}

// simNode is one node through all its lives.
type simNode struct {
	w     *simWorld
	id    telemetry.NodeID
	zone  telemetry.Zone
	host  string // its IP address
	clock *clock.Clock

	mu     sync.Mutex // over starts and ends
	disk   *vfs.Mem
	lives  int
	up     bool
	gone   bool // drained and evicted
	power  *atomic.Bool
	cancel context.CancelCauseFunc
	ended  chan error
	fresh  atomic.Pointer[vfs.Mem] // under the log since the node has set the one before aside
	node   atomic.Pointer[node]
}

const (
	simSecret  = "a secret of the simulation, long enough"
	simClients = "10.9.9.9" // the host of all clients; its links are never cut
	simStart   = 2 * time.Minute
	// simLinger is what memberlist's own timers outlive their owner.
	simLinger = 10 * time.Second
)

var errSimCrash = errors.New("crashed by the simulation")

func newSimWorld(t *testing.T, seed uint64, nodes int, shards uint32) *simWorld {
	w := &simWorld{t: t, rng: rand.New(rand.NewPCG(seed, 17)), dir: t.TempDir(), shards: shards}
	w.net = simnet.New(rand.New(rand.NewPCG(seed, 18)))
	w.net.Delay(0, 2*time.Millisecond)
	for range nodes {
		w.add()
	}
	w.init(nodes)
	return w
}

// add makes one more node and starts it.
func (w *simWorld) add() *simNode {
	w.mu.Lock()
	i := w.made
	w.made++
	n := &simNode{
		w: w, id: telemetry.NodeID("n" + strconv.Itoa(i)), zone: telemetry.Zone(string(rune('a' + i%3))),
		host: fmt.Sprintf("10.0.0.%d", i+1), clock: &clock.Clock{}, disk: vfs.NewMem(),
	}
	w.nodes = append(w.nodes, n)
	w.mu.Unlock()
	n.start()
	return n
}

// members lists the nodes that belong to the cluster.
func (w *simWorld) members() []*simNode {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*simNode(nil), w.nodes...)
}

func (w *simWorld) hosts() (out []string) {
	for _, n := range w.members() {
		out = append(out, n.host)
	}
	return out
}

// init makes the cluster out of the first nodes.
func (w *simWorld) init(nodes int) {
	first := w.members()[0]
	w.eventually("the cluster is initialised", simStart, func() error {
		return first.ask(func(ctx context.Context, cl *client.Client) error {
			st, err := cl.Status(ctx)
			if err != nil {
				return err
			}
			alive := 0
			for _, n := range st.Nodes {
				if n.State == api.NodeAlive {
					alive++
				}
			}
			if alive < nodes {
				return fmt.Errorf("%d of %d nodes are alive", alive, nodes)
			}
			_, err = cl.Init(ctx, api.InitRequest{Shards: w.shards})
			return err
		})
	})
	for _, n := range w.members() {
		w.eventually(string(n.id)+" is ready", simStart, n.ready)
	}
}

// eventually waits until something is so, in simulated time.
func (w *simWorld) eventually(what string, within time.Duration, f func() error) bool {
	w.t.Helper()
	var err error
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = f(); err == nil {
			return true
		}
	}
	w.t.Errorf("not within %v: %s: %v", within, what, err)
	return false
}

func (w *simWorld) close() {
	w.net.Heal()
	w.churns.Wait()
	var all sync.WaitGroup
	for _, n := range w.members() {
		all.Go(func() { n.stop(nil) })
	}
	all.Wait()
	time.Sleep(simLinger)
}

func (w *simWorld) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf("%v ", time.Duration(time.Now().UnixNano()-simEpoch))+fmt.Sprintf(format, args...))
}

// simEpoch is where the time of a bubble begins.
var simEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()

func simLogger() *slog.Logger {
	if os.Getenv("SIM_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// config of the present life.
func (n *simNode) config() Config {
	cfg := defaultConfig()
	cfg.Node = NodeConfig{ID: n.id, Zone: n.zone, Data: n.data(n.lives)}
	cfg.Cluster = ClusterConfig{Listen: n.host + ":7400", Gossip: n.host + ":7401", Secret: simSecret, SnapshotMiB: 64,
		Seeds: []string{"10.0.0.1:7401", "10.0.0.2:7401", "10.0.0.3:7401"}}
	cfg.MQTT.Listen, cfg.HTTP.Listen = n.host+":1883", n.host+":8080"
	cfg.Flush.Interval = 2 * time.Second
	cfg.WAL.SegmentMiB, cfg.WAL.SnapshotKiB, cfg.WAL.TrailingEntries = 1, 48, 16
	cfg.WAL.ScrubEvery, cfg.Store.ScrubEvery = 10*time.Second, 10*time.Second
	cfg.defaults()
	return cfg
}

func (n *simNode) data(life int) string {
	return filepath.Join(n.w.dir, string(n.id), strconv.Itoa(life))
}

func (n *simNode) start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.up || n.gone {
		return
	}
	n.renewed()
	power := &atomic.Bool{}
	power.Store(true)
	n.power, n.ended, n.up = power, make(chan error, 1), true
	var ctx context.Context
	ctx, n.cancel = context.WithCancelCause(context.Background())
	sys := system{
		listen: func(addr string) (net.Listener, error) { return n.w.net.Listen(addr), nil },
		dial:   n.dialer(power), log: n.disk, logLinger: -1, clock: n.clock,
	}
	sys.born = func(life *node) { n.node.Store(life) }
	cfg, ended := n.config(), n.ended
	go func() {
		// A node that finds itself damaged begins another life, with other sockets.
		var damage error
		sys.found = newDamages()
		for {
			sys.gossip = newSimGossip(n, power)
			err := runLife(ctx, simLogger(), "simulated", cfg, sys, damage)
			_ = sys.gossip.Shutdown() // of a life that ended before it had gossip
			next, again := sys.found.nextLife(err)
			if ctx.Err() != nil || !again {
				ended <- err
				return
			}
			n.w.say("%s begins anew: %v", n.id, err)
			if damage = next; damage != nil {
				sys.log = vfs.NewMem() // what the node sets aside lies in its directory; its log does not
				n.fresh.Store(sys.log.(*vfs.Mem))
			}
		}
	}()
}

// renewed takes note of the disk that a damaged node has gone on with.
func (n *simNode) renewed() {
	if d := n.fresh.Swap(nil); d != nil {
		n.disk = d
	}
}

func (n *simNode) dialer(power *atomic.Bool) func(context.Context, string) (net.Conn, error) {
	dial := n.w.net.Dial(n.host)
	return func(ctx context.Context, addr string) (net.Conn, error) {
		if !power.Load() {
			return nil, syscall.ENETDOWN
		}
		return dial(ctx, addr)
	}
}

// stop ends a life: in order with a nil cause.
func (n *simNode) stop(cause error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.halt(cause)
}

func (n *simNode) halt(cause error) {
	if !n.up {
		return
	}
	n.cancel(cause)
	if err := <-n.ended; err != nil && cause == nil {
		n.w.t.Errorf("%s stopped with %v", n.id, err)
	}
	n.up = false
	n.node.Store(nil)
}

// crash takes a node away in one moment. With loss the power is gone, and what
// was not synced survives by chance, or with a nil rng not at all. wipe leaves
// nothing.
func (n *simNode) crash(loss, wipe bool, rng *rand.Rand) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.up {
		return
	}
	n.renewed()
	n.power.Store(false)
	n.w.net.Down(n.host, !loss)
	switch {
	case wipe:
		n.disk = vfs.NewMem()
	case loss:
		n.disk = n.disk.CrashClone(rng)
	default:
		n.disk = n.disk.Clone()
	}
	if !wipe {
		if err := copyTree(n.data(n.lives), n.data(n.lives+1)); err != nil {
			n.w.t.Errorf("keep the directory of %s: %v", n.id, err)
		}
	}
	n.lives++
	n.halt(errSimCrash)
}

// copyTree copies what a directory holds right now, while somebody works in it.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		at := filepath.Join(to, strings.TrimPrefix(path, from))
		if d.IsDir() {
			return os.MkdirAll(at, 0o750)
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(at, b, 0o600)
	})
}

// ready is nil when the node takes publishes and every shard has a leader.
func (n *simNode) ready() error {
	return n.ask(func(ctx context.Context, cl *client.Client) error { return cl.Ready(ctx) })
}

const simAsk = 10 * time.Second

// ask uses the node's API as anybody would.
func (n *simNode) ask(f func(context.Context, *client.Client) error) error {
	dial := n.w.net.Dial(simClients)
	hc := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, addr) },
	}}
	cl, err := client.New(client.Config{URL: "http://" + n.host + ":8080", HTTP: hc, Retries: -1})
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), simAsk)
	defer cancel()
	return f(ctx, cl)
}

// anyNode asks nodes until one answers.
func (w *simWorld) anyNode(f func(context.Context, *client.Client) error) error {
	var errs []error
	for _, n := range w.members() {
		err := n.ask(f)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", n.id, err))
	}
	return errors.Join(errs...)
}

// simGossip is memberlist's transport over the simulated network.
type simGossip struct {
	n       *simNode
	power   *atomic.Bool
	addr    string
	l       net.Listener
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
}

func newSimGossip(n *simNode, power *atomic.Bool) *simGossip {
	g := &simGossip{
		n: n, power: power, addr: n.host + ":7401", packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{}),
	}
	g.l = n.w.net.Listen(g.addr)
	arrived := n.w.net.Packets(g.addr)
	g.wg.Go(func() {
		for {
			select {
			case <-g.done:
				return
			case p := <-arrived:
				from, err := net.ResolveUDPAddr("udp", p.From)
				if err != nil {
					continue
				}
				select {
				case g.packets <- &memberlist.Packet{Buf: p.Data, From: from, Timestamp: p.At}:
				case <-g.done:
				}
			}
		}
	})
	g.wg.Go(func() {
		for {
			c, err := g.l.Accept()
			if err != nil {
				return
			}
			select {
			case g.streams <- c:
			case <-g.done:
				_ = c.Close() // nobody will
			}
		}
	})
	return g
}

func (g *simGossip) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	return net.ParseIP(ip), port, nil
}

func (g *simGossip) WriteTo(b []byte, addr string) (time.Time, error) {
	if g.power.Load() {
		g.n.w.net.Send(g.addr, addr, b)
	}
	return time.Now(), nil
}

func (g *simGossip) PacketCh() <-chan *memberlist.Packet { return g.packets }

func (g *simGossip) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return g.n.dialer(g.power)(ctx, addr)
}

func (g *simGossip) StreamCh() <-chan net.Conn { return g.streams }

func (g *simGossip) Shutdown() error {
	g.once.Do(func() { close(g.done) })
	err := g.l.Close()
	g.wg.Wait()
	return err
}
