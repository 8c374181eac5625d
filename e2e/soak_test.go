package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/devcluster"
)

// A random run of faults: what is drawn follows from the seed, when it strikes
// from the machine. SLUICE_SOAK_SEED and SLUICE_SOAK_DURATION choose another;
// SLUICE_SOAK_DIR is a directory that keeps logs and data.

const (
	soakSeed     = 700 // draws every kind of fault within 25 s
	soakDuration = 25 * time.Second
	soakPatience = 3 * time.Second // a client goes elsewhere after so long without an ack
	leadersMax   = 2 * time.Minute // until every shard has a leader once all nodes are up, on a busy machine
	quorumGone   = 500 * time.Millisecond
	quorumTries  = 20
)

func TestSoakLosesNothingAndStoresNothingTwice(t *testing.T) {
	seed, length, dir := soakSettings(t)
	t.Logf("SLUICE_SOAK_SEED=%d SLUICE_SOAK_DURATION=%v", seed, length)
	c := start(t, func(o *devcluster.Options) {
		if dir != "" {
			o.Dir = dir
		}
	})
	fleet := soakFleet(c)
	stop := runFleet(t, fleet)
	s := &soak{t: t, c: c, fleet: fleet, rng: rand.New(rand.NewPCG(seed, 0))}
	for end := time.Now().Add(length); time.Now().Before(end) && !t.Failed(); {
		s.fault()
		time.Sleep(s.upTo(2 * time.Second))
	}
	s.ready()
	goesOn(t, fleet)
	stop()
	if t.Failed() {
		return
	}
	t.Logf("survived %s", strings.Join(s.done, ", "))
	settled(t, c)
	for i := range c.Nodes() {
		judgeVia(t, c.Nodes()[i], fleet)
		ledgerAddsUp(t, c, fleet)
	}
	for _, n := range c.Nodes() {
		if got := metric(t, n, "sluice_shard_digest_mismatches_total"); got != 0 {
			t.Errorf("%s: rows of %v ranges differ from the leader's", n.ID, got)
		}
	}
	logsAreSound(t, c)
}

// setting reads an environment variable and hides it from the nodes, which
// refuse variables of ours that are no key of theirs.
func setting(t *testing.T, name string) string {
	t.Helper()
	v, ok := os.LookupEnv(name)
	if ok {
		t.Setenv(name, v) // brings it back afterwards
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

func soakSettings(t *testing.T) (seed uint64, length time.Duration, dir string) {
	t.Helper()
	seed, length = soakSeed, soakDuration
	var err error
	if v := setting(t, "SLUICE_SOAK_SEED"); v != "" {
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("SLUICE_SOAK_SEED: %v", err)
		}
	}
	if v := setting(t, "SLUICE_SOAK_DURATION"); v != "" {
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("SLUICE_SOAK_DURATION: %v", err)
		}
	}
	return seed, length, setting(t, "SLUICE_SOAK_DIR")
}

// soakFleet has three kinds of clients: steady ones, ones that fill their window
// at once again and again, and ones whose messages have no time.
func soakFleet(c *devcluster.Cluster) (fleet []*bench.Survivor) {
	addrs := mqttAddrs(c)
	add := func(kind string, n int, s *bench.Survivor) {
		for i := range n {
			one := &bench.Survivor{
				Addrs:  append(append([]string(nil), addrs[i%len(addrs):]...), addrs[:i%len(addrs)]...),
				Device: fmt.Sprintf("%s-%d", kind, i), Patience: soakPatience,
				Window: s.Window, Pause: s.Pause, Burst: s.Burst, NoTime: s.NoTime,
			}
			fleet = append(fleet, one)
		}
	}
	add("steady", 12, &bench.Survivor{Window: 32, Pause: survivorPause})
	add("burst", 3, &bench.Survivor{Window: 64, Pause: 50 * time.Millisecond, Burst: 64})
	add("untimed", 6, &bench.Survivor{Window: 32, Pause: survivorPause, NoTime: true})
	return fleet
}

func runFleet(t *testing.T, fleet []*bench.Survivor) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, s := range fleet {
		wg.Go(func() { s.Run(ctx, settleMax) })
	}
	stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(stop)
	return stop
}

type soak struct {
	t     *testing.T
	c     *devcluster.Cluster
	fleet []*bench.Survivor
	rng   *rand.Rand
	done  []string
}

func (s *soak) upTo(d time.Duration) time.Duration { return time.Duration(s.rng.Int64N(int64(d))) }

// fault draws a fault, lets it happen and heals it. Every other time it waits
// until the cluster is whole again; else the next one strikes a cluster that is
// still recovering.
func (s *soak) fault() {
	first := s.rng.IntN(3)
	a, b := s.c.Nodes()[first], s.c.Nodes()[(first+1)%3]
	away, wait := s.upTo(3*time.Second), s.rng.IntN(2) == 0
	switch k := s.rng.IntN(12); {
	case k < 3:
		s.say("kill of %s for %v", a.ID, away)
		s.kill(a)
		time.Sleep(away)
		s.start(a)
	case k < 6:
		pause := 500*time.Millisecond + s.upTo(7500*time.Millisecond)
		s.say("pause of %s for %v", a.ID, pause)
		s.must(a.Signal(syscall.SIGSTOP))
		time.Sleep(pause)
		s.must(a.Signal(syscall.SIGCONT))
	case k < 8:
		s.say("kill of %s and %s for %v", a.ID, b.ID, away)
		s.kill(a, b)
		s.silent(away)
		s.start(a, b)
	case k < 9:
		s.say("kill of all for %v", away)
		s.kill(s.c.Nodes()...)
		time.Sleep(away)
		s.start(s.c.Nodes()...)
	case k < 11:
		s.say("stop of %s for %v", a.ID, away)
		s.must(a.Terminate())
		time.Sleep(away)
		s.start(a)
	default:
		s.say("clients switch")
		for range 10 {
			s.fleet[s.rng.IntN(len(s.fleet))].Switch()
			time.Sleep(s.upTo(100 * time.Millisecond))
		}
	}
	if wait {
		s.ready()
	}
}

func (s *soak) say(format string, args ...any) {
	s.done = append(s.done, fmt.Sprintf(format, args...))
	s.t.Logf("%s %s, %d acknowledged", time.Now().UTC().Format("15:04:05.000"), s.done[len(s.done)-1], acked(s.fleet))
}

func (s *soak) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Error(err)
	}
}

func (s *soak) kill(nodes ...*devcluster.Node) {
	s.t.Helper()
	for _, n := range nodes {
		s.must(n.Signal(syscall.SIGSTOP)) // so that all are gone in one moment
	}
	for _, n := range nodes {
		s.must(n.Kill())
	}
}

func (s *soak) start(nodes ...*devcluster.Node) {
	s.t.Helper()
	for _, n := range nodes {
		s.must(n.Start())
	}
}

// silent watches a cluster without a quorum: nothing may be acknowledged.
func (s *soak) silent(away time.Duration) {
	s.t.Helper()
	before := -1
	for tries := quorumTries; before != acked(s.fleet) && tries > 0; tries-- { // acks under way arrive
		before = acked(s.fleet)
		time.Sleep(quorumGone)
	}
	time.Sleep(away)
	if after := acked(s.fleet); after != before {
		s.t.Errorf("%d publishes were acknowledged without a quorum", after-before)
	}
}

// ready waits until every shard has a leader, and finds nodes that ended unasked.
func (s *soak) ready() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), leadersMax)
	defer cancel()
	s.must(s.c.WaitReady(ctx))
	select {
	case n := <-s.c.Exited():
		s.t.Errorf("%s has ended by itself", n.ID)
	default:
	}
}

// settled waits until what is applied is flushed, so that replicas have compared
// their rows.
func settled(t *testing.T, c *devcluster.Cluster) {
	t.Helper()
	cl := clientOf(t, c.Nodes()[0])
	for end := time.Now().Add(eventuallyMax); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		l, err := cl.Ledger(t.Context())
		if err == nil && l.Totals.Pending == 0 {
			return
		}
	}
	t.Errorf("messages are still not flushed after %v", eventuallyMax)
}

func judgeVia(t *testing.T, n *devcluster.Node, fleet []*bench.Survivor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for _, s := range fleet {
		if s.Acked() == 0 {
			t.Errorf("%s: nothing was acknowledged", s.Device)
		}
		stored, err := readings(ctx, n, s.Device)
		if err != nil {
			t.Errorf("read %s via %s: %v", s.Device, n.ID, err)
			continue
		}
		for _, err := range s.Judge(stored) {
			t.Errorf("via %s: %v", n.ID, err)
		}
	}
}

// metric sums the samples of a metric.
func metric(t *testing.T, n *devcluster.Node, name string) (sum float64) {
	t.Helper()
	cl, err := n.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	b, err := cl.Metrics(t.Context())
	if err != nil {
		t.Fatalf("metrics of %s: %v", n.ID, err)
	}
	found := false
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) == 2 && (f[0] == name || strings.HasPrefix(f[0], name+"{")) {
			v, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				t.Fatalf("metric %s of %s: %v", name, n.ID, err)
			}
			sum, found = sum+v, true
		}
	}
	if !found {
		t.Fatalf("%s has no metric %s", n.ID, name)
	}
	return sum
}

// logsAreSound stops the nodes, one of them the hard way, and reads every log.
func logsAreSound(t *testing.T, c *devcluster.Cluster) {
	t.Helper()
	if err := c.Nodes()[0].Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(context.Background()); err != nil {
		t.Errorf("stop cluster: %v", err)
	}
	for _, n := range c.Nodes() {
		if out, stderr, code := try(t, "wal", "verify", n.Data); code != 0 {
			t.Errorf("log of %s: exit code %d\n%s%s", n.ID, code, out, stderr)
		}
	}
}
