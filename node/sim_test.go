package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

const (
	simFaults  = 10 // of one seed
	simDevices = 5
	simHeal    = 3 * time.Minute // simulated: until everybody is acknowledged again
	simChurn   = 15 * time.Minute
	simWindow  = 8
	clockWrong = 10 * time.Minute
)

// simSeeds are SIM_SEED alone, SIM_SEEDS so many from the first one on, or count.
func simSeeds(t *testing.T, first, count uint64) (out []uint64) {
	t.Helper()
	number := func(name string, otherwise uint64) uint64 {
		v, ok := os.LookupEnv(name)
		if !ok {
			return otherwise
		}
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	if s := number("SIM_SEED", 0); s != 0 {
		return []uint64{s}
	}
	for i := range number("SIM_SEEDS", count) {
		out = append(out, first+i)
	}
	return out
}

func TestThreeNodesSurviveWhateverStrikes(t *testing.T) { simulateNodes(t, 3, 4, simSeeds(t, 1, 2)) }

func TestFiveNodesSurviveWhateverStrikes(t *testing.T) { simulateNodes(t, 5, 4, simSeeds(t, 101, 1)) }

func simulateNodes(t *testing.T, nodes int, shards uint32, seeds []uint64) {
	if testing.Short() {
		t.Skip("simulates minutes of a cluster")
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			began := time.Now()
			defer forgiveRaft(t)
			synctest.Test(t, func(t *testing.T) { simHour(t, seed, nodes, shards) })
			t.Logf("SIM_SEED=%d took %v", seed, time.Since(began).Round(time.Millisecond))
		})
	}
}

// forgiveRaft lets goroutines be left over that raft 1.8.0 forgets: a hand-over to
// a peer that does not answer, from a leader that is none any more. Everything
// else that outlives the nodes is a failure.
func forgiveRaft(t *testing.T) {
	r := recover()
	if r == nil {
		return
	}
	if !strings.Contains(fmt.Sprint(r), "blocked goroutines remain") {
		panic(r)
	}
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for _, s := range strings.Split(string(stacks), "\n\n") {
		head, _, _ := strings.Cut(s, "\n")
		if strings.Contains(head, "synctest bubble") && !strings.Contains(s, "raft.(*Raft).leadershipTransfer") && !strings.Contains(s, "raft.(*Raft).leaderLoop.func") {
			t.Errorf("left over: %s", s)
		}
	}
	t.Log("raft has left a hand-over behind")
}

// simLoad is every client of a run.
type simLoad struct {
	devices    []*simPublisher
	commanders []*simPublisher
	listeners  []*simSubscriber
	running    sync.WaitGroup
}

func startSimLoad(ctx, listen context.Context, w *simWorld) *simLoad {
	l := &simLoad{}
	for i := range simDevices {
		name := fmt.Sprintf("d%d", i)
		d := &simPublisher{
			w: w, client: name, topic: "devices/" + name + "/telemetry", window: simWindow, pause: 20 * time.Millisecond, acked: map[int]bool{},
			text: func(seq int) string {
				return fmt.Sprintf(`{"device_id":%q,"timestamp":%d,"sensors":{"x":%d}}`, name, simTime(seq), seq)
			},
		}
		c := &simPublisher{
			w: w, client: "commander-" + name, topic: "devices/" + name + "/commands", window: 1, pause: 150 * time.Millisecond, acked: map[int]bool{},
			text: func(seq int) string { return fmt.Sprintf("%d for %s", seq, name) },
		}
		s := &simSubscriber{w: w, client: "listener-" + name, filter: "devices/" + name + "/commands", ready: make(chan struct{}), seen: map[string]bool{}}
		l.devices, l.commanders, l.listeners = append(l.devices, d), append(l.commanders, c), append(l.listeners, s)
		rng := rand.New(rand.NewPCG(uint64(i), 19))
		l.running.Go(func() { d.run(ctx, i) })
		l.running.Go(func() {
			s.run(listen, i, func() time.Duration { return time.Second + time.Duration(rng.Int64N(int64(8*time.Second))) })
		})
		l.running.Go(func() {
			select {
			case <-s.ready:
				c.run(ctx, i+1)
			case <-ctx.Done():
			}
		})
	}
	return l
}

// simTime is the device time of a message.
func simTime(seq int) int64 { return simEpoch/1000 + int64(seq)*1000 }

// simHour lets faults strike one after the other or together, heals, and judges.
func simHour(t *testing.T, seed uint64, nodes int, shards uint32) {
	w := newSimWorld(t, seed, nodes, shards)
	defer w.close()
	if t.Failed() {
		return
	}
	listen, stop := context.WithCancel(t.Context())
	defer stop()
	ctx, cancel := context.WithCancel(listen)
	defer cancel()
	l := startSimLoad(ctx, listen, w)
	defer func() { stop(); l.running.Wait() }()
	time.Sleep(10 * time.Second)
	for range simFaults {
		w.strike()
		time.Sleep(w.upTo(8 * time.Second))
	}
	w.say("heal, for good")
	w.net.Heal()
	w.churns.Wait()
	w.live(l)
	cancel() // of what publishes; the listeners go on
	w.eventually("every acknowledged command is delivered", simHeal, func() error {
		var errs []error
		for i, s := range l.listeners {
			errs = append(errs, s.judge(l.commanders[i])...)
		}
		return errors.Join(errs...)
	})
	stop()
	l.running.Wait()
	w.settled()
	w.agree()
	readings, commands := 0, 0
	for i, d := range l.devices {
		readings, commands = readings+d.count(), commands+l.commanders[i].count()
		for _, err := range w.judge(d, i) {
			t.Error(err)
		}
	}
	t.Logf("%d messages and %d commands acknowledged in %v: %s", readings, commands, time.Duration(time.Now().UnixNano()-simEpoch), w.summary())
	if t.Failed() {
		t.Logf("what happened:\n%s", strings.Join(w.events, "\n"))
	}
}

func (w *simWorld) summary() string {
	kinds := map[string]int{}
	for _, e := range w.events {
		if f := strings.Fields(e); len(f) > 1 {
			kinds[f[1]]++
		}
	}
	return fmt.Sprint(kinds)
}

func (w *simWorld) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d))) }

// strike draws a fault. Some end here, others last until heal or another fault.
func (w *simWorld) strike() {
	nodes, hosts := w.members(), w.hosts()
	a := nodes[w.rng.IntN(len(nodes))]
	w.rng.Shuffle(len(hosts), func(i, k int) { hosts[i], hosts[k] = hosts[k], hosts[i] })
	switch w.rng.IntN(15) {
	case 0:
		w.say("kill %s", a.id)
		w.away(false, nil, a)
	case 1:
		w.say("power-loss of %s", a.id)
		w.away(true, w.chance(), a)
	case 2:
		w.say("power-loss of all")
		w.away(true, w.chance(), nodes...)
	case 3:
		w.say("kill of all")
		w.away(false, nil, nodes...)
	case 4:
		k := 1 + w.rng.IntN(len(hosts)-1)
		w.say("split %v from %v", hosts[:k], hosts[k:])
		w.net.Split(hosts[:k], hosts[k:])
	case 5:
		w.say("ring of %v", hosts) // everybody reaches two neighbours, nobody all
		for i := range hosts {
			for k := i + 2; k < len(hosts) && (i > 0 || k < len(hosts)-1 || len(hosts) == 3); k++ {
				w.net.Split(hosts[i:i+1], hosts[k:k+1])
			}
		}
	case 6:
		w.say("one-way %s to %s", hosts[0], hosts[1])
		w.net.Block(hosts[0], hosts[1])
	case 7:
		w.say("clog")
		w.net.Clog(hosts, w.rng, w.upTo)
	case 8:
		w.say("pause of %s", a.id) // nothing in, nothing out, and then all at once
		w.net.Split([]string{a.host}, hosts)
		time.Sleep(w.upTo(8 * time.Second))
		w.net.Heal()
	case 9, 10:
		off := w.upTo(2*clockWrong) - clockWrong
		w.say("clock of %s off by %v", a.id, off)
		a.clock.Set(off)
	case 11:
		w.churn()
	case 12:
		w.replace(a)
	case 13:
		w.rot(a, w.rng.Uint32N(w.shards))
	default:
		w.say("heal")
		w.net.Heal()
	}
}

func (w *simWorld) chance() *rand.Rand {
	if w.rng.IntN(2) == 0 {
		return nil
	}
	return w.rng
}

// away crashes nodes and starts them again after a while, one after the other.
func (w *simWorld) away(loss bool, rng *rand.Rand, nodes ...*simNode) {
	for _, n := range nodes {
		n.crash(loss, false, rng)
	}
	time.Sleep(w.upTo(4 * time.Second))
	for _, n := range nodes {
		n.start()
		time.Sleep(w.upTo(time.Second))
	}
}

// churn adds a node, or drains and evicts one, while load and faults go on.
func (w *simWorld) churn() {
	if !w.busy.CompareAndSwap(false, true) {
		return
	}
	nodes := w.members()
	leavers := slices.DeleteFunc(slices.Clone(nodes), func(n *simNode) bool { // the last of a zone has to stay
		return !slices.ContainsFunc(nodes, func(o *simNode) bool { return o != n && o.zone == n.zone })
	})
	if len(leavers) == 0 {
		n := w.add()
		w.say("add %s", n.id)
		w.churns.Go(func() {
			defer w.busy.Store(false)
			w.placed(string(n.id)+" has its share", func(holds map[string]int) bool { return holds[string(n.id)] > 0 })
		})
		return
	}
	n := leavers[w.rng.IntN(len(leavers))]
	w.say("drain %s", n.id)
	w.churns.Go(func() {
		defer w.busy.Store(false)
		w.leave(n)
	})
}

// leave takes a node out of the cluster in order, however long that takes.
func (w *simWorld) leave(n *simNode) {
	others := func(f func(context.Context, *client.Client) error) func() error {
		return func() error {
			for _, o := range w.members() {
				if o != n && o.ask(f) == nil {
					return nil
				}
			}
			return errors.New("no other node does it")
		}
	}
	drain := others(func(ctx context.Context, cl *client.Client) error { return cl.Drain(ctx, n.id) })
	if !w.eventually("drain "+string(n.id), simChurn, drain) {
		return
	}
	empty := func(holds map[string]int) bool {
		if holds[string(n.id)] > 0 {
			_ = drain() // it may have been started again since, which ends a drain
		}
		return holds[string(n.id)] == 0
	}
	if !w.placed(string(n.id)+" is empty", empty) {
		return
	}
	w.say("evict %s", n.id)
	n.mu.Lock()
	n.gone = true
	n.halt(nil)
	n.mu.Unlock()
	w.eventually("evict "+string(n.id), simChurn, others(func(ctx context.Context, cl *client.Client) error {
		err := cl.Evict(ctx, n.id)
		if errors.Is(err, api.ErrNotFound) {
			return nil // an attempt without an answer has done it
		}
		return err
	}))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes = slices.DeleteFunc(slices.Clone(w.nodes), func(o *simNode) bool { return o == n })
}

// replace takes everything from a node's disk; it comes back as another
// incarnation and is built from its peers.
func (w *simWorld) replace(n *simNode) {
	if !w.busy.CompareAndSwap(false, true) {
		return
	}
	if ok := w.whole(nil); ok != nil { // what was lost before is not yet back
		w.busy.Store(false)
		return
	}
	w.say("replace %s", n.id)
	n.crash(true, true, nil)
	n.start()
	w.churns.Go(func() {
		defer w.busy.Store(false)
		w.placed(string(n.id)+" is rebuilt", func(map[string]int) bool { return true })
	})
}

// rot spoils every snapshot that a node has of a shard, while it is down. Where the
// log does not reach behind them that replica is rebuilt, as its next incarnation.
func (w *simWorld) rot(n *simNode, id uint32) {
	if !w.busy.CompareAndSwap(false, true) {
		return
	}
	if w.whole(nil) != nil { // what was lost before is not yet back
		w.busy.Store(false)
		return
	}
	n.crash(false, false, nil)
	rotten := rotState(w.t, filepath.Join(n.data(n.lives), "shards", fmt.Sprintf("%05d", id)))
	w.say("rot of %d snapshots of shard %d on %s", rotten, id, n.id)
	time.Sleep(w.upTo(4 * time.Second))
	n.start()
	w.churns.Go(func() {
		defer w.busy.Store(false)
		w.placed(fmt.Sprintf("shard %d on %s is rebuilt", id, n.id), func(map[string]int) bool { return true })
	})
}

// placed waits until every shard has three voters and nothing moves.
func (w *simWorld) placed(what string, ok func(holds map[string]int) bool) bool {
	return w.eventually(what, simChurn, func() error { return w.whole(ok) })
}

// whole is nil when every shard has a leader and its voters, and ok holds.
func (w *simWorld) whole(ok func(holds map[string]int) bool) error {
	return w.anyNode(func(ctx context.Context, cl *client.Client) error {
		st, err := cl.Status(ctx)
		if err != nil {
			return err
		}
		holds := map[string]int{}
		for _, sh := range st.Shards {
			for _, r := range sh.Replicas {
				holds[string(r.Node)]++
			}
			if sh.Leader == "" || len(sh.Replicas) != 3 || slices.ContainsFunc(sh.Replicas, func(r api.Replica) bool { return r.Role == api.RoleNonvoter }) {
				return fmt.Errorf("shard %d: leader %q, replicas %v", sh.ID, sh.Leader, sh.Replicas)
			}
		}
		if len(st.Moves) > 0 || len(st.Shards) != int(w.shards) || ok != nil && !ok(holds) {
			return fmt.Errorf("replicas %v, %d moves, alarms %q", holds, len(st.Moves), st.Alarms)
		}
		return nil
	})
}

// live is liveness: after the last fault every client is acknowledged again.
func (w *simWorld) live(l *simLoad) {
	for _, p := range slices.Concat(l.devices, l.commanders) {
		before := p.count()
		w.eventually(p.client+" is acknowledged again", simHeal, func() error {
			if got := p.count(); got < before+2*p.window {
				return fmt.Errorf("%d acknowledgements", got-before)
			}
			return nil
		})
	}
}

// settled waits until all rows are stored and the ledger adds up.
func (w *simWorld) settled() {
	w.eventually("everything is flushed", simHeal, func() error {
		return w.anyNode(func(ctx context.Context, cl *client.Client) error {
			l, err := cl.Ledger(ctx)
			if err != nil {
				return err
			}
			if t := l.Totals; t.Pending > 0 || t.Received != t.Refused+t.Quarantined+t.Duplicate+t.Applied || t.Applied != t.Flushed {
				return fmt.Errorf("ledger %+v", t)
			}
			return nil
		})
	})
}

// agree waits until all replicas of every shard have applied the same and compares
// the digests of their states.
func (w *simWorld) agree() {
	w.eventually("all replicas are at one index", simHeal, func() error {
		shards := map[telemetry.ShardID][]shard.ReplicaStatus{}
		for _, n := range w.members() {
			life := n.node.Load()
			if life == nil || !life.serving.Load() {
				return fmt.Errorf("%s does not serve", n.id)
			}
			for id := range w.shards {
				if s, ok := life.host.Shard(telemetry.ShardID(id)); ok {
					shards[telemetry.ShardID(id)] = append(shards[telemetry.ShardID(id)], s.Status(true))
				}
			}
		}
		for id, list := range shards {
			for _, st := range list {
				if st.Applied != list[0].Applied {
					return fmt.Errorf("shard %d has applied %d and %d", id, list[0].Applied, st.Applied)
				}
			}
			for _, st := range list {
				if st.Digest != list[0].Digest {
					w.t.Errorf("shard %d at entry %d: digests %x and %x", id, st.Applied, st.Digest, list[0].Digest)
				}
			}
		}
		return nil
	})
}

// judge reads a device through a node and compares with its ledger.
func (w *simWorld) judge(d *simPublisher, at int) []error {
	nodes := w.members()
	life := nodes[at%len(nodes)].node.Load()
	if life == nil || !life.serving.Load() {
		return []error{fmt.Errorf("read %s: %s does not serve", d.client, nodes[at%len(nodes)].id)}
	}
	ctx, cancel := context.WithTimeout(context.Background(), simHeal)
	defer cancel()
	var points []store.Point
	var err error
	for ; ctx.Err() == nil; simSleep(ctx, 200*time.Millisecond) {
		points, err = life.router.Readings(ctx, store.Query{Device: d.client, From: math.MinInt64, To: math.MaxInt64, Limit: 1 << 30})
		if err == nil {
			break
		}
	}
	if err != nil {
		return []error{fmt.Errorf("read %s: %w", d.client, err)}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	seen := map[int]int{}
	for _, p := range points {
		seq := int(p.Time-simTime(0)) / 1000
		seen[seq]++
		if seq < 0 || seq >= d.sent || p.Value != float64(seq) {
			errs = append(errs, fmt.Errorf("%s: stored %v at %d, which was never sent", d.client, p.Value, p.Time))
		}
		if seen[seq] == 2 {
			errs = append(errs, fmt.Errorf("%s: message %d is stored twice", d.client, seq))
		}
	}
	for seq := range d.acked {
		if seen[seq] == 0 {
			errs = append(errs, fmt.Errorf("%s: message %d was acknowledged and is lost", d.client, seq))
		}
	}
	return errs
}
