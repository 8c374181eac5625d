package mux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	dto "github.com/prometheus/client_model/go"
)

// simNet is a network of pipes inside a synctest bubble: time is simulated, and
// a node that is cut off loses packets silently, as after a power loss.
type simNet struct {
	mu        sync.Mutex
	listeners map[string]*simListener
	cut       map[string]bool
}

func newSimNet() *simNet {
	return &simNet{listeners: make(map[string]*simListener), cut: make(map[string]bool)}
}

// Resolve is the Resolver: addresses are names.
func (n *simNet) Resolve(peer string) (string, error) { return peer, nil }

func (n *simNet) setCut(name string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[name] = cut
}

func (n *simNet) isCut(a, b string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[a] || n.cut[b]
}

func (n *simNet) listen(name string) *simListener {
	l := &simListener{name: name, conns: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[name] = l
	return l
}

func (n *simNet) dial(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		if n.isCut(from, to) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		n.mu.Lock()
		l := n.listeners[to]
		n.mu.Unlock()
		if l == nil {
			return nil, errors.New("connection refused")
		}
		here, there := net.Pipe()
		select {
		case l.conns <- &simConn{there, n, to, from}:
			return &simConn{here, n, from, to}, nil
		case <-l.done:
			return nil, errors.New("connection refused")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

type simConn struct {
	net.Conn
	n        *simNet
	from, to string
}

func (c *simConn) Write(p []byte) (int, error) {
	if c.n.isCut(c.from, c.to) {
		return len(p), nil // into the socket buffer, and never out of it
	}
	return c.Conn.Write(p)
}

type simListener struct {
	name  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *simListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *simListener) Close() error { l.once.Do(func() { close(l.done) }); return nil }

func (l *simListener) Addr() net.Addr { return &net.UnixAddr{Name: l.name} }

func newSimMux(t *testing.T, n *simNet, self string, change ...func(*Config)) *Mux {
	t.Helper()
	cfg := Config{Self: self, Listener: n.listen(self), Dial: n.dial(self), Secret: testSecret}
	for _, f := range change {
		f(&cfg)
	}
	m, err := New(testLogger(), nil, cfg, n)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSilenceIsAnnouncedThenClosedThenHealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSimNet()
		a, b := newSimMux(t, n, peerID(0)), newSimMux(t, n, peerID(1))
		defer func() { _, _ = a.Close(), b.Close() }()
		b.Handle(64, echo)
		type stamped struct {
			Event
			at time.Time
		}
		var mu sync.Mutex
		var got []stamped
		a.Subscribe(func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, stamped{e, time.Now()})
		})
		if _, err := a.Call(t.Context(), peerID(1), 64, 0, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if _, ok := a.RoundTrip(peerID(1)); !ok {
			t.Error("no round trip measured")
		}
		cut := time.Now()
		n.setCut(peerID(1), true)
		pending := make(chan error, 1)
		a.Go(peerID(1), 64, 0, nil, func(_ []byte, err error) { pending <- err })
		if err := <-pending; !errors.Is(err, ErrConnectionLost) || time.Since(cut) > 6*time.Second {
			t.Errorf("call ended after %v with %v", time.Since(cut), err)
		}
		start := time.Now()
		if _, err := a.Call(t.Context(), peerID(1), 64, 0, nil); !errors.Is(err, ErrNotConnected) || time.Since(start) > 300*time.Millisecond {
			t.Errorf("call to a peer that is off ended after %v with %v", time.Since(start), err)
		}
		time.Sleep(5 * time.Second)
		n.setCut(peerID(1), false)
		healed := time.Now()
		for {
			if _, err := a.Call(t.Context(), peerID(1), 64, 0, nil); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if d := time.Since(healed); d > 1200*time.Millisecond { // one dial timeout: it may hang in an old attempt
			t.Errorf("back after %v", d)
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		var kinds []EventKind
		for _, e := range got {
			kinds = append(kinds, e.Kind)
			if d := e.at.Sub(cut); e.Kind == Quiet && (d < 300*time.Millisecond || d > 1000*time.Millisecond) {
				t.Errorf("quiet after %v", d)
			}
			if d := e.at.Sub(cut); e.Kind == Silent && (d < 1000*time.Millisecond || d > 2100*time.Millisecond) {
				t.Errorf("silent after %v", d)
			}
			if d := e.at.Sub(cut); e.Kind == Down && (d < 4500*time.Millisecond || d > 5600*time.Millisecond) {
				t.Errorf("down after %v", d)
			}
		}
		if want := fmt.Sprint([]EventKind{Up, Quiet, Silent, Down, Up}); fmt.Sprint(kinds) != want {
			t.Errorf("events %v, want %v", kinds, want)
		}
	})
}

func TestShortSilenceEndsWithUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSimNet()
		a, b := newSimMux(t, n, peerID(0)), newSimMux(t, n, peerID(1))
		defer func() { _, _ = a.Close(), b.Close() }()
		var mu sync.Mutex
		var kinds []EventKind
		a.Subscribe(func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			kinds = append(kinds, e.Kind)
		})
		a.Connect(peerID(1))
		time.Sleep(3 * time.Second)
		n.setCut(peerID(1), true)
		time.Sleep(3 * time.Second)
		n.setCut(peerID(1), false)
		time.Sleep(3 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if want := fmt.Sprint([]EventKind{Up, Quiet, Silent, Up}); fmt.Sprint(kinds) != want {
			t.Errorf("events %v, want %v", kinds, want)
		}
	})
}

func TestForgottenPeerIsDialedAgainOnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSimNet()
		a := newSimMux(t, n, peerID(0))
		defer func() { _ = a.Close() }()
		if _, err := a.Call(t.Context(), peerID(1), 64, 0, nil); !errors.Is(err, ErrNotConnected) {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Minute)
		a.peersMu.RLock()
		left := len(a.peers)
		a.peersMu.RUnlock()
		if left != 0 {
			t.Errorf("%d peers remembered", left)
		}
		b := newSimMux(t, n, peerID(1))
		defer func() { _ = b.Close() }()
		b.Handle(64, echo)
		if _, err := a.Call(t.Context(), peerID(1), 64, 0, nil); err != nil {
			t.Error(err)
		}
	})
}

// simRaft is one group on three nodes inside a bubble.
type simRaft struct {
	n        *simNet
	peers    []string
	muxes    []*Mux
	replicas []*replica
}

func newSimRaft(t *testing.T, change ...func(*Config)) *simRaft {
	t.Helper()
	s := &simRaft{n: newSimNet(), peers: []string{peerID(0), peerID(1), peerID(2)}}
	for _, p := range s.peers {
		m := newSimMux(t, s.n, p, change...)
		r := &replica{fsm: &recorder{}, store: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore()}
		var err error
		if r.Raft, err = raft.NewRaft(raftConfig(p), r.fsm, r.store, r.store, r.snaps, m.Group(1)); err != nil {
			t.Fatal(err)
		}
		s.muxes, s.replicas = append(s.muxes, m), append(s.replicas, r)
	}
	if err := s.replicas[0].BootstrapCluster(servers(s.peers...)).Error(); err != nil {
		t.Fatal(err)
	}
	return s
}

// leader waits for a leader other than node not.
func (s *simRaft) leader(not int) int {
	for {
		for i, r := range s.replicas {
			if i != not && r.State() == raft.Leader {
				return i
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *simRaft) close(t *testing.T) {
	t.Helper()
	for i, m := range s.muxes {
		m.Group(1).Interrupt()
		if err := s.replicas[i].Shutdown().Error(); err != nil {
			t.Error(err)
		}
		_ = m.Close()
	}
}

// Raft itself runs in the bubble: a fail-over of simulated seconds.
func TestRaftFailsOverInSimulatedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimRaft(t)
		defer s.close(t)
		first := s.leader(-1)
		if err := s.replicas[first].Apply([]byte("one"), 0).Error(); err != nil {
			t.Fatal(err)
		}
		s.n.setCut(s.peers[first], true)
		cut := time.Now()
		second := s.leader(first)
		if err := s.replicas[second].Apply([]byte("two"), 0).Error(); err != nil {
			t.Fatal(err)
		}
		t.Logf("leader moved from %d to %d, committed after %v", first, second, time.Since(cut))
		s.n.setCut(s.peers[first], false)
		for s.replicas[first].fsm.has() < 2 {
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// Without AppendHold raft's own backoff made a follower wait for 6 to 8 s after
// an outage of 20 s or more.
func TestFollowerCatchesUpAtOnceAfterALongOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimRaft(t, func(c *Config) { c.AppendHold = 30 * time.Second })
		leader := s.leader(-1)
		apply := func() {
			if err := s.replicas[leader].Apply([]byte("x"), 0).Error(); err != nil {
				t.Fatal(err)
			}
		}
		apply()
		late := (leader + 1) % 3
		s.n.setCut(s.peers[late], true)
		for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(100 * time.Millisecond) {
			apply()
		}
		s.n.setCut(s.peers[late], false)
		start := time.Now()
		for s.replicas[late].fsm.has() < s.replicas[leader].fsm.has() {
			time.Sleep(10 * time.Millisecond)
		}
		if d := time.Since(start); d > 2500*time.Millisecond {
			t.Errorf("caught up after %v", d)
		}
		s.n.setCut(s.peers[late], true)
		time.Sleep(10 * time.Second)
		start = time.Now()
		s.close(t)
		if d := time.Since(start); d > time.Second {
			t.Errorf("interrupted shutdown took %v", d)
		}
	})
}

// TestHeartbeatsOfManyGroupsShareWrites: what raft sends by the clock waits for
// company, no longer than gatherDelay each way, and for nobody once something
// else is sent.
func TestHeartbeatsOfManyGroupsShareWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const groups = 50
		n := newSimNet()
		a, b := newSimMux(t, n, peerID(0)), newSimMux(t, n, peerID(1))
		defer func() { _, _ = a.Close(), b.Close() }()
		b.Handle(64, echo)
		if _, err := a.Call(t.Context(), peerID(1), 64, 0, nil); err != nil {
			t.Fatal(err)
		}
		beats := func(m *Mux) float64 {
			var w dto.Metric
			if err := m.metrics.writes.Write(&w); err != nil {
				t.Fatal(err)
			}
			return w.GetCounter().GetValue()
		}
		for g := range uint32(groups) {
			b.Group(g).SetHeartbeatHandler(func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil) })
		}
		h := raft.RPCHeader{ProtocolVersion: 3, ID: a.self, Addr: a.self}
		heartbeats := func() (all *sync.WaitGroup) {
			all = new(sync.WaitGroup)
			for g := range uint32(groups) {
				all.Go(func() {
					if err := a.Group(g).AppendEntries("", raft.ServerAddress(peerID(1)), &raft.AppendEntriesRequest{RPCHeader: h, Term: 1}, new(raft.AppendEntriesResponse)); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			return all
		}
		synctest.Wait() // writers that are under way take along what they find
		before, start := beats(a)+beats(b), time.Now()
		heartbeats().Wait()
		if d := time.Since(start); d > 2*gatherDelay {
			t.Errorf("heartbeats took %v", d)
		}
		if w := beats(a) + beats(b) - before; w > 4 { // two, and a ping may fall between
			t.Errorf("%d heartbeats and their answers took %v writes", groups, w)
		}
		start = time.Now()
		all := heartbeats()
		if _, err := a.Call(t.Context(), peerID(1), 64, 0, nil); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("a call behind waiting heartbeats took %v", d)
		}
		all.Wait()
		if d := time.Since(start); d > gatherDelay { // the answers alone waited
			t.Errorf("heartbeats that a call took along took %v", d)
		}
	})
}

// The voter that has everything was made one while another was away, and the
// leader dies before that one hears of it: the two are a majority, and the one
// that lags has to vote for a server that it knows as a non-voter.
func TestVoterThatALaggardDoesNotKnowAsOneIsElected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimRaft(t)
		defer s.close(t)
		leader := s.leader(-1)
		anew, late := (leader+1)%3, (leader+2)%3
		id, addr := raft.ServerID(s.peers[anew]), raft.ServerAddress(s.peers[anew])
		done := func(f raft.Future) {
			t.Helper()
			if err := f.Error(); err != nil {
				t.Fatal(err)
			}
		}
		done(s.replicas[leader].RemoveServer(id, 0, 0))
		done(s.replicas[leader].AddNonvoter(id, addr, 0, 0))
		done(s.replicas[leader].Apply([]byte("x"), 0))
		time.Sleep(5 * time.Second)
		s.n.setCut(s.peers[late], true)
		done(s.replicas[leader].AddVoter(id, addr, 0, 0))
		done(s.replicas[leader].Apply([]byte("y"), 0))
		s.n.setCut(s.peers[leader], true)
		s.n.setCut(s.peers[late], false)
		for end := time.Now().Add(2 * time.Minute); s.replicas[anew].State() != raft.Leader; time.Sleep(5 * time.Second) {
			if time.Now().After(end) {
				t.Fatal("nobody is elected")
			}
			if err := s.muxes[anew].Poke(1); err != nil {
				t.Fatal(err)
			}
		}
		done(s.replicas[anew].Apply([]byte("z"), 0))
	})
}

func TestCallsToAQuietPeerThatIsGivenUpFailAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSimNet()
		a, b := newSimMux(t, n, peerID(0)), newSimMux(t, n, peerID(1))
		defer func() { _, _ = a.Close(), b.Close() }()
		b.Handle(64, echo)
		silent := make(chan struct{})
		a.Subscribe(func(e Event) {
			if e.Kind == Quiet {
				close(silent)
			}
		})
		if _, err := a.Call(t.Context(), peerID(1), 64, 0, nil); err != nil {
			t.Fatal(err)
		}
		a.GiveUp(peerID(1)) // it is heard of
		if _, err := a.Call(t.Context(), peerID(1), 64, 0, nil); err != nil {
			t.Fatalf("a peer that speaks was given up: %v", err)
		}
		n.setCut(peerID(1), true)
		pending := make(chan error, 1)
		a.Go(peerID(1), 64, 0, nil, func(_ []byte, err error) { pending <- err })
		<-silent
		began := time.Now()
		a.GiveUp(peerID(1))
		if err := <-pending; !errors.Is(err, ErrConnectionLost) || time.Since(began) > 100*time.Millisecond {
			t.Errorf("the pending call ends with %v after %v", err, time.Since(began))
		}
	})
}
