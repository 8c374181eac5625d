package broker

import (
	"bufio"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/pubsub"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// land is nodes with brokers around one shard without a log, which has a leader or not.
type land struct {
	mu     sync.Mutex
	gate   chan struct{} // closed: the shard has a leader
	hubs   map[string]*pubsub.Hub
	first  string
	turn   sync.Mutex // held while a batch is applied and acted on
	state  *session.State
	server []*Broker
}

func newLand(t *testing.T, nodes ...string) *land {
	l := &land{hubs: map[string]*pubsub.Hub{}, first: nodes[0], state: session.New()}
	l.lead()
	for i, id := range nodes {
		h, err := pubsub.New(quietLog, nil, pubsub.Config{Self: id, Epoch: uint64(i + 1)}, road{l, id}, road{l, id})
		if err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		l.hubs[id] = h
		l.mu.Unlock()
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		if i == 0 {
			h.Lead(0, 1, nil)
		}
		b, err := New(quietLog, prometheus.NewRegistry(), Config{Listen: "127.0.0.1:0"}, newMemory(), h)
		if err != nil {
			t.Fatal(err)
		}
		h.Start(b)
		if err := b.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
		l.server = append(l.server, b)
	}
	return l
}

// lose takes the shard its leader until lead.
func (l *land) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gate = make(chan struct{})
}

func (l *land) lead() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gate == nil {
		l.gate = make(chan struct{})
	}
	close(l.gate)
}

func (l *land) hub(id string) *pubsub.Hub {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hubs[id]
}

func (l *land) apply(batch []byte) []byte {
	l.turn.Lock()
	defer l.turn.Unlock()
	answer := l.state.Apply(clock.Micros(time.Now()), batch)
	if h := l.hub(l.first); h != nil {
		h.Effects(0, l.state.TakeEffects())
	}
	return answer
}

// connected is how many sessions the shard believes to be connected, and how many it has.
func (l *land) connected() (connected, sessions int) {
	l.turn.Lock()
	defer l.turn.Unlock()
	c := l.state.Counts()
	return c.Connected, c.Sessions
}

// road is how one node reaches the others and the shard.
type road struct {
	l    *land
	self string
}

func (r road) Peers() []string {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	var out []string
	for id := range r.l.hubs {
		out = append(out, id)
	}
	return out
}

func (r road) Connected(peer string) bool { return r.l.hub(peer) != nil }

func (r road) Call(ctx context.Context, peer string, frame int, body []byte) ([]byte, error) {
	h := r.l.hub(peer)
	type answer struct {
		body []byte
		err  error
	}
	answers := make(chan answer, 1)
	reply := func(b []byte, err error) { answers <- answer{b, err} }
	switch frame {
	case pubsub.FrameKick:
		h.AcceptKick(body, reply)
	case pubsub.FramePull:
		h.AcceptPull(r.self, body, reply)
	default:
		h.AcceptForward(r.self, body, reply)
	}
	select {
	case a := <-answers:
		return a.body, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r road) Count() uint32 { return 1 }

func (r road) Submit(_ telemetry.ShardID, batch []byte, done func([]byte, error)) {
	r.l.mu.Lock()
	gate := r.l.gate
	r.l.mu.Unlock()
	select {
	case <-gate:
		done(r.l.apply(batch), nil)
	default:
		done(nil, errors.New("the shard has no leader"))
	}
}

func (r road) Fetch(_ context.Context, _ telemetry.ShardID, ref session.Ref, from uint64) ([]session.Item, uint64, error) {
	r.l.turn.Lock()
	defer r.l.turn.Unlock()
	return r.l.state.Fetch(ref, from, 256, 1<<20)
}

func (r road) Fenced(err error) bool                                        { return errors.Is(err, session.ErrFenced) }
func (r road) Settled(context.Context, telemetry.ShardID) error             { return nil }
func (r road) Leads(telemetry.ShardID) bool                                 { return r.self == r.l.first }
func (r road) Retained(context.Context, string) ([]*session.Message, error) { return nil, nil }

// TestACleanClientIsServedWhileItsShardHasNoLeader, one that leaves something in the
// cluster is not, and the shard has all sessions right afterwards.
func TestACleanClientIsServedWhileItsShardHasNoLeader(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		l := newLand(t, "n0.00000001")
		b := l.server[0]
		l.lose()
		refused := make(chan packets.Packet, 2)
		for id, o := range map[string]connectOptions{
			"durable": {keep: true, props: []byte{packets.PropSessionExpiryInterval, 0, 0, 0, 60}},
			"willing": {will: &packets.Packet{TopicName: "w", Payload: []byte("gone")}},
		} {
			c := dialRaw(t, b)
			c.v = v
			c.send(connectPacket(v, id, o))
			go func() {
				ack, _ := (&client{Conn: c.Conn, t: t, r: bufio.NewReader(c.Conn), v: v}).tryRead(30 * time.Second)
				refused <- ack
			}()
		}
		sub, ack := dial(t, b, v, "sub", connectOptions{})
		if ack.SessionPresent {
			t.Error("there is no session that could be present")
		}
		sub.subscribe("a/+", 0)
		other, _ := dial(t, b, v, "other", connectOptions{})
		other.publish(pub{topic: "a/b", payload: "hello"})
		if pk := sub.read(); string(pk.Payload) != "hello" {
			t.Errorf("got %s", describe(pk))
		}
		for range 2 {
			ack := <-refused
			want := map[byte]byte{4: 3, 5: packets.ErrServerUnavailable.Code}[v]
			if ack.FixedHeader.Type != packets.Connack || ack.ReasonCode != want || v == 5 && ack.Properties.ReasonString != codeNoLeader.Reason {
				t.Errorf("refused with %s, want 0x%x", describe(ack), want)
			}
		}
		if n := value(t, b.metrics.early); n != 2 {
			t.Errorf("%v clients were let in early, want 2", n)
		}
		if n, all := l.connected(); n+all != 0 {
			t.Errorf("the shard knows of %d sessions without having a leader", all)
		}
		l.lead()
		eventually(t, "the shard knows the two, and neither of those who were refused as connected", func() bool {
			n, _ := l.connected()
			return n == 2 && b.sessions.get("sub").reference().Epoch > 0 && b.sessions.get("other").reference().Epoch > 0
		})
		sub.ping()
		other.publish(pub{topic: "a/b", payload: "again"})
		if pk := sub.read(); string(pk.Payload) != "again" {
			t.Errorf("got %s", describe(pk))
		}
		for _, c := range []*client{sub, other} {
			c.send([]byte{0xE0, 0})
			c.closed(0)
		}
		eventually(t, "the shard knows that they have left", func() bool { n, _ := l.connected(); return n == 0 })
	})
}

// TestAnEarlyClientThatHasLeftLeavesNothing: by the time its shard answers it is gone.
func TestAnEarlyClientThatHasLeftLeavesNothing(t *testing.T) {
	l := newLand(t, "n0.00000001")
	b := l.server[0]
	l.lose()
	for range 2 { // the second takes the place of the first
		c, _ := dial(t, b, 5, "c", connectOptions{})
		defer c.Close()
	}
	c, _ := dial(t, b, 5, "other", connectOptions{})
	c.send([]byte{0xE0, 0})
	c.closed(0)
	eventually(t, "one connection is left", func() bool { return len(b.all()) == 1 })
	l.lead()
	eventually(t, "the shard has the one that is connected", func() bool {
		n, all := l.connected()
		return n == 1 && all == 1 && b.sessions.get("c").reference().Epoch > 0
	})
}

// TestOfTwoEarlyClientsOnTwoNodesTheLaterRemains, in whatever order their shard hears of
// them when it has a leader.
func TestOfTwoEarlyClientsOnTwoNodesTheLaterRemains(t *testing.T) {
	for _, order := range [][2]int{{0, 1}, {1, 0}} {
		l := newLand(t, "n0.00000001", "n1.00000002")
		l.lose()
		earlier, _ := dial(t, l.server[order[0]], 5, "c", connectOptions{})
		later, _ := dial(t, l.server[order[1]], 5, "c", connectOptions{})
		earlier.ping() // both are served, as on both sides of a partition
		later.ping()
		l.lead()
		eventually(t, "the later one is left, and its node has the session", func() bool {
			l.turn.Lock()
			owners := l.state.Owners()
			l.turn.Unlock()
			return len(owners) == 1 && owners[0].Node == []string{"n0.00000001", "n1.00000002"}[order[1]] &&
				len(l.server[order[0]].all()) == 0 && len(l.server[order[1]].all()) == 1
		})
		earlier.closed(packets.ErrSessionTakenOver.Code)
		later.ping()
	}
}

// TestAnEarlyClientUnderAnothersIDIsClosed: whose session it is, only the shard knows.
func TestAnEarlyClientUnderAnothersIDIsClosed(t *testing.T) {
	l := newLand(t, "n0.00000001")
	own := session.Connect{Client: "c", Identity: "somebody else", Durable: true, Expiry: 3600e6}
	l.apply(session.AppendBatch(nil, "n9.00000009", 1, 1, [][]byte{own.Append(nil)}))
	l.lose()
	c, _ := dial(t, l.server[0], 5, "c", connectOptions{})
	c.ping()
	l.lead()
	c.closed(packets.ErrNotAuthorized.Code)
	if n, all := l.connected(); n != 1 || all != 1 {
		t.Errorf("%d of %d sessions are connected, want the one that was there", n, all)
	}
}
