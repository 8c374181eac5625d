package pubsub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/cluster/mux"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is generous: the machine may be busy.
const patience = 30 * time.Second

// fleet is hubs on real connections in one process.
type fleet struct {
	t     testing.TB
	nodes []*testNode
	shard solo // led by the first node, reached by all

	mu    sync.Mutex
	addrs map[string]string
}

// testNode is one of them; what is delivered to its clients is recorded.
type testNode struct {
	f   *fleet
	id  string
	mux *mux.Mux
	hub *Hub
	cut atomic.Bool              // nothing leaves or enters
	far atomic.Pointer[testNode] // the one that it does not reach
	mu  sync.Mutex
	got []string

	queued, hints, fenced []string
	rechecks              int
	strayed               []telemetry.ShardID

	hold chan struct{} // Deliver waits for it when it is not nil
}

func newFleet(t testing.TB, n int) *fleet {
	f := &fleet{t: t, addrs: map[string]string{}, shard: solo{state: session.New()}}
	for i := range n {
		f.nodes = append(f.nodes, &testNode{f: f, id: fmt.Sprintf("n%d.0000000%d", i, i+1)})
	}
	for _, n := range f.nodes {
		n.start(1)
	}
	t.Cleanup(func() {
		for _, n := range f.nodes {
			n.stop()
		}
	})
	for _, n := range f.nodes {
		n.synced()
	}
	return f
}

// Resolve implements mux.Resolver.
func (f *fleet) Resolve(peer string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a, ok := f.addrs[peer]; ok {
		return a, nil
	}
	return "", fmt.Errorf("nobody knows %s", peer)
}

func (n *testNode) start(epoch uint64) {
	t := n.f.t
	t.Helper()
	var err error
	log := slog.New(slog.DiscardHandler)
	n.mux, err = mux.New(log, nil, mux.Config{Self: n.id, Listen: "127.0.0.1:0", Secret: []byte("0123456789abcdef")}, n.f)
	if err != nil {
		t.Fatal(err)
	}
	n.f.mu.Lock()
	n.f.addrs[n.id] = n.mux.Addr().String()
	n.f.mu.Unlock()
	hub, err := New(log, prometheus.NewRegistry(), Config{Self: n.id, Epoch: epoch}, n, reached{n})
	if err != nil {
		t.Fatal(err)
	}
	n.hub = hub
	if n == n.f.nodes[0] {
		n.f.shard.hub = hub
		n.f.shard.mu.Lock()
		hub.Lead(0, epoch, n.f.shard.state.Filters())
		n.f.shard.mu.Unlock()
	}
	n.mux.Handle(mux.KindApplication+FrameKick, func(_ string, _ uint32, body []byte, reply func([]byte, error)) {
		hub.AcceptKick(body, reply)
	})
	n.mux.Handle(mux.KindApplication+FramePull, func(from string, _ uint32, body []byte, reply func([]byte, error)) {
		hub.AcceptPull(from, body, reply)
	})
	n.mux.Handle(mux.KindApplication+FrameForward, func(from string, _ uint32, body []byte, reply func([]byte, error)) {
		hub.AcceptForward(from, body, reply)
	})
	n.hub.Start(n)
	for _, other := range n.f.nodes {
		if other.id != n.id {
			n.mux.Connect(other.id)
		}
	}
}

func (n *testNode) stop() {
	if n.mux == nil {
		return
	}
	if err := errors.Join(n.mux.Close(), n.hub.Close()); err != nil {
		n.f.t.Error(err)
	}
	n.mux = nil
}

func (n *testNode) Peers() []string {
	var out []string
	for _, other := range n.f.nodes {
		out = append(out, other.id)
	}
	return out
}

func (n *testNode) Connected(peer string) bool {
	if !n.reaches(peer) {
		return false
	}
	n.mux.Connect(peer)
	return n.mux.Connected(peer)
}

func (n *testNode) reaches(peer string) bool {
	for _, other := range n.f.nodes {
		if other.id == peer && (other.cut.Load() || n.far.Load() == other) {
			return false
		}
	}
	return !n.cut.Load()
}

func (n *testNode) Call(ctx context.Context, peer string, frame int, body []byte) ([]byte, error) {
	if !n.reaches(peer) {
		return nil, errors.New("the network is cut")
	}
	return n.mux.Call(ctx, peer, mux.KindApplication+mux.Kind(frame), 0, body)
}

// reached is the shard as one node reaches it: not at all when it is cut off.
type reached struct{ n *testNode }

var errCut = errors.New("the network is cut")

func (r reached) reaches() bool {
	return r.n == r.n.f.nodes[0] || r.n.reaches(r.n.f.nodes[0].id)
}

func (r reached) Count() uint32 { return 1 }

func (r reached) Submit(id telemetry.ShardID, batch []byte, done func([]byte, error)) {
	if !r.reaches() {
		done(nil, errCut)
		return
	}
	r.n.f.shard.Submit(id, batch, done)
}

func (r reached) Fetch(ctx context.Context, id telemetry.ShardID, ref session.Ref, from uint64) ([]session.Item, uint64, error) {
	if !r.reaches() {
		return nil, 0, errCut
	}
	return r.n.f.shard.Fetch(ctx, id, ref, from)
}

func (r reached) Fenced(err error) bool { return r.n.f.shard.Fenced(err) }

func (r reached) Settled(ctx context.Context, id telemetry.ShardID) error {
	return r.n.f.nodes[0].hub.Settled(ctx, id)
}

func (r reached) Retained(ctx context.Context, filter string) ([]*session.Message, error) {
	return r.n.f.shard.Retained(ctx, filter)
}

func (r reached) Leads(telemetry.ShardID) bool { return r.n == r.n.f.nodes[0] }

// Queued implements Local.
func (n *testNode) Queued(ref session.Ref, it *session.Item, last uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if it == nil {
		n.hints = append(n.hints, fmt.Sprintf("%s@%d up to %d", ref.Client, ref.Epoch, last))
		return
	}
	n.queued = append(n.queued, fmt.Sprintf("%s@%d %d:%s", ref.Client, ref.Epoch, it.Seq, it.Message.Payload))
}

// Fence implements Local.
func (n *testNode) Fence(ref session.Ref) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fenced = append(n.fenced, fmt.Sprintf("%s@%d", ref.Client, ref.Epoch))
}

// Will implements Local.
func (n *testNode) Will(_ string, m *session.Message, done func(error)) {
	n.hub.Publish(m, session.Key{}, done)
}

// Recheck implements Local.
func (n *testNode) Recheck(telemetry.ShardID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rechecks++
}

// Strayed implements Local.
func (n *testNode) Strayed(list []session.Astray) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range list {
		n.strayed = append(n.strayed, a.Shard)
	}
}

func (n *testNode) seen(list *[]string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(*list)
}

// Deliver implements Local.
func (n *testNode) Deliver(m *session.Message, groups []string) {
	n.mu.Lock()
	hold := n.hold
	n.mu.Unlock()
	if hold != nil {
		<-hold
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	text := string(m.Payload)
	for _, g := range groups {
		text += " " + g
	}
	n.got = append(n.got, text)
}

func (n *testNode) received() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.got)
}

func (n *testNode) synced() {
	n.f.t.Helper()
	eventually(n.f.t, n.id+" has everybody's announcements", func() bool {
		for _, other := range n.f.nodes {
			if p := n.hub.peer(other.id); other.id != n.id && (p == nil || !p.synced.Load()) {
				return false
			}
		}
		return true
	})
}

func (n *testNode) subscribe(filter string) {
	n.f.t.Helper()
	ctx, cancel := context.WithTimeout(n.f.t.Context(), patience)
	defer cancel()
	if err := n.hub.Subscribe(filter)(ctx); err != nil {
		n.f.t.Fatalf("%s: announce %s: %v", n.id, filter, err)
	}
}

func (n *testNode) publish(topic, payload string) {
	n.hub.Publish(&session.Message{Topic: topic, Payload: []byte(payload)}, session.Key{}, func(error) {})
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func TestAPublishRightAfterASubscriptionReachesItFromEveryNode(t *testing.T) {
	f := newFleet(t, 3)
	for i := range 20 {
		n := f.nodes[i%3]
		topic := fmt.Sprintf("a/%d", i)
		n.subscribe(topic)
		for _, from := range f.nodes {
			from.publish(topic, topic+" from "+from.id)
		}
		eventually(t, topic+" arrives three times", func() bool {
			count := 0
			for _, got := range n.received() {
				if len(got) > len(topic) && got[:len(topic)+1] == topic+" " {
					count++
				}
			}
			return count == 3
		})
	}
}

func TestMessagesOfOneNodeStayInOrderAndComeOnce(t *testing.T) {
	f := newFleet(t, 2)
	f.nodes[1].subscribe("o/#")
	const many = 5000
	for i := range many {
		f.nodes[0].publish("o/x", fmt.Sprint(i))
	}
	eventually(t, "all have arrived", func() bool { return len(f.nodes[1].received()) >= many })
	for i, got := range f.nodes[1].received() {
		if got != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, got)
		}
	}
}

// TestSubscribersAndPublishersDoNotWaitForEachOther: one has the hub's lock and wants that
// of the routes while another one has that and asks which nodes can be reached.
func TestSubscribersAndPublishersDoNotWaitForEachOther(t *testing.T) {
	f := newFleet(t, 2)
	f.nodes[1].subscribe("there/#")
	const many = 3000
	var wg sync.WaitGroup
	n := f.nodes[0]
	for range 2 {
		wg.Go(func() {
			for range many {
				n.hub.Subscribe("here/#")
				n.hub.Unsubscribe("here/#")
			}
		})
		wg.Go(func() {
			for range many {
				n.publish("there/x", "x")
			}
		})
	}
	late := time.AfterFunc(patience, func() { panic("subscribers and publishers wait for each other") }) // such a hub cannot be closed
	wg.Wait()
	late.Stop()
}

func TestASharedGroupHasOneReceiverInTheWholeCluster(t *testing.T) {
	f := newFleet(t, 3)
	const key = "$share/g/s/+"
	f.nodes[0].subscribe(key)
	f.nodes[1].subscribe(key)
	f.nodes[1].subscribe(key)
	const many = 600
	for i := range many {
		f.nodes[i%3].publish("s/x", fmt.Sprint(i))
	}
	count := func(n *testNode) (c int) {
		for _, got := range n.received() {
			if len(got) > len(key) && got[len(got)-len(key):] == key {
				c++
			}
		}
		return c
	}
	eventually(t, "every message has found a member", func() bool { return count(f.nodes[0])+count(f.nodes[1]) >= many })
	one, two := count(f.nodes[0]), count(f.nodes[1])
	if one+two != many || count(f.nodes[2]) != 0 || one < many/6 || two < many/3 {
		t.Fatalf("one member got %d, two members %d of %d", one, two, many)
	}
	f.nodes[1].hub.Unsubscribe(key)
	f.nodes[1].hub.Unsubscribe(key)
	f.nodes[2].subscribe("end") // all nodes know by then what was announced before
	eventually(t, "the members are known to be gone", func() bool {
		r := f.nodes[2].hub.routes.find("s/x", 0, f.nodes[2].hub.reachable)
		return len(r.peers) == 1
	})
}

func TestANodeThatWasAwayLearnsWhatChangedMeanwhile(t *testing.T) {
	f := newFleet(t, 3)
	f.nodes[0].subscribe("before")
	f.nodes[2].cut.Store(true)
	start := time.Now()
	f.nodes[0].subscribe("meanwhile") // returns when the lease of the lost node is over
	if d := time.Since(start); d < leaseMax/4 {
		t.Errorf("announced after %v, while the lost node could still route by what it knew", d)
	}
	f.nodes[0].hub.Unsubscribe("before")
	f.nodes[2].cut.Store(false)
	eventually(t, "the node has caught up", func() bool {
		r := f.nodes[2].hub.routes
		return len(r.find("meanwhile", 0, f.nodes[2].hub.reachable).peers) == 1 && len(r.find("before", 0, f.nodes[2].hub.reachable).peers) == 0
	})
	f.nodes[2].publish("meanwhile", "x")
	eventually(t, "the message arrives", func() bool { return slices.Contains(f.nodes[0].received(), "x") })
}

func TestARestartedNodeBeginsWithoutItsOldFilters(t *testing.T) {
	f := newFleet(t, 2)
	f.nodes[1].subscribe("old")
	f.nodes[1].stop()
	f.nodes[1].start(2)
	f.nodes[1].synced()
	f.nodes[1].subscribe("new")
	r := f.nodes[0].hub.routes
	if len(r.find("old", 0, f.nodes[0].hub.reachable).peers) != 0 || len(r.find("new", 0, f.nodes[0].hub.reachable).peers) != 1 {
		t.Fatal("the index still has what the node's earlier process announced")
	}
}

func TestASubscriberNodeThatStandsStillBoundsWhatWaitsForIt(t *testing.T) {
	f := newFleet(t, 2)
	n := f.nodes[1]
	n.subscribe("big")
	release := make(chan struct{})
	n.mu.Lock()
	n.hold = release
	n.mu.Unlock()
	payload := string(make([]byte, 64<<10))
	for range 2 * outboxBytesDefault / len(payload) {
		f.nodes[0].publish("big", payload) // returns at once
	}
	p := f.nodes[0].hub.peer(n.id)
	p.mu.Lock()
	waiting := p.outbox.Size()
	p.mu.Unlock()
	close(release)
	if waiting > outboxBytesDefault {
		t.Errorf("%d bytes wait for one peer, at most %d may", waiting, outboxBytesDefault)
	}
}

func TestTombstonesArePrunedAndAPullerInTheMiddleStillLearnsAll(t *testing.T) {
	b := newBoard(time.Now, func(string) bool { return true })
	b.open("n", 1, nil)
	r := newRoutes("self")
	known := map[string]mark{}
	step := func() bool {
		complete, _, err := r.decodeNews(b.newsFor(known), time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		known = r.marks()
		return complete
	}
	for i := range 3 * newsBytesMax / 32 {
		b.set("n", 1, []change{{fmt.Sprintf("filter/%08d", i), 1}})
	}
	if step() {
		t.Fatal("one answer carried everything, the bound is not kept")
	}
	m, _ := b.set("n", 1, []change{{"late", 1}})
	for i := range 2 * newsBytesMax / 32 { // more than the bound of tombstones
		b.set("n", 1, []change{{fmt.Sprintf("filter/%08d", i), 0}})
	}
	for range 100 {
		if step() {
			break
		}
	}
	if !known["n"].covers(m) {
		t.Fatalf("the puller is at %+v, not behind %+v", known["n"], m)
	}
	if want := 3*newsBytesMax/32 - 2*newsBytesMax/32 + 1; r.index.Len() != want {
		t.Fatalf("%d filters are known, want %d", r.index.Len(), want)
	}
}

// connect takes a durable session on a node.
func (n *testNode) connect(client string) session.Connected {
	n.f.t.Helper()
	ctx, cancel := context.WithTimeout(n.f.t.Context(), patience)
	defer cancel()
	got, err := n.hub.Connect(ctx, session.Connect{Client: client, Durable: true, Expiry: int64(time.Hour / time.Microsecond), QueueMax: 100, QueueBytes: 1 << 20}, nil)
	if err != nil {
		n.f.t.Fatalf("%s: connect %s: %v", n.id, client, err)
	}
	return got
}

func (n *testNode) change(ref session.Ref, filter string) {
	n.f.t.Helper()
	ctx, cancel := context.WithTimeout(n.f.t.Context(), patience)
	defer cancel()
	if err := n.hub.Change(ctx, ref, []session.Subscription{{Filter: filter, QoS: 1}}, nil); err != nil {
		n.f.t.Fatalf("%s: subscribe %s: %v", n.id, filter, err)
	}
}

// send publishes with QoS 1 and waits for the outcome.
func (n *testNode) send(topic, payload string) error {
	n.f.t.Helper()
	done := make(chan error, 1)
	n.hub.Publish(&session.Message{Topic: topic, Payload: []byte(payload), QoS: 1}, session.Key{}, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		n.f.t.Fatalf("%s: publish on %s has no outcome", n.id, topic)
		return nil
	}
}

func TestADurableSessionIsServedWhereverItsClientIs(t *testing.T) {
	f := newFleet(t, 3)
	one := f.nodes[1].connect("c")
	ref := session.Ref{Client: "c", Epoch: one.Epoch}
	f.nodes[1].change(ref, "a/+")
	for i, from := range f.nodes {
		if err := from.send("a/b", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the node of the client has all three", func() bool { return len(f.nodes[1].seen(&f.nodes[1].queued)) == 3 })
	two := f.nodes[2].connect("c") // elsewhere, while it is connected
	if !two.Present || two.Last != 3 || two.First != 1 || two.Sent != 3 {
		t.Fatalf("resumed with %+v", two)
	}
	if got := f.nodes[1].seen(&f.nodes[1].fenced); !slices.Contains(got, fmt.Sprintf("c@%d", one.Epoch)) {
		t.Fatalf("the node that had the session was told %v", got)
	}
	f.nodes[1].hub.Ack(ref, 1) // too late: fenced
	next := session.Ref{Client: "c", Epoch: two.Epoch}
	fetched := make(chan string, 1)
	f.nodes[2].hub.Fetch(next, 1, func(items []session.Item, last uint64) {
		text := fmt.Sprint(last)
		for _, it := range items {
			text += " " + string(it.Message.Payload)
		}
		fetched <- text
	})
	if got := <-fetched; got != "3 0 1 2" {
		t.Fatalf("fetched %q", got)
	}
	if err := f.nodes[0].send("a/b", "3"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new node has the next", func() bool {
		return slices.Contains(f.nodes[2].seen(&f.nodes[2].queued), fmt.Sprintf("c@%d 4:3", two.Epoch))
	})
}

func TestANodeThatIsCutOffAcknowledgesNothing(t *testing.T) {
	f := newFleet(t, 3)
	lost := f.nodes[2]
	lost.cut.Store(true)
	time.Sleep(leaseMax + 100*time.Millisecond) // its leases run out
	outcome := make(chan error, 1)
	lost.hub.Publish(&session.Message{Topic: "a/b", Payload: []byte("late"), QoS: 1}, session.Key{}, func(err error) { outcome <- err })
	ref := session.Ref{Client: "c", Epoch: f.nodes[1].connect("c").Epoch}
	f.nodes[1].change(ref, "a/+") // nobody else can know
	select {
	case err := <-outcome:
		t.Fatalf("a publish through a node without leases was decided: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	lost.cut.Store(false)
	if err := <-outcome; err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was held back reaches the session", func() bool {
		return slices.Contains(f.nodes[1].seen(&f.nodes[1].queued), fmt.Sprintf("c@%d 1:late", ref.Epoch))
	})
	eventually(t, "the node looks after its clients", func() bool {
		lost.mu.Lock()
		defer lost.mu.Unlock()
		return lost.rechecks > 0
	})
}

func TestALostProcessIsGivenUpAndALaterOneIsNot(t *testing.T) {
	f := newFleet(t, 2)
	h := f.nodes[0].hub
	since := time.Now()
	if h.Gone(session.Owner{Node: f.nodes[1].id, Epoch: 1}, since) {
		t.Fatal("a process that asks for news is given up")
	}
	f.nodes[1].stop()
	f.nodes[1].start(2)
	f.nodes[1].synced()
	eventually(t, "the earlier process is given up", func() bool { return h.Gone(session.Owner{Node: f.nodes[1].id, Epoch: 1}, since) })
	if h.Gone(session.Owner{Node: f.nodes[1].id, Epoch: 2}, since) {
		t.Fatal("the later process is given up")
	}
	f.nodes[1].stop()
	h.Ended(f.nodes[1].id)
	eventually(t, "a process that was seen to end is given up", func() bool { return h.Gone(session.Owner{Node: f.nodes[1].id, Epoch: 2}, since) })
}

func TestAWillIsSentByTheLeaderAndOnce(t *testing.T) {
	f := newFleet(t, 2)
	f.nodes[1].subscribe("will")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := f.nodes[1].hub.Connect(ctx, session.Connect{Client: "w", Will: &session.Message{Topic: "will", Payload: []byte("gone")}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.nodes[1].hub.Disconnect(session.Ref{Client: "w", Epoch: got.Epoch}, true, 0, 0, 0)
	eventually(t, "the will arrives", func() bool { return slices.Contains(f.nodes[1].received(), "gone") })
	eventually(t, "the will is done with", func() bool {
		f.shard.mu.Lock()
		defer f.shard.mu.Unlock()
		return len(f.shard.state.Wills()) == 0
	})
	if n := len(f.nodes[1].received()); n != 1 {
		t.Fatalf("the will came %d times", n)
	}
}

func TestADeposedLeaderGivesNoLease(t *testing.T) {
	leads := true
	b := newBoard(time.Now, func(string) bool { return leads })
	b.open("s:3", 7, nil)
	r := newRoutes("self")
	until := time.Now().Add(time.Hour)
	if _, _, err := r.decodeNews(b.newsFor(nil), until); err != nil {
		t.Fatal(err)
	}
	if got := r.sources["s:3"].until; !got.Equal(until) {
		t.Fatalf("a leader's lease ends at %v", got)
	}
	leads = false // it has not been told yet
	if _, _, err := r.decodeNews(b.newsFor(r.marks()), until.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := r.sources["s:3"].until; !got.Equal(until) {
		t.Fatalf("a deposed leader renewed the lease until %v", got)
	}
}

// A peer whose pull waits is answered the moment a shard has a new leader: with all
// of its filters, or it would decide by an index that is complete and empty.
func TestANewLeaderIsFirstHeardOfWithItsFilters(t *testing.T) {
	b := newBoard(time.Now, func(string) bool { return true })
	var news []byte
	b.take(&pull{peer: "n1.00000001", known: map[string]mark{}, until: time.Now().Add(time.Hour), reply: func(p []byte) { news = p }})
	own := b.open("s:3", 7, []change{{"devices/d/commands", 1}})
	if news == nil {
		t.Fatal("the pull was not answered")
	}
	r := newRoutes("n1.00000001")
	if _, _, err := r.decodeNews(news, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := r.find("devices/d/commands", 0, func(string, bool) bool { return true }); len(got.shards) != 1 {
		t.Errorf("a message goes to %v, want shard 3", got)
	}
	if got := r.marks()["s:3"]; got != own {
		t.Errorf("the peer knows %v, the board has %v", got, own)
	}
}
