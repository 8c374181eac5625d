package gossip_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/cluster/gossip"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var secret = []byte("sixteen bytes or more")

func self(i int) gossip.Member {
	return gossip.Member{
		Peer: fmt.Sprintf("n%d.%08x", i, i+1), Zone: telemetry.Zone(rune('a' + i%3)),
		Mux: fmt.Sprintf("127.0.0.1:%d", 7000+i), MQTT: fmt.Sprintf("127.0.0.1:%d", 1883+i), HTTP: fmt.Sprintf("127.0.0.1:%d", 8080+i),
		ClusterID: "C1",
	}
}

func testLogger() *slog.Logger {
	if os.Getenv("SLUICE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func open(t *testing.T, m gossip.Member, bind string, seeds ...string) *gossip.Gossip {
	t.Helper()
	// Every member's probes share one loaded machine with other tests.
	g, err := gossip.New(testLogger().With("self", m.Peer), nil, gossip.Config{Bind: bind, Seeds: seeds, Secret: secret, Self: m})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// freeAddr finds a port that nobody uses just now.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func state(g *gossip.Gossip, peer string) string {
	for _, m := range g.Members() {
		if m.Peer == peer {
			return m.State.String()
		}
	}
	return "unknown"
}

func trio(t *testing.T) []*gossip.Gossip {
	t.Helper()
	seed := freeAddr(t)
	gs := []*gossip.Gossip{open(t, self(0), seed)}
	for i := 1; i < 3; i++ {
		gs = append(gs, open(t, self(i), "127.0.0.1:0", seed))
	}
	for i, g := range gs {
		for j := range gs {
			eventually(t, fmt.Sprintf("n%d sees n%d", i, j), func() bool { return state(g, self(j).Peer) == "alive" })
		}
	}
	return gs
}

func TestMembersFindEachOtherAndResolve(t *testing.T) {
	for i, g := range trio(t) {
		ms := g.Members()
		if len(ms) != 3 || ms[0].Peer != self(i).Peer {
			t.Fatalf("n%d sees %+v", i, ms)
		}
		for j := range 3 {
			want := self(j)
			if addr, err := g.Resolve(want.Peer); err != nil || addr != want.Mux {
				t.Errorf("n%d resolves %s to %q, %v", i, want.Peer, addr, err)
			}
		}
		for _, m := range ms[1:] {
			want := self(int(m.Node[1] - '0'))
			want.Node = m.Node
			if m != want {
				t.Errorf("n%d sees %+v, want %+v", i, m, want)
			}
		}
		for _, peer := range []string{"n7.00000001", "n1.ffffffff", "n0.ffffffff", "nonsense"} {
			if addr, err := g.Resolve(peer); err == nil {
				t.Errorf("n%d resolves %s to %s", i, peer, addr)
			}
		}
	}
}

func TestSeedsMayStartLater(t *testing.T) {
	seed := freeAddr(t)
	early := open(t, self(1), "127.0.0.1:0", seed)
	var mu sync.Mutex
	var seen []gossip.Event
	early.Subscribe(func(e gossip.Event) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, e)
	})
	time.Sleep(700 * time.Millisecond) // a few attempts fail
	open(t, self(0), seed)
	eventually(t, "the seed is seen", func() bool { return state(early, self(0).Peer) == "alive" })
	eventually(t, "and reported", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(seen) == 1 && seen[0].Member.Peer == self(0).Peer
	})
}

func TestSilentMemberIsSuspectedThenDead(t *testing.T) {
	gs := trio(t)
	events := make(chan gossip.Event, 100)
	gs[0].Subscribe(func(e gossip.Event) { events <- e })
	start := time.Now()
	if err := gs[2].Close(); err != nil { // no goodbye
		t.Fatal(err)
	}
	var got []string
	for len(got) == 0 || got[len(got)-1] != "dead" {
		select {
		case e := <-events:
			if e.Member.Peer == self(2).Peer && e.Member.State != gossip.Alive {
				got = append(got, e.Member.State.String())
				t.Logf("%s after %v", e.Member.State, time.Since(start).Round(time.Millisecond))
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("saw only %v", got)
		}
	}
	if got[0] != "suspect" {
		t.Errorf("saw %v", got)
	}
	if addr, err := gs[0].Resolve(self(2).Peer); err != nil || addr != self(2).Mux {
		t.Errorf("the dead member resolves to %q, %v", addr, err)
	}
	if peers := gs[0].Peers(); len(peers) != 1 || peers[0] != self(1).Peer {
		t.Errorf("live peers are %v", peers)
	}
}

func TestProbeOfADoubtedMemberIsQuick(t *testing.T) {
	gs := trio(t)
	_ = gs[2].Close()
	start := time.Now()
	gs[0].Probe(self(2).Peer)
	gs[0].Probe("n9.00000001") // a stranger
	eventually(t, "suspect", func() bool { return state(gs[0], self(2).Peer) != "alive" })
	took := time.Since(start)
	t.Logf("suspected %v after the probe was asked for", took.Round(time.Millisecond))
	if took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestGoodbyeIsHeardAtOnce(t *testing.T) {
	gs := trio(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := gs[2].Leave(ctx); err != nil {
		t.Fatal(err)
	}
	for _, g := range gs[:2] {
		eventually(t, "gone", func() bool { return state(g, self(2).Peer) == "dead" })
	}
	if err := gs[2].Close(); err != nil {
		t.Fatal(err)
	}
	if err := gs[2].Leave(ctx); err == nil {
		t.Error("left after closing")
	}
}

func TestRestartedNodeIsAcceptedOnAnotherPortAndAsAnotherIncarnation(t *testing.T) {
	gs := trio(t)
	seed := gs[0].Addr().String()
	_ = gs[2].Close()
	moved := self(2)
	moved.Mux = "127.0.0.1:7999"
	again := open(t, moved, "127.0.0.1:0", seed)
	eventually(t, "the new address is known", func() bool {
		a, err := gs[1].Resolve(moved.Peer)
		return err == nil && a == moved.Mux && state(gs[1], moved.Peer) == "alive"
	})
	var mu sync.Mutex
	states := map[string]string{}
	gs[0].Subscribe(func(e gossip.Event) {
		mu.Lock()
		defer mu.Unlock()
		states[e.Member.Peer] = e.Member.State.String()
	})
	addr := again.Addr().String()
	_ = again.Close()
	wiped := moved
	wiped.Peer = "n2.0000beef"
	open(t, wiped, addr, seed)
	eventually(t, "the new incarnation is known and the old one reported dead", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return states[wiped.Peer] == "alive" && states[moved.Peer] == "dead"
	})
	if a, err := gs[0].Resolve(moved.Peer); err == nil || !strings.Contains(err.Error(), wiped.Peer) {
		t.Errorf("the old incarnation resolves to %q, %v", a, err)
	}
}

func TestUpdateReachesTheOthers(t *testing.T) {
	gs := trio(t)
	m := self(1)
	m.HTTP = "127.0.0.1:9999"
	if err := gs[1].Update(m); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*gossip.Gossip{gs[0], gs[2]} {
		eventually(t, "the new address is known", func() bool {
			for _, o := range g.Members() {
				if o.Peer == m.Peer {
					return o.HTTP == m.HTTP
				}
			}
			return false
		})
	}
	m.Peer = self(2).Peer
	if err := gs[1].Update(m); err == nil {
		t.Error("a node may call itself by another's name")
	}
	m = self(1)
	m.HTTP = strings.Repeat("x", 600)
	if err := gs[1].Update(m); err == nil {
		t.Error("metadata that does not fit is accepted")
	}
}

func TestStrangersAreKeptOut(t *testing.T) {
	seed := freeAddr(t)
	g := open(t, self(0), seed)
	foreign := self(1)
	foreign.ClusterID = "C2"
	f := open(t, foreign, "127.0.0.1:0", seed)
	thief, err := gossip.New(testLogger(), nil, gossip.Config{Bind: "127.0.0.1:0", Seeds: []string{seed}, Secret: []byte("another secret altogether"), Self: self(2)})
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	friend := self(3)
	friend.ClusterID = "" // has not joined a cluster yet
	open(t, friend, "127.0.0.1:0", seed)
	eventually(t, "the friend is seen", func() bool { return state(g, friend.Peer) == "alive" })
	time.Sleep(time.Second) // several attempts of the others
	for _, x := range []*gossip.Gossip{g, f, thief} {
		for _, m := range x.Members()[1:] {
			if x != g || m.Peer != friend.Peer {
				t.Errorf("%s sees %s", x.Members()[0].Peer, m.Peer)
			}
		}
	}
}

func TestConfigIsCheckedAsAWhole(t *testing.T) {
	good := gossip.Config{Bind: "127.0.0.1:0", Secret: secret, Self: self(0)}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*gossip.Config){
		"no host":                 func(c *gossip.Config) { c.Bind = ":7946" },
		"no port":                 func(c *gossip.Config) { c.Bind = "127.0.0.1" },
		"everywhere":              func(c *gossip.Config) { c.Bind = "0.0.0.0:7946" },
		"short secret":            func(c *gossip.Config) { c.Secret = []byte("short") },
		"no peer":                 func(c *gossip.Config) { c.Self.Peer = "n0" },
		"too long":                func(c *gossip.Config) { c.Self.HTTP = strings.Repeat("x", 600) },
		"timeout beyond interval": func(c *gossip.Config) { c.ProbeTimeout = time.Second },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := good
	taken.Bind = l.Addr().String()
	if _, err := gossip.New(testLogger(), nil, taken); err == nil || !strings.Contains(err.Error(), taken.Bind) {
		t.Errorf("taken port: %v", err)
	}
}

func TestLibraryLogsThroughSlog(t *testing.T) {
	var mu sync.Mutex
	var out bytes.Buffer
	h := slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return out.Write(b)
	}), &slog.HandlerOptions{Level: slog.LevelDebug})
	g, err := gossip.New(slog.New(h), nil, gossip.Config{Bind: "127.0.0.1:0", Secret: secret, Self: self(0)})
	if err != nil {
		t.Fatal(err)
	}
	_ = g.Close()
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(out.String(), "gossip library reports") {
		t.Errorf("log: %s", out.String())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
