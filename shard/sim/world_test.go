package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/cluster/mux"
	"github.com/sluice-iot/sluice/ingest"
	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/internal/simnet"
	"github.com/sluice-iot/sluice/internal/vfs"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/wal"
)

const (
	frameBlock = mux.KindApplication + 0
	frameAsk   = mux.KindApplication + 1

	frameSession = mux.KindApplication + 2
)

// world is a cluster of hosts in one bubble. Real are ingest, shard, raft, mux,
// wal and the Parquet store; simulated are time, the network between the hosts
// and the disk under the log, which loses unsynced sectors and names. Snapshots
// and segments lie in a directory of the machine and survive every crash: their
// own packages, and the faults with real processes, take those away. Raft and
// the Go scheduler draw from sources of their own, so that the same seed gives
// the same schedule of faults, but not the same interleaving.
type world struct {
	t        *testing.T
	rng      *rand.Rand
	net      *simnet.Net
	dir      string
	replicas int
	shards   uint32
	nodes    []*node
	events   []string
}

// node is one host.
type node struct {
	w     *world
	index int
	peer  string
	disk  *vfs.Mem
	clock clock.Clock // wrong by what the simulation says
	epoch uint64

	up     bool
	power  *atomic.Bool // of the present start; acks after it is gone do not count
	door   atomic.Pointer[door]
	log    *wal.Log
	files  *parquet.Store
	mux    *mux.Mux
	host   *shard.Host
	router *shard.Router
	intake *ingest.Pipeline
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// door is where clients get into a host that runs.
type door struct {
	power  *atomic.Bool
	intake *ingest.Pipeline
}

func newWorld(t *testing.T, seed uint64, nodes, replicas int, shards uint32) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 7)), dir: t.TempDir(), replicas: replicas, shards: shards}
	w.net = simnet.New(rand.New(rand.NewPCG(seed, 8)))
	for i := range nodes {
		w.nodes = append(w.nodes, &node{w: w, index: i, peer: fmt.Sprintf("n%d.0000000%d", i, i+1), disk: vfs.NewMem()})
	}
	for _, n := range w.nodes {
		n.start()
	}
	return w
}

func (w *world) close() {
	w.net.Heal()
	for _, n := range w.nodes {
		if n.up {
			n.stop()
		}
	}
}

// Resolve implements mux.Resolver: addresses are peer ids.
func (w *world) Resolve(peer string) (string, error) { return peer, nil }

// Shards, Replicas and Peers implement shard.Directory: every shard lives on
// some hosts in a row.
func (w *world) Shards() uint32 { return w.shards }

func (w *world) Replicas(id telemetry.ShardID) (out []string) {
	for i := range w.replicas {
		out = append(out, w.nodes[(int(id)+i)%len(w.nodes)].peer)
	}
	return out
}

func (w *world) Peers() (out []string) {
	for _, n := range w.nodes {
		out = append(out, n.peer)
	}
	return out
}

func (w *world) table() (out []shard.Replica) {
	for s := range w.shards {
		id := telemetry.ShardID(s)
		out = append(out, shard.Replica{Shard: id, Peers: w.Replicas(id), Preferred: w.Replicas(id)[0], Seed: w.Replicas(id)})
	}
	return out
}

// Group, Poke, Connected, OnSnapshot, Propose and Ask: the mux as shard wants it.
func (n *node) Group(group, incarnation uint32) raft.Transport {
	return n.mux.GroupAs(group, incarnation)
}
func (n *node) Poke(group uint32) error                        { return n.mux.Poke(group) }
func (n *node) OnElection(group uint32, abstains func() error) { n.mux.OnElection(group, abstains) }
func (n *node) Connected(peer string) bool                     { return n.mux.Connected(peer) }

func (n *node) OnSnapshot(group uint32, offered func(*raft.InstallSnapshotRequest) bool, installed func(*raft.InstallSnapshotRequest)) {
	n.mux.Group(group).SetGate(mux.Gate{Known: offered, Installed: installed})
}

var _ shard.SnapshotNotifier = (*node)(nil)

func (n *node) Propose(peer string, group uint32, entry []byte, done func([]byte, error)) {
	n.mux.Go(peer, frameBlock, group, entry, done)
}

func (n *node) Submit(peer string, group uint32, batch []byte, done func([]byte, error)) {
	n.mux.Go(peer, frameSession, group, batch, done)
}

func (n *node) Ask(ctx context.Context, peer string, group uint32, question []byte) ([]byte, error) {
	return n.mux.Call(ctx, peer, frameAsk, group, question)
}

func quiet() *slog.Logger {
	if os.Getenv("SIM_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func (n *node) must(err error) {
	if err != nil {
		n.w.t.Helper()
		n.w.t.Fatalf("%s: %v", n.peer, err)
	}
}

func (n *node) start() {
	n.w.t.Helper()
	n.must(n.tryStart())
}

// tryStart starts a host, unless its log cannot be read.
func (n *node) tryStart() error {
	n.epoch++ // as the meta group would number it, durably
	n.power = &atomic.Bool{}
	n.power.Store(true)
	var err error
	n.log, err = wal.Open(quiet(), nil, wal.Config{
		Dir: "wal", Node: n.peer, SegmentBytes: 256 << 10, FS: n.disk, ScrubBytesPerSecond: -1,
		Linger: -1, // it watches the clock, which stands still while somebody runs
	})
	if err != nil {
		return err
	}
	dir := filepath.Join(n.w.dir, n.peer)
	n.must(os.MkdirAll(dir, 0o750))
	n.files, err = parquet.Open(quiet(), nil, parquet.Config{Dir: filepath.Join(dir, "store")})
	n.must(err)
	n.mux, err = mux.New(quiet(), nil, mux.Config{
		Self: n.peer, Listener: n.w.net.Listen(n.peer), Dial: n.w.net.Dial(n.peer), Secret: []byte("a secret of the simulation, long enough"),
	}, n.w)
	n.must(err)
	n.host, err = shard.OpenHost(quiet(), nil, shard.HostConfig{
		Self: n.peer, Dir: filepath.Join(dir, "shards"), FlushesMax: 2,
		Flush:  shard.FlushConfig{Interval: 2 * time.Second, RowsMax: 2000},
		Limits: shard.Limits{SnapshotLogBytes: 48 << 10, TrailingLogs: 16}, Clock: &n.clock,
	}, shard.Deps{
		Log: func(group uint32) shard.Log { return n.log.Group(group) }, Transport: n, Ask: n.Ask,
		Stores: shard.Stores{Local: files{n.files}}, Detector: anomaly.New(anomaly.DefaultParams()), Emit: func([]shard.Event) {},
	})
	n.must(err)
	n.router = shard.NewRouter(n.host, n, n.w)
	n.intake, err = ingest.New(quiet(), nil, ingest.Config{Origin: n.peer, Epoch: n.epoch, Shards: n.w.shards, BytesOpenMax: 64 << 20, Linger: 2 * time.Millisecond}, n.router)
	n.must(err)
	var ctx context.Context
	ctx, n.cancel = context.WithCancel(context.Background())
	n.serve(ctx)
	for _, p := range n.w.Peers() {
		if p != n.peer {
			n.mux.Connect(p)
		}
	}
	n.must(n.host.Reconcile(n.w.table()))
	n.done.Go(func() { n.host.Run(ctx, n.router) })
	n.done.Go(func() { n.fetch(ctx) })
	n.up = true
	n.door.Store(&door{n.power, n.intake})
	return nil
}

func (n *node) serve(ctx context.Context) {
	n.mux.Handle(frameBlock, func(_ string, group uint32, b []byte, reply func([]byte, error)) {
		n.host.Accept(group, b, func(b []byte) { reply(b, nil) })
	})
	n.mux.Handle(frameAsk, func(_ string, group uint32, q []byte, reply func([]byte, error)) {
		n.done.Go(func() { reply(n.host.Answer(ctx, group, q), nil) })
	})
	n.mux.Subscribe(func(e mux.Event) {
		if e.Kind == mux.Down && ctx.Err() == nil {
			n.host.PeerDown(ctx, e.Peer)
		}
	})
}

// fetch brings the segments that this host lacks, as the node does over streams.
func (n *node) fetch(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for id, upTo := range n.host.Stored() {
			for _, missing := range n.files.Missing(id, upTo) {
				for _, other := range n.w.nodes {
					if other != n {
						n.copySegments(ctx, id, other.files, missing)
					}
				}
			}
		}
	}
}

func (n *node) copySegments(ctx context.Context, id telemetry.ShardID, from *parquet.Store, r parquet.Range) {
	for _, seg := range from.Segments(id) {
		if seg.From < r.From || seg.To > r.To {
			continue
		}
		rc, seg, err := from.Open(id, seg.From, seg.To)
		if err != nil {
			continue // that host is down
		}
		b, err := io.ReadAll(rc)
		_ = rc.Close()
		if err == nil && n.files.Install(ctx, seg, bytes.NewReader(b)) == nil {
			n.host.Fetched(1)
		}
	}
}

// crash takes a host away in one moment. With loss the power is gone, and what
// was not synced survives by chance, or with a nil rng not at all.
func (n *node) crash(loss bool, rng *rand.Rand) {
	n.door.Store(nil)
	n.power.Store(false)
	n.w.net.Down(n.peer, !loss)
	if loss {
		n.disk = n.disk.CrashClone(rng)
	} else {
		n.disk = n.disk.Clone()
	}
	n.stop()
}

// stop ends the goroutines of a host; what they still write goes to a disk that
// nobody will see.
func (n *node) stop() {
	n.cancel()
	n.intake.Close()
	for s := range n.w.shards {
		n.mux.Group(shard.GroupOf(telemetry.ShardID(s))).Interrupt()
	}
	err := n.host.Close()
	err = errors.Join(err, n.mux.Close())
	n.done.Wait()
	err = errors.Join(err, n.log.Close(), n.files.Close())
	if err != nil && n.power.Load() {
		n.w.t.Errorf("stop %s: %v", n.peer, err)
	}
	n.up = false
}

type files struct{ *parquet.Store }

func (s files) Write(ctx context.Context, b *telemetry.Batch) ([16]byte, error) {
	seg, err := s.Store.Write(ctx, b)
	return seg.Digest, err
}

func (s files) Digest(id telemetry.ShardID, from, to uint64) ([16]byte, bool) {
	for _, seg := range s.Segments(id) {
		if seg.From == from && seg.To == to {
			return seg.Digest, true
		}
	}
	return [16]byte{}, false
}

// say notes an event, for whoever reads about a failure.
func (w *world) say(format string, args ...any) {
	w.events = append(w.events, fmt.Sprintf("%v ", time.Duration(time.Now().UnixNano()-epoch))+fmt.Sprintf(format, args...))
}

// epoch is where the time of a bubble begins.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()

// device is a client with a ledger that outlives the hosts: it publishes numbered
// messages, a window of them at once, and sends again elsewhere, marked, what was
// not acknowledged in time.
type device struct {
	w    *world
	name string

	mu    sync.Mutex
	sent  int64
	acked map[int64]bool
}

const (
	window   = 8
	patience = 3 * time.Second
)

func (d *device) run(ctx context.Context, at int) {
	var open []int64
	for ctx.Err() == nil {
		n := d.w.nodes[at%len(d.w.nodes)]
		at++
		open = d.connected(ctx, n, open)
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// connected uses one host until it does not answer.
func (d *device) connected(ctx context.Context, n *node, open []int64) []int64 {
	door := n.door.Load()
	if door == nil {
		return open
	}
	power, intake, clock := door.power, door.intake, &n.clock
	acks := make(chan int64, 2*window)
	send := func(seq int64, dup bool) {
		pub := &telemetry.Publish{
			Client: d.name, Device: d.name, Topic: "devices/" + d.name + "/telemetry", QoS: 1, PacketID: uint16(seq%60000) + 1, Dup: dup,
			Received: clock.Micros(time.Now()), Payload: fmt.Appendf(nil, `{"device_id":%q,"timestamp":%d,"sensors":{"x":%d}}`, d.name, 1_767_225_600_000_000+seq*1000, seq),
		}
		intake.Publish(pub, func(r telemetry.Result) {
			if power.Load() && r.Applied+r.Duplicate == 1 {
				acks <- seq
			}
		})
	}
	for _, seq := range open {
		send(seq, true)
	}
	for ctx.Err() == nil {
		for len(open) < window {
			seq := d.take()
			open = append(open, seq)
			send(seq, false)
		}
		select {
		case seq := <-acks:
			d.mu.Lock()
			d.acked[seq] = true
			d.mu.Unlock()
			for i, o := range open {
				if o == seq {
					open = append(open[:i], open[i+1:]...)
					break
				}
			}
		case <-time.After(patience):
			return open
		case <-ctx.Done():
		}
		if !power.Load() {
			return open
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return open
}

func (d *device) take() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sent++
	return d.sent - 1
}

func (d *device) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.acked)
}

// judge reads the device through a host and compares with the ledger.
func (d *device) judge(n *node) []error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var points []store.Point
	var err error
	for ctx.Err() == nil {
		points, err = n.router.Readings(ctx, store.Query{Device: d.name, From: math.MinInt64, To: math.MaxInt64, Limit: 1 << 30})
		if err == nil || errors.Is(err, shard.ErrNotFound) {
			break
		}
	}
	if err != nil && !errors.Is(err, shard.ErrNotFound) {
		return []error{fmt.Errorf("read %s through %s: %w", d.name, n.peer, err)}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	seen := map[int64]int{}
	for _, p := range points {
		seq := (p.Time - 1_767_225_600_000_000) / 1000
		seen[seq]++
		if seq < 0 || seq >= d.sent || p.Value != float64(seq) {
			errs = append(errs, fmt.Errorf("%s: stored %v at %d, which was never sent", d.name, p.Value, p.Time))
		}
		if seen[seq] == 2 {
			errs = append(errs, fmt.Errorf("%s: message %d is stored twice", d.name, seq))
		}
	}
	for seq := range d.acked {
		if seen[seq] == 0 {
			errs = append(errs, fmt.Errorf("%s: message %d was acknowledged and is lost", d.name, seq))
		}
	}
	return errs
}
