package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/internal/vfs"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// SIM_SEED runs one seed alone, SIM_SEEDS so many from the first one on.
func seeds(t *testing.T, first, count uint64) (out []uint64) {
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

const (
	faultsPerSeed = 12
	devicesCount  = 6
	clockWrong    = 10 * time.Minute
	healMax       = 60 * time.Second // simulated: until everybody acknowledges again
)

func TestThreeHostsLoseNothingWhateverStrikes(t *testing.T) { simulate(t, 3, 3, 2, seeds(t, 1, 4)) }

func TestFiveHostsLoseNothingWhateverStrikes(t *testing.T) { simulate(t, 5, 3, 3, seeds(t, 101, 2)) }

// With five replicas two may be rebuilt at once, while a third has heard of neither.
func TestFiveReplicasLoseNothingWhateverStrikes(t *testing.T) {
	simulate(t, 5, 5, 1, seeds(t, 201, 2))
}

func simulate(t *testing.T, hosts, replicas int, shards uint32, seeds []uint64) {
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			began := time.Now()
			synctest.Test(t, func(t *testing.T) { hour(t, seed, hosts, replicas, shards) })
			t.Logf("SIM_SEED=%d took %v", seed, time.Since(began).Round(time.Millisecond))
		})
	}
}

// hour lets faults strike one after the other or together, heals, and judges.
func hour(t *testing.T, seed uint64, hosts, replicas int, shards uint32) {
	w := newWorld(t, seed, hosts, replicas, shards)
	defer w.close()
	w.net.Delay(0, 2*time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	var fleet []*device
	var running sync.WaitGroup
	for i := range devicesCount {
		d := &device{w: w, name: fmt.Sprintf("d%d", i), acked: map[int64]bool{}}
		fleet = append(fleet, d)
		running.Go(func() { d.run(ctx, i) })
	}
	time.Sleep(10 * time.Second)
	for range faultsPerSeed {
		w.strike()
		time.Sleep(w.upTo(6 * time.Second))
	}
	w.heal()
	w.live(fleet)
	w.mended()
	cancel()
	running.Wait()
	total := 0
	for i, d := range fleet {
		total += d.count()
		for _, err := range d.judge(w.nodes[i%hosts]) {
			t.Error(err)
		}
	}
	w.agree()
	t.Logf("%d acknowledged in %v: %s, incarnations %v", total, time.Duration(time.Now().UnixNano()-epoch), w.summary(), w.incarnations())
	if t.Failed() {
		t.Logf("what happened:\n%s", strings.Join(w.events, "\n"))
	}
}

// A judge that finds nothing must find something where there is something: disks
// that say they have synced and have not lose acknowledged messages.
func TestDisksThatLieAreNoticed(t *testing.T) {
	for _, c := range []struct {
		name string
		op   vfs.OpKind
		span time.Duration // so short that the log stays in its segment, so long that it begins some
	}{{"sync", vfs.OpSync, time.Second}, {"syncdir", vfs.OpSyncDir, time.Minute}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { liar(t, c.op, c.span) })
		})
	}
}

func liar(t *testing.T, op vfs.OpKind, span time.Duration) {
	w := newWorld(t, 1, 3, 3, 1)
	defer w.close()
	d := &device{w: w, name: "d", acked: map[int64]bool{}}
	publish := func(span time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), span)
		defer cancel()
		d.run(ctx, 0)
	}
	publish(10 * time.Second)
	if d.count() == 0 || len(d.judge(w.nodes[0])) > 0 {
		t.Fatalf("%d acknowledged, and wrong before any fault: %v", d.count(), d.judge(w.nodes[0]))
	}
	for _, n := range w.nodes {
		n.disk.Lie(op)
	}
	publish(span)
	for _, n := range w.nodes {
		n.crash(true, nil)
	}
	for _, n := range w.nodes {
		if err := n.tryStart(); err != nil {
			t.Logf("a host does not start: %v", err) // which is another way to notice
			return
		}
	}
	if errs := d.judge(w.nodes[0]); len(errs) == 0 {
		t.Error("nothing was missed")
	} else {
		t.Logf("%d violations, the first: %v", len(errs), errs[0])
	}
}

func (w *world) summary() string {
	kinds := map[string]int{}
	for _, e := range w.events {
		if f := strings.Fields(e); len(f) > 1 {
			kinds[f[1]]++
		}
	}
	return fmt.Sprint(kinds)
}

func (w *world) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d))) }

// strike draws a fault. Some end here, others last until heal or another fault.
func (w *world) strike() {
	a := w.nodes[w.rng.IntN(len(w.nodes))]
	peers := w.Peers()
	w.rng.Shuffle(len(peers), func(i, k int) { peers[i], peers[k] = peers[k], peers[i] })
	switch w.rng.IntN(13) {
	case 0:
		w.say("kill %s", a.peer)
		w.away(false, nil, a)
	case 1:
		w.say("power-loss of %s", a.peer)
		w.away(true, w.chance(), a)
	case 2:
		w.say("power-loss of all")
		w.away(true, w.chance(), w.nodes...)
	case 3:
		w.say("kill of all")
		w.away(false, nil, w.nodes...)
	case 4:
		k := 1 + w.rng.IntN(len(peers)-1)
		w.say("split %v from %v", peers[:k], peers[k:])
		w.net.Split(peers[:k], peers[k:])
	case 5:
		w.say("ring of %v", peers) // everybody reaches two neighbours, nobody all
		for i := range peers {
			for k := i + 2; k < len(peers) && (i > 0 || k < len(peers)-1 || len(peers) == 3); k++ {
				w.net.Split(peers[i:i+1], peers[k:k+1])
			}
		}
	case 6:
		w.say("one-way %s to %s", peers[0], peers[1])
		w.net.Block(peers[0], peers[1])
	case 7:
		w.say("clog")
		w.net.Clog(peers, w.rng, w.upTo)
	case 8:
		w.say("pause of %s", a.peer) // nothing in, nothing out, and then all at once
		w.net.Split([]string{a.peer}, peers)
		time.Sleep(w.upTo(8 * time.Second))
		w.net.Heal()
	case 9:
		off := w.upTo(2*clockWrong) - clockWrong
		w.say("clock of %s off by %v", a.peer, off)
		a.clock.Set(off)
	case 10, 11:
		w.rot(telemetry.ShardID(w.rng.Uint32N(w.shards)))
	default:
		w.say("heal")
		w.heal()
	}
}

func (w *world) chance() *rand.Rand {
	if w.rng.IntN(2) == 0 {
		return nil
	}
	return w.rng
}

// away crashes hosts and starts them again after a while, one after the other.
func (w *world) away(loss bool, rng *rand.Rand, nodes ...*node) {
	for _, n := range nodes {
		if n.up {
			n.crash(loss, rng)
		}
	}
	time.Sleep(w.upTo(4 * time.Second))
	for _, n := range nodes {
		n.start()
		time.Sleep(w.upTo(time.Second))
	}
}

// rot spoils every snapshot that a host has of a shard, while it is down. Where the
// log does not reach behind them the replica has to be rebuilt, as its next
// incarnation; other faults go on meanwhile. Never a majority: what that has lost is
// lost.
func (w *world) rot(id telemetry.ShardID) {
	if w.lacking(id) >= (w.replicas-1)/2 {
		return
	}
	hosts := w.hostsOf(id)
	a := hosts[w.rng.IntN(len(hosts))]
	a.crash(false, nil)
	files, err := filepath.Glob(filepath.Join(w.dir, a.peer, "shards", fmt.Sprintf("%05d", id), "snapshots", "*", "state.bin"))
	a.must(err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		a.must(err)
		b[w.rng.IntN(len(b))] ^= 1 << w.rng.IntN(8)
		a.must(os.WriteFile(f, b, 0o600))
	}
	time.Sleep(w.upTo(4 * time.Second))
	a.start()
	kind := "rot-spared"
	if len(a.host.Damaged()) > 0 {
		kind = "rot"
	}
	w.say("%s of %d snapshots of shard %d on %s", kind, len(files), id, a.peer)
}

// hostsOf lists the hosts of a shard.
func (w *world) hostsOf(id telemetry.ShardID) (out []*node) {
	for _, n := range w.nodes {
		if slices.Contains(w.Replicas(id), n.peer) {
			out = append(out, n)
		}
	}
	return out
}

// lacking counts the replicas of a shard that do not vote.
func (w *world) lacking(id telemetry.ShardID) (lack int) {
	for _, n := range w.hostsOf(id) {
		s, ok := n.host.Shard(id)
		if !n.up || !ok || s.Status(false).Role == "nonvoter" {
			lack++
		}
	}
	return lack
}

// mended waits until every replica of every shard votes again.
func (w *world) mended() {
	for s := range w.shards {
		id := telemetry.ShardID(s)
		for end := time.Now().Add(healMax); w.lacking(id) > 0; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				w.t.Errorf("shard %d: a replica is not rebuilt %v after everything was healed", id, healMax)
				break
			}
		}
	}
}

// incarnations of the replicas, by shard.
func (w *world) incarnations() (out [][]uint32) {
	for id := range w.shards {
		var of []uint32
		for _, n := range w.hostsOf(telemetry.ShardID(id)) {
			if s, ok := n.host.Shard(telemetry.ShardID(id)); ok {
				of = append(of, s.Status(false).Incarnation)
			}
		}
		out = append(out, of)
	}
	return out
}

func (w *world) heal() { w.net.Heal() }

// live is liveness: after the last fault every device is acknowledged again.
func (w *world) live(fleet []*device) {
	for _, d := range fleet {
		before := d.count()
		end := time.Now().Add(healMax)
		for d.count() < before+2*window {
			if time.Now().After(end) {
				w.t.Errorf("%s: no publish is acknowledged %v after everything was healed", d.name, healMax)
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// agree waits until all replicas of a shard have applied the same and compares
// the digests of their states.
func (w *world) agree() {
	for s := range w.shards {
		id := telemetry.ShardID(s)
		end := time.Now().Add(healMax)
		for !w.sameDigest(id) {
			if time.Now().After(end) {
				w.t.Errorf("shard %d: replicas are not at one index after %v", id, healMax)
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// sameDigest reports whether all replicas are at one index; different states
// there fail the test.
func (w *world) sameDigest(id telemetry.ShardID) bool {
	var list []shard.ReplicaStatus
	for _, n := range w.nodes {
		if s, ok := n.host.Shard(id); ok {
			list = append(list, s.Status(true))
		}
	}
	for _, st := range list {
		if st.Applied != list[0].Applied {
			return false
		}
	}
	for _, st := range list {
		if st.Digest != list[0].Digest {
			w.t.Errorf("shard %d at entry %d: digests %x and %x", id, st.Applied, st.Digest, list[0].Digest)
		}
	}
	return true
}
