package session

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-iot/sluice/internal/wire"
)

const second = 1_000_000

// rig applies operations to a state as one node's batches do.
type rig struct {
	t   testing.TB
	st  *State
	now int64
	seq uint64
}

func newRig(t testing.TB) *rig { return &rig{t: t, st: New(), now: 1000 * second} }

func (r *rig) do(ops ...[]byte) []Answer {
	r.t.Helper()
	r.seq++
	answers, err := DecodeAnswers(r.st.Apply(r.now, AppendBatch(nil, "n0", 1, r.seq, ops)))
	if err != nil || len(answers) != len(ops) {
		r.t.Fatalf("%d answers to %d operations: %v", len(answers), len(ops), err)
	}
	return answers
}

func (r *rig) ok(ops ...[]byte) {
	r.t.Helper()
	for i, a := range r.do(ops...) {
		if a.Status != StatusOK {
			r.t.Fatalf("operation %d: %v", i, a.Status.Err())
		}
	}
}

func (r *rig) connect(c Connect) Connected {
	r.t.Helper()
	if c.Node == "" {
		c.Node, c.NodeEpoch = "n0", 1
	}
	if c.QueueMax == 0 {
		c.QueueMax, c.QueueBytes, c.QueueAge = 100, 1<<20, 3600*second
	}
	a := r.do(c.Append(nil))[0]
	if a.Status != StatusOK {
		r.t.Fatalf("connect %s: %v", c.Client, a.Status.Err())
	}
	got, err := DecodeConnected(a.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return got
}

func durable(client string) Connect {
	return Connect{Client: client, Durable: true, Expiry: 3600 * second}
}

func message(topic, payload string) *Message {
	return &Message{Topic: topic, Payload: []byte(payload), QoS: 1}
}

func (r *rig) queued(ref Ref) string {
	r.t.Helper()
	items, _, err := r.st.Fetch(ref, 1, 1000, 1<<20)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, it := range items {
		out = append(out, fmt.Sprintf("%d:%s", it.Seq, it.Message.Payload))
	}
	return strings.Join(out, " ")
}

func TestAQueueKeepsWhatIsNotAcknowledgedInOrder(t *testing.T) {
	r := newRig(t)
	ref := Ref{"c", r.connect(durable("c")).Epoch}
	r.ok(AppendSubscribe(nil, ref, []Subscription{{Filter: "a/+", QoS: 1, ID: 7}, {Filter: "a/b", QoS: 2, ID: 3}}, nil))
	for i := range 4 {
		r.ok(AppendMessage(nil, message("a/b", fmt.Sprint(i)), nil, Key{}, false))
	}
	if got := len(r.st.TakeEffects().Deliveries); got != 4 {
		t.Fatalf("%d deliveries to a connected client, want one per message", got)
	}
	items, last, err := r.st.Fetch(ref, 2, 10, 1<<20)
	if err != nil || last != 4 || len(items) != 3 || !slices.Equal(items[0].IDs, []uint32{3, 7}) || items[0].QoS != 1 {
		t.Fatalf("got %+v, last %d, %v", items, last, err)
	}
	r.ok(AppendAck(nil, ref, 2), AppendAck(nil, ref, 9))
	if got := r.queued(ref); got != "1:0 3:2 4:3" {
		t.Fatalf("queue is %s", got)
	}
	r.ok(AppendDisconnect(nil, ref, false, 0, 60*second, 0))
	r.ok(AppendMessage(nil, message("a/b", "away"), nil, Key{}, false))
	if e := r.st.TakeEffects(); len(e.Deliveries) != 0 {
		t.Fatal("delivered to a client that is away")
	}
	c := r.connect(durable("c"))
	if !c.Present || c.First != 1 || c.Last != 5 || len(c.Subs) != 2 {
		t.Fatalf("resumed with %+v", c)
	}
	next := Ref{"c", c.Epoch}
	if got := r.queued(next); got != "1:0 3:2 4:3 5:away" {
		t.Fatalf("queue is %s", got)
	}
	for _, op := range [][]byte{AppendAck(nil, ref, 1), AppendSubscribe(nil, ref, nil, []string{"a/b"}), AppendDisconnect(nil, ref, true, 0, 0, 0), AppendAttach(nil, ref)} {
		if a := r.do(op)[0]; a.Status != StatusFenced {
			t.Fatalf("the owner before did %v: %v", op, a.Status.Err())
		}
	}
	if got := r.queued(next); got != "1:0 3:2 4:3 5:away" {
		t.Fatalf("a fenced owner changed the queue: %s", got)
	}
}

func TestARepeatedBatchIsAnsweredAndNotApplied(t *testing.T) {
	r := newRig(t)
	ref := Ref{"c", r.connect(durable("c")).Epoch}
	r.ok(AppendSubscribe(nil, ref, []Subscription{{Filter: "#", QoS: 1}}, nil))
	batch := AppendBatch(nil, "n1", 5, 1, [][]byte{AppendMessage(nil, message("a", "x"), nil, Key{}, false)})
	first := r.st.Apply(r.now, batch)
	if again := r.st.Apply(r.now, batch); !bytes.Equal(first, again) {
		t.Fatalf("a repeat was answered %x, first %x", again, first)
	}
	if got := r.queued(ref); got != "1:x" {
		t.Fatalf("queue is %s", got)
	}
	r.st.Apply(r.now, AppendBatch(nil, "n1", 6, 1, [][]byte{AppendMessage(nil, message("a", "y"), nil, Key{}, false)}))
	r.st.Apply(r.now, AppendBatch(nil, "n1", 5, 2, [][]byte{AppendMessage(nil, message("a", "late"), nil, Key{}, false)}))
	if got := r.queued(ref); got != "1:x 2:y" {
		t.Fatalf("queue is %s, a batch of an earlier process must not be applied", got)
	}
}

func TestTheQueueIsBoundedByCountBytesAndAge(t *testing.T) {
	r := newRig(t)
	c := durable("c")
	c.QueueMax, c.QueueBytes, c.QueueAge = 3, 10_000, 100*second
	ref := Ref{"c", r.connect(c).Epoch}
	r.ok(AppendSubscribe(nil, ref, []Subscription{{Filter: "#", QoS: 1}}, nil))
	r.ok(AppendDisconnect(nil, ref, false, 0, 3600*second, 0))
	send := func(m *Message) { r.t.Helper(); r.ok(AppendMessage(nil, m, nil, Key{}, false)) }
	send(message("a", strings.Repeat("x", 9_000)))
	send(message("a", strings.Repeat("y", 9_000)))
	if d := r.st.Counts().Drops; d.Full != 1 {
		t.Fatalf("drops %+v, want one for its bytes", d)
	}
	expiring := message("a", "soon")
	expiring.Expires = r.now + 10*second
	send(expiring)
	send(message("a", "2"))
	r.now += 20 * second
	send(message("a", "3"))
	if d := r.st.Counts().Drops; d.Full != 2 || d.Expired != 1 {
		t.Fatalf("drops %+v, want the expired one to be found; it is behind the head and keeps its place", d)
	}
	r.now += 85 * second
	r.ok(AppendTick(nil))
	if got := r.queued(ref); got != "3:2" && got != "" {
		t.Fatalf("queue is %.40s", got)
	}
	if d := r.st.Counts().Drops; d.Aged < 1 {
		t.Fatalf("drops %+v, want the oldest to be too old", d)
	}
}

func TestWillsComeDueOnceAndInTime(t *testing.T) {
	r := newRig(t)
	connect := func(delay int64, expiry int64) Ref {
		c := durable("c")
		c.Expiry, c.Will, c.WillDelay = expiry, message("will", "gone"), delay
		return Ref{"c", r.connect(c).Epoch}
	}
	dues := func() int { return len(r.st.Wills()) }
	sent := func() {
		for _, w := range r.st.Wills() {
			r.ok(AppendWillSent(nil, w.ID))
		}
	}
	r.ok(AppendDisconnect(nil, connect(0, 60*second), false, 0, 60*second, 0))
	if dues() != 0 {
		t.Fatal("a good-bye sends no will")
	}
	r.ok(AppendDisconnect(nil, connect(0, 60*second), true, 0, 60*second, 0))
	if dues() != 1 || !r.st.TakeEffects().Wills {
		t.Fatal("a will without delay is due at once")
	}
	sent()
	ref := connect(10*second, 60*second)
	r.ok(AppendDisconnect(nil, ref, true, 0, 60*second, 0))
	if dues() != 0 || r.st.NextDue() != r.now+10*second {
		t.Fatalf("%d due, next at %d", dues(), r.st.NextDue()-r.now)
	}
	r.now += 9 * second
	ref = connect(10*second, 5*second) // back in time: nothing is sent
	r.now += 60 * second
	r.ok(AppendTick(nil))
	if dues() != 0 {
		t.Fatal("the will of a client that came back was sent")
	}
	r.ok(AppendDisconnect(nil, ref, true, 0, 5*second, 0))
	r.now += 5 * second
	r.ok(AppendTick(nil))
	if dues() != 1 || r.st.Counts().Sessions != 0 {
		t.Fatalf("%d due: the end of the session is the latest moment", dues())
	}
	sent()
	connect(30*second, 0)
	r.ok(AppendGone(nil, "n0", 0))
	if dues() != 0 {
		t.Fatal("another process is gone, not this one")
	}
	r.ok(AppendGone(nil, "n0", 1))
	if dues() != 1 || len(r.st.Owners()) != 0 {
		t.Fatal("a lost process leaves wills behind")
	}
	sent()
	if dues() != 0 {
		t.Fatal("a will that was sent is still due")
	}
}

func TestTakeOverNamesTheOwnerBefore(t *testing.T) {
	r := newRig(t)
	c := durable("c")
	c.Node, c.NodeEpoch = "n1", 4
	one := r.connect(c)
	c.Node, c.NodeEpoch = "n2", 9
	two := r.connect(c)
	if two.Node != "n1" || two.NodeEpoch != 4 || two.Before != one.Epoch || two.Epoch <= one.Epoch || !two.Present {
		t.Fatalf("got %+v", two)
	}
	c.Identity = "somebody else"
	if a := r.do(c.Append(nil))[0]; a.Status != StatusIdentity {
		t.Fatalf("another identity: %v", a.Status.Err())
	}
	c.Identity, c.Clean = "", true
	if three := r.connect(c); three.Present || three.Epoch <= two.Epoch || three.Node != "n2" {
		t.Fatalf("a clean start: %+v", three)
	}
}

func TestAConnectionOfASessionThatEndedIsFenced(t *testing.T) {
	r := newRig(t)
	c := Connect{Client: "c", Node: "n1", NodeEpoch: 1}
	old := Ref{"c", r.connect(c).Epoch}
	r.ok(AppendGone(nil, "n1", 1)) // cut off: the session has ended
	c.Node = "n2"
	now := Ref{"c", r.connect(c).Epoch}
	for _, op := range [][]byte{AppendAttach(nil, old), AppendAck(nil, old, 1), AppendDisconnect(nil, old, false, 0, 0, 0)} {
		if a := r.do(op)[0]; a.Status != StatusFenced {
			t.Fatalf("an operation of the connection before: %v", a.Status.Err())
		}
	}
	if a := r.do(AppendAttach(nil, now))[0]; a.Status != StatusOK {
		t.Fatalf("the connection that is: %v", a.Status.Err())
	}
}

func TestALaterSessionsPublishIsNoRepeatOfAnEarlierOnes(t *testing.T) {
	r := newRig(t)
	sub := Ref{"s", r.connect(durable("s")).Epoch}
	r.ok(AppendSubscribe(nil, sub, []Subscription{{Filter: "#", QoS: 2}}, nil))
	for i := range 3 {
		p := durable("p")
		p.Clean = true
		ref := Ref{"p", r.connect(p).Epoch}
		n, _, err := DecodeReceived(r.do(AppendReceive(nil, ref, 1))[0].Body)
		if err != nil {
			t.Fatal(err)
		}
		m := message("a", fmt.Sprint(i))
		m.QoS = 2
		r.ok(AppendMessage(nil, m, nil, Key{"p", n}, false))
	}
	if got := r.queued(sub); got != "1:0 2:1 3:2" {
		t.Fatalf("queue is %s", got)
	}
}

func TestAClientThatComesAndGoesLeavesNoDeadlinesBehind(t *testing.T) {
	r := newRig(t)
	for range 10 * timersSlack {
		r.now += second / 10
		r.ok(AppendDisconnect(nil, Ref{"c", r.connect(durable("c")).Epoch}, false, 0, 3600*second, 0))
	}
	if n := len(r.st.timers); n > timersSlack+3 {
		t.Fatalf("%d deadlines of one session", n)
	}
	if due := r.st.NextDue(); due != r.now+3600*second {
		t.Fatalf("due at %d, now is %d", due, r.now)
	}
}

func TestSharedGroupsPreferMembersThatAreHere(t *testing.T) {
	r := newRig(t)
	const f = "$share/g/s/#"
	var refs []Ref
	for _, id := range []string{"a", "b", "c"} {
		ref := Ref{id, r.connect(durable(id)).Epoch}
		refs = append(refs, ref)
		r.ok(AppendSubscribe(nil, ref, []Subscription{{Filter: f, QoS: 1}}, nil))
	}
	r.ok(AppendDisconnect(nil, refs[1], false, 0, 3600*second, 0))
	e := r.st.TakeEffects()
	if last := e.Filters[len(e.Filters)-1]; last != (FilterChange{f, 2, 1}) {
		t.Fatalf("announced %+v", last)
	}
	for i := range 10 {
		r.ok(AppendMessage(nil, message("s/x", fmt.Sprint(i)), []string{f}, Key{}, false))
	}
	if a, b, c := r.queued(refs[0]), r.queued(refs[1]), r.queued(refs[2]); b != "" || len(strings.Fields(a)) != 5 || len(strings.Fields(c)) != 5 {
		t.Fatalf("a %s, b %s, c %s", a, b, c)
	}
	r.ok(AppendDisconnect(nil, refs[0], false, 0, 3600*second, 0), AppendDisconnect(nil, refs[2], false, 0, 3600*second, 0))
	r.ok(AppendMessage(nil, message("s/x", "kept"), []string{f}, Key{}, false))
	if n := r.st.Counts().Queued; n != 11 {
		t.Fatalf("%d queued, want 11: one of those who are away gets it", n)
	}
}

func TestPublishesOfQoS2AreKnownUntilTheirRelease(t *testing.T) {
	r := newRig(t)
	ref := Ref{"p", r.connect(durable("p")).Epoch}
	sub := Ref{"s", r.connect(durable("s")).Epoch}
	r.ok(AppendSubscribe(nil, sub, []Subscription{{Filter: "#", QoS: 2}}, nil))
	number := func(ref Ref) uint64 {
		n, _, err := DecodeReceived(r.do(AppendReceive(nil, ref, 5))[0].Body)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := number(ref)
	m := message("a", "once")
	m.QoS = 2
	r.ok(AppendMessage(nil, m, nil, Key{"p", n}, false))
	again := r.connect(durable("p")) // on another node, and the publish comes again
	if !slices.Equal(again.Received, []uint16{5}) {
		t.Fatalf("received %v", again.Received)
	}
	ref = Ref{"p", again.Epoch}
	if k := number(ref); k != n {
		t.Fatalf("the same publish has number %d, then %d", n, k)
	}
	r.ok(AppendMessage(nil, m, nil, Key{"p", n}, false))
	if got := r.queued(sub); got != "1:once" {
		t.Fatalf("queue is %s", got)
	}
	r.ok(AppendDelivered(nil, ref, 5))
	if _, delivered, _ := DecodeReceived(r.do(AppendReceive(nil, ref, 5))[0].Body); !delivered {
		t.Fatal("the shard does not know that the publish was delivered")
	}
	r.ok(AppendForget(nil, ref, 5))
	if k := number(ref); k == n {
		t.Fatal("the packet id was released, and is taken for the same publish")
	}
	r.ok(AppendRelease(nil, sub, 1))
	if items, _, _ := r.st.Fetch(sub, 1, 1, 1); !items[0].Released || items[0].PacketID() != 1 {
		t.Fatalf("got %+v", items[0])
	}
}

func TestRetainedMessagesAreFoundByFilterUntilTheyExpire(t *testing.T) {
	r := newRig(t)
	m := message("a/b", "on")
	m.Retain = true
	r.ok(AppendMessage(nil, m, nil, Key{}, true))
	e := message("a/c", "short")
	e.Expires = r.now + 5
	r.ok(AppendMessage(nil, e, nil, Key{}, true))
	count := func(f string, now int64) int { return len(r.st.Retained(f, now)) }
	if count("a/+", r.now) != 2 || count("a/b", r.now) != 1 || count("#", r.now+5) != 1 || count("a/c", r.now+5) != 0 {
		t.Fatal("retained messages are not found as they should")
	}
	r.ok(AppendMessage(nil, &Message{Topic: "a/b", Retain: true}, nil, Key{}, true))
	if count("a/b", r.now) != 0 {
		t.Fatal("an empty message clears")
	}
}

// random makes operations that touch everything, for a few clients that collide.
func random(rnd *rand.Rand, st *State) []byte {
	clients := []string{"a", "b", "c", "d"}
	client := clients[rnd.IntN(4)]
	epoch := uint64(1)
	if s := st.sessions[client]; s != nil {
		epoch = s.epoch - uint64(rnd.IntN(8)/7)
	}
	ref := Ref{client, epoch}
	filters := []string{"t/#", "t/1", "+/1", "$share/g/t/#", "$share/h/t/1", "t/+"}
	topic := fmt.Sprintf("t/%d", rnd.IntN(3))
	switch rnd.IntN(16) {
	case 0, 1:
		c := Connect{Client: client, Node: fmt.Sprintf("n%d", rnd.IntN(3)), NodeEpoch: uint64(rnd.IntN(3)), Clean: rnd.IntN(4) == 0,
			Durable: rnd.IntN(4) > 0, Expiry: int64(rnd.IntN(50)) * second, QueueMax: 1 + rnd.IntN(8), QueueBytes: 4000, QueueAge: 40 * second}
		if rnd.IntN(2) == 0 {
			c.Will, c.WillDelay = message(topic, "will"), int64(rnd.IntN(30))*second
		}
		return c.Append(nil)
	case 2:
		return AppendDisconnect(nil, ref, rnd.IntN(2) == 0, int64(rnd.IntN(5))*second, int64(rnd.IntN(60))*second, rnd.Uint64N(9))
	case 3:
		return AppendAttach(nil, ref)
	case 4, 5:
		return AppendSubscribe(nil, ref, []Subscription{{Filter: filters[rnd.IntN(6)], QoS: byte(rnd.IntN(3)), ID: rnd.Uint32N(5)}}, nil)
	case 6:
		return AppendSubscribe(nil, ref, nil, filters[rnd.IntN(6):][:1])
	case 7, 8:
		return AppendAck(nil, ref, rnd.Uint64N(20))
	case 9:
		return AppendRelease(nil, ref, rnd.Uint64N(20))
	case 10:
		return AppendReceive(nil, ref, uint16(rnd.IntN(4)))
	case 11:
		if rnd.IntN(2) == 0 {
			return AppendDelivered(nil, ref, uint16(rnd.IntN(4)))
		}
		return AppendForget(nil, ref, uint16(rnd.IntN(4)))
	case 12:
		return AppendGone(nil, fmt.Sprintf("n%d", rnd.IntN(3)), uint64(rnd.IntN(3)))
	case 13:
		return AppendWillSent(nil, rnd.Uint64N(20))
	default:
		m := &Message{Topic: topic, Payload: []byte(fmt.Sprint(rnd.IntN(100))), QoS: byte(rnd.IntN(3)), Retain: rnd.IntN(3) == 0, Props: []byte{1, 0}}
		if rnd.IntN(4) == 0 {
			m.Expires = st.now + int64(rnd.IntN(20))*second
		}
		return AppendMessage(nil, m, filters[3:3+rnd.IntN(3)], Key{client, rnd.Uint64N(3)}, m.Retain)
	}
}

func TestAStateThatBeganFromASnapshotBehavesTheSame(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r := newRig(t)
		other := New()
		for i := range 400 {
			r.now += rnd.Int64N(3 * second)
			if rnd.IntN(25) == 0 {
				b := r.st.Append(nil)
				restored, err := Decode(wire.NewReader(b))
				if err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, i, err)
				}
				if again := restored.Append(nil); !bytes.Equal(b, again) {
					t.Fatalf("seed %d, step %d: a restored state is encoded otherwise", seed, i)
				}
				other = restored
			}
			r.seq++
			batch := AppendBatch(nil, "n0", 1, r.seq, [][]byte{random(rnd, r.st), random(rnd, r.st)})
			one, two := r.st.Apply(r.now, batch), other.Apply(r.now, batch)
			if !bytes.Equal(one, two) {
				t.Fatalf("seed %d, step %d: answers differ: %x, %x", seed, i, one, two)
			}
			e1, e2 := r.st.TakeEffects(), other.TakeEffects()
			if !reflect.DeepEqual(e1, e2) {
				t.Fatalf("seed %d, step %d: effects differ:\n%+v\n%+v", seed, i, e1, e2)
			}
			if r.st.NextDue() != other.NextDue() {
				t.Fatalf("seed %d, step %d: next due %d, %d", seed, i, r.st.NextDue(), other.NextDue())
			}
		}
		if !bytes.Equal(r.st.Append(nil), other.Append(nil)) {
			t.Fatalf("seed %d: states differ at the end", seed)
		}
		announced(t, r.st)
	}
}

// announced compares the filters' weights with a count from nothing.
func announced(t *testing.T, st *State) {
	t.Helper()
	want := map[string]FilterChange{}
	for _, s := range st.sessions {
		for _, v := range s.subs {
			f := v.Filter
			c := want[f]
			c.Filter = f
			if _, shared := SplitShared(f); !shared {
				c.Here = 1
			} else if s.connected {
				c.Here++
			} else {
				c.Away++
			}
			want[f] = c
		}
	}
	got := st.Filters()
	if len(got) != len(want) {
		t.Fatalf("%d filters, want %d", len(got), len(want))
	}
	for _, c := range got {
		if c != want[c.Filter] {
			t.Fatalf("got %+v, want %+v", c, want[c.Filter])
		}
	}
}

func FuzzApplyAndDecodeSurviveAnything(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 1))
	st := New()
	for i := range uint64(40) {
		b := AppendBatch(nil, "n0", 1, i+1, [][]byte{random(rnd, st)})
		st.Apply(int64(i), b)
		f.Add(b)
	}
	f.Add(st.Append(nil))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if st, err := Decode(wire.NewReader(b)); err == nil {
			st.Append(nil)
			st.Apply(1<<40, b)
		}
		st := New()
		st.Apply(1, b)
		st.Apply(1<<50, AppendBatch(nil, "", 0, 0, [][]byte{AppendTick(nil)}))
		if _, err := Decode(wire.NewReader(st.Append(nil))); err != nil {
			panic(err)
		}
		DecodeItems(wire.NewReader(b))
	})
}

func TestWillsAreTakenAwayInAnyOrder(t *testing.T) {
	st := New()
	var ops [][]byte
	for i := range 100 {
		id := fmt.Sprint("c", i)
		c := Connect{Client: id, Node: "n1", NodeEpoch: 1, Will: &Message{Topic: "gone/" + id, QoS: 1}}
		ops = append(ops, c.Append(nil))
	}
	ops = append(ops, AppendGone(nil, "n1", 1))
	st.Apply(1, AppendBatch(nil, "", 0, 0, ops))
	due := st.Wills()
	if len(due) != 100 {
		t.Fatalf("%d wills are due, want 100", len(due))
	}
	left := map[uint64]string{}
	for _, w := range due {
		left[w.ID] = w.Message.Topic
	}
	draw := rand.New(rand.NewPCG(7, 7))
	for len(due) > 0 {
		i := draw.IntN(min(10, len(due)))
		delete(left, due[i].ID)
		st.Apply(2, AppendBatch(nil, "", 0, 0, [][]byte{AppendWillSent(nil, due[i].ID), AppendWillSent(nil, 1<<40)}))
		due = st.Wills()
		if len(due) != len(left) {
			t.Fatalf("%d wills are due, want %d", len(due), len(left))
		}
		for k, w := range due {
			if left[w.ID] != w.Message.Topic || k > 0 && due[k-1].ID >= w.ID {
				t.Fatalf("will %d is %s, want %s, after %v", w.ID, w.Message.Topic, left[w.ID], due)
			}
		}
	}
}

// TestAConnectThatWaitedTakesNothingFromALaterOne: the client has gone on to another
// node while its first CONNECT waited for a leader, and that one arrives last.
func TestAConnectThatWaitedTakesNothingFromALaterOne(t *testing.T) {
	r := newRig(t)
	later := durable("c")
	later.Node, later.NodeEpoch = "n1", 7
	got := r.connect(later)
	r.now += second
	waited := durable("c")
	waited.Node, waited.NodeEpoch, waited.Waited = "n0", 1, 2*second
	if a := r.do(waited.Append(nil))[0]; a.Status != StatusFenced {
		t.Fatalf("a CONNECT from before: %v, want fenced", a.Status)
	}
	r.ok(AppendAttach(nil, Ref{"c", got.Epoch})) // the later one has it still
	if back, err := Decode(wire.NewReader(r.st.Append(nil))); err != nil || back.sessions["c"].since != r.st.sessions["c"].since {
		t.Errorf("a snapshot does not know since when: %v", err)
	}
	waited.Waited = second / 2
	if c := r.connect(waited); c.Node != "n1" || c.Before != got.Epoch {
		t.Errorf("a CONNECT that waited for less took the session over from %+v", c)
	}
	waited.Node, waited.Waited = "n2", 5*second
	r.ok(AppendDisconnect(nil, Ref{"c", r.st.sessions["c"].epoch}, false, 0, 60*second, 0))
	r.connect(waited) // nobody else is connected
}
