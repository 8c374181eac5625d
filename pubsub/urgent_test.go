package pubsub

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

const (
	bulkTopic   = "devices/d/telemetry"
	urgentTopic = "devices/d/commands/x"
)

// mixed is the order in which bulk and urgent messages leave: b0, b1 ... and u0, u1 ...,
// three urgent ones for one of bulk while both wait.
func mixed(bulk, urgent, from int) (out []string) {
	for u := 0; u < urgent || from < bulk; {
		for range 3 {
			if u < urgent {
				out = append(out, fmt.Sprintf("u%d", u))
				u++
			}
		}
		if from < bulk {
			out = append(out, fmt.Sprintf("b%d", from))
			from++
		}
	}
	return out
}

// TestCommandsPassBulkOnTheWayToAPeer: the peer stands still in the middle of a frame of
// telemetry, much more waits for it, and then there are commands.
func TestCommandsPassBulkOnTheWayToAPeer(t *testing.T) {
	f := newFleet(t, 2)
	n := f.nodes[1]
	n.subscribe("devices/#")
	release := make(chan struct{})
	n.mu.Lock()
	n.hold = release
	n.mu.Unlock()
	from := f.nodes[0]
	p := from.hub.peer(n.id)
	from.publish(bulkTopic, "b0")
	eventually(t, "the first frame is under way", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.outbox.Len() == 0
	})
	const bulk, urgent = 2000, 200 // nothing of it leaves before the first frame is answered
	for i := 1; i < bulk; i++ {
		from.publish(bulkTopic, fmt.Sprintf("b%d", i))
	}
	for i := range urgent {
		from.publish(urgentTopic, fmt.Sprintf("u%d", i))
	}
	close(release)
	eventually(t, "all have arrived", func() bool { return len(n.received()) >= bulk+urgent })
	want := append([]string{"b0"}, mixed(bulk, urgent, 1)...)
	if got := n.received(); !slices.Equal(got, want) {
		t.Errorf("order of arrival %v ...\nwant %v ...", got[:20], want[:20])
	}
}

// TestBulkForAPeerLeavesRoomForCommands: as much telemetry as may waits for a peer that
// stands still, what is beyond is dropped, and commands still find room.
func TestBulkForAPeerLeavesRoomForCommands(t *testing.T) {
	f := newFleet(t, 2)
	n := f.nodes[1]
	n.subscribe("devices/#")
	release := make(chan struct{})
	n.mu.Lock()
	n.hold = release
	n.mu.Unlock()
	from := f.nodes[0]
	payload := string(make([]byte, 64<<10))
	for range 2 * outboxBytesDefault / len(payload) {
		from.publish(bulkTopic, payload)
	}
	p := from.hub.peer(n.id)
	p.mu.Lock()
	before := p.outbox.Size()
	p.mu.Unlock()
	if before > outboxBytesDefault*3/4 {
		t.Errorf("%d bytes of bulk wait, at most %d may", before, outboxBytesDefault*3/4)
	}
	const urgent = 1000
	for i := range urgent {
		from.publish(urgentTopic, fmt.Sprintf("u%d", i))
	}
	close(release)
	eventually(t, "the last command has arrived", func() bool { return slices.Contains(n.received(), fmt.Sprintf("u%d", urgent-1)) })
	next := 0
	for _, got := range n.received() {
		if got[0] == 'u' {
			if got != fmt.Sprintf("u%d", next) {
				t.Fatalf("command %s came, want u%d", got, next)
			}
			next++
		}
	}
}

// gated is one shard without a log that takes its batches when the gate is open.
type gated struct {
	*solo
	mu     sync.Mutex
	gate   chan struct{}            // closed: open
	passes func(origin string) bool // whose batches need no gate; nil: nobody's
	sent   map[string]int           // by origin; unless it is nil, every second answer is lost after the batch was applied
	each   time.Duration            // a batch takes so long
}

func (g *gated) Submit(id telemetry.ShardID, batch []byte, done func([]byte, error)) {
	origin := wire.NewReader(batch).String()
	g.mu.Lock()
	gate := g.gate
	if g.passes != nil && g.passes(origin) {
		gate = nil
	}
	lost := false
	if g.sent != nil {
		g.sent[origin]++
		lost = g.sent[origin]%2 == 1
	}
	g.mu.Unlock()
	go func() {
		if gate != nil {
			<-gate
		}
		time.Sleep(g.each)
		g.solo.Submit(id, batch, func(answer []byte, err error) {
			if lost {
				answer, err = nil, errAnswerLost
			}
			done(answer, err)
		})
	}()
}

var errAnswerLost = errors.New("the answer was lost")

// shut lets nothing in until open is called.
func (g *gated) shut() (open func()) { return g.shutExcept(nil) }

// shutExcept lets only the batches of some origins in until open is called.
func (g *gated) shutExcept(passes func(origin string) bool) (open func()) {
	gate := make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gate, g.passes = gate, passes
	return func() { close(gate) }
}

// slowHub is a hub of one node whose only shard can be made to stand still, with a
// durable session that has subscribed to everything.
func slowHub(t testing.TB) (*Hub, *gated, session.Ref) {
	t.Helper()
	g := &gated{solo: &solo{state: session.New()}}
	g.shut()()
	h, err := New(slog.New(slog.DiscardHandler), nil, Config{Self: "n0.00000001", Epoch: 1}, nobody{}, g)
	if err != nil {
		t.Fatal(err)
	}
	g.hub = h
	h.onBeat = g.beat
	h.Start(deaf{})
	h.Lead(0, 1, nil)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	got, err := h.Connect(t.Context(), session.Connect{Client: "app", Durable: true, Expiry: 3600e6, QueueMax: 100_000, QueueBytes: 256 << 20}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ref := session.Ref{Client: "app", Epoch: got.Epoch}
	if err := h.Change(t.Context(), ref, []session.Subscription{{Filter: "#", QoS: 1}}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the shard's lease is held", func() bool {
		h.waitMu.Lock()
		defer h.waitMu.Unlock()
		return h.isFresh(time.Now())
	})
	return h, g, ref
}

// TestCommandsPassBulkOnTheWayIntoAShard: the shard stands still with a batch of
// telemetry, and much more waits for it. Commands, and what is done with sessions, are
// committed and acknowledged meanwhile, and each topic is in the order of its publishes.
func TestCommandsPassBulkOnTheWayIntoAShard(t *testing.T) {
	h, g, ref := slowHub(t)
	const bulk, urgent = 900, 90
	var mu sync.Mutex
	var acked []string
	publish := func(topic, payload string) {
		h.Publish(&session.Message{Topic: topic, Payload: []byte(payload), QoS: 1}, session.Key{}, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				payload = err.Error()
			}
			acked = append(acked, payload)
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	open := g.shutExcept(func(origin string) bool { return !strings.HasSuffix(origin, streamNames[ofBulk]) })
	l := h.lane(0)
	waiting := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.streams[ofBulk].queue)
	}
	publish(bulkTopic, "b0")
	eventually(t, "the first batch is under way", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.streams[ofBulk].busy && len(l.streams[ofBulk].queue) == 0
	})
	for i := 1; i < bulk; i++ {
		publish(bulkTopic, fmt.Sprintf("b%d", i))
	}
	eventually(t, "bulk waits for the shard", func() bool { return waiting() == bulk-1 }) // and not for the lease, which a busy machine may let end
	for i := range urgent {
		publish(urgentTopic, fmt.Sprintf("u%d", i))
	}
	if err := h.Change(t.Context(), ref, []session.Subscription{{Filter: "more/#", QoS: 1}}, nil); err != nil {
		t.Fatalf("a subscription while bulk stands still: %v", err)
	}
	eventually(t, "all commands are acknowledged while bulk stands still", func() bool { return count() == urgent })
	if n := waiting(); n != bulk-1 {
		t.Errorf("%d of bulk wait, want all %d", n, bulk-1)
	}
	open()
	eventually(t, "all are acknowledged", func() bool { return count() == bulk+urgent })
	var want []string
	for i := range urgent {
		want = append(want, fmt.Sprintf("u%d", i))
	}
	for i := range bulk {
		want = append(want, fmt.Sprintf("b%d", i))
	}
	if !slices.Equal(acked, want) {
		t.Errorf("acknowledged in the order %v ...\nwant %v ...", acked[:urgent+10], want[:urgent+10])
	}
	var queued []string
	for last := uint64(len(want)); uint64(len(queued)) < last; {
		items, _, err := g.Fetch(t.Context(), 0, ref, uint64(len(queued))+1)
		if err != nil || len(items) == 0 {
			t.Fatalf("fetch behind %d: %d items, %v", len(queued), len(items), err)
		}
		for i := range items {
			queued = append(queued, string(items[i].Message.Payload))
		}
	}
	if !slices.Equal(queued, want) {
		t.Errorf("queued in the order %v ...\nwant %v ...", queued[:urgent+10], want[:urgent+10])
	}
}

// TestStreamsOfALaneRepeatNothing: the answers of all three streams are lost again and
// again, and every batch is sent again under its number. Everything is applied once.
func TestStreamsOfALaneRepeatNothing(t *testing.T) {
	h, g, ref := slowHub(t)
	g.mu.Lock()
	g.sent = map[string]int{}
	g.mu.Unlock()
	const each = 50
	acked := make(chan error, 2*each)
	for i := range each {
		for _, topic := range []string{bulkTopic, urgentTopic} {
			h.Publish(&session.Message{Topic: topic, Payload: []byte(fmt.Sprint(i)), QoS: 1}, session.Key{}, func(err error) { acked <- err })
		}
		if i%10 == 0 {
			h.Attach(ref)
		}
	}
	for range 2 * each {
		if err := <-acked; err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "nothing is under way", h.idle)
	items, last, err := g.Fetch(t.Context(), 0, ref, 1)
	if err != nil || last != 2*each || len(items) != 2*each {
		t.Fatalf("%d messages are queued up to number %d, %v; want each of %d once", len(items), last, err, 2*each)
	}
	next := map[string]int{}
	for i := range items {
		m := items[i].Message
		if want := fmt.Sprint(next[m.Topic]); string(m.Payload) != want {
			t.Fatalf("number %d on %s is %s, want %s", items[i].Seq, m.Topic, m.Payload, want)
		}
		next[m.Topic]++
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range streamNames {
		if n := g.sent[h.cfg.Self+name]; n < 2 {
			t.Errorf("batches of %q were sent %d times, want twice at least", h.cfg.Self+name, n)
		}
	}
}

// TestBulkForAShardLeavesRoomForCommands: a shard that stands still refuses telemetry at
// three quarters of what may wait for it, and takes commands and sessions.
func TestBulkForAShardLeavesRoomForCommands(t *testing.T) {
	h, g, _ := slowHub(t)
	open := g.shut()
	payload := make([]byte, 512<<10)
	bulk := make(chan error, 100)
	for range 2 * laneBytesMax / len(payload) {
		h.Publish(&session.Message{Topic: bulkTopic, Payload: payload, QoS: 1}, session.Key{}, func(err error) { bulk <- err })
	}
	command := make(chan error, 1)
	h.Publish(&session.Message{Topic: urgentTopic, Payload: payload, QoS: 1}, session.Key{}, func(err error) { command <- err })
	open()
	if err := <-command; err != nil {
		t.Errorf("a command behind as much telemetry as may wait: %v", err)
	}
	refused := 0
	for range 2 * laneBytesMax / len(payload) {
		if err := <-bulk; err != nil {
			refused++
		}
	}
	if refused == 0 {
		t.Error("twice as much telemetry as may wait, and none was refused")
	}
}
