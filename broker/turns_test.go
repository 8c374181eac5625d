package broker

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// quietTurns are turns on a machine with the pressure that the test says.
func quietTurns(perSecond float64) (*turns, time.Time) {
	t := newTurns(Limits{Connects: perSecond, ConnectWait: time.Second})
	return t, t.filled
}

func from(addr string) netip.Prefix {
	return sourceOf(&net.TCPAddr{IP: net.ParseIP(addr), Port: 4711})
}

// fill takes what may pass at once.
func fill(t *testing.T, q *turns, now time.Time) {
	t.Helper()
	for i := range int(q.burst) {
		if w, again, _ := q.join(from("192.0.2.1"), now); w != nil || again != 0 {
			t.Fatalf("CONNECT %d of a burst of %v had to wait", i+1, q.burst)
		}
	}
}

func isReady(w *turn) bool {
	select {
	case <-w.ready:
		return true
	default:
		return false
	}
}

func TestSourcesTakeTurns(t *testing.T) {
	q, now := quietTurns(1000)
	fill(t, q, now)
	var many []*turn
	for i := range 50 {
		w, _, start := q.join(from("192.0.2.1"), now)
		if w == nil || start != (i == 0) {
			t.Fatalf("CONNECT %d passed, or was to start the service: %v", i, start)
		}
		many = append(many, w)
	}
	one, _, _ := q.join(from("192.0.2.2"), now)
	if !q.beat(now.Add(10 * time.Millisecond)) { // two turns at least, ten at most
		t.Fatal("nobody waits any more")
	}
	if !isReady(one) || !isReady(many[0]) || isReady(many[10]) {
		t.Errorf("after a hundredth of a second: the one of its own source %v, the first of many %v, the eleventh %v", isReady(one), isReady(many[0]), isReady(many[10]))
	}
	for n := time.Duration(1); q.beat(now.Add(n * time.Second)); n++ {
		if n > 10 {
			t.Fatal("50 clients are not served in ten seconds")
		}
	}
	for i, w := range many {
		if !isReady(w) {
			t.Errorf("CONNECT %d is still waiting", i)
		}
	}
	if len(q.sources) != 0 || q.order.Len() != 0 || q.waiting != 0 {
		t.Errorf("left behind: %d sources, %d in order, %d waiting", len(q.sources), q.order.Len(), q.waiting)
	}
}

func TestOneSourceCannotFillTheQueueForOthers(t *testing.T) {
	q, now := quietTurns(100)
	fill(t, q, now)
	in := 0
	for range 1000 {
		if w, again, _ := q.join(from("192.0.2.1"), now); w != nil {
			in++
		} else if again <= 0 {
			t.Fatal("refused without a word when to come again")
		}
	}
	if in != 101 { // what is served within the longest wait, and one
		t.Errorf("%d of one source wait, want a second's worth", in)
	}
	if w, _, _ := q.join(from("192.0.2.2"), now); w == nil {
		t.Error("the first client of another source was refused")
	}
}

func TestRateOfConnectsFollowsThePressure(t *testing.T) {
	q, now := quietTurns(1000)
	fill(t, q, now)
	if _, _, start := q.join(from("192.0.2.1"), now); !start {
		t.Fatal("nobody serves")
	}
	for range 100 {
		q.join(from("192.0.2.1"), now)
	}
	for range 100 { // nobody is served: no time passes
		q.adapt(2 * pressureMax)
		q.beat(now)
	}
	if q.rate != q.limit*turnsShareMin {
		t.Errorf("rate under pressure %v, want the least, %v", q.rate, q.limit*turnsShareMin)
	}
	for range 100 {
		q.adapt(0)
		q.beat(now)
	}
	if q.rate != q.limit {
		t.Errorf("rate without pressure %v, want %v", q.rate, q.limit)
	}
}

func TestAPlaceIsGivenUp(t *testing.T) {
	q, now := quietTurns(1)
	fill(t, q, now)
	w, _, _ := q.join(from("2001:db8::1"), now)
	if again, left := q.leave(w); !left || again <= 0 || q.waiting != 0 || len(q.sources) != 0 {
		t.Errorf("left %v, again in %v, %d waiting, %d sources", left, again, q.waiting, len(q.sources))
	}
	w, _, _ = q.join(from("2001:db8::1"), now)
	q.beat(now.Add(time.Minute))
	if _, left := q.leave(w); left || !isReady(w) {
		t.Error("a turn that has come was given up")
	}
}

func TestSourceIsAnAddressOrACustomersNetwork(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true},
		{"2001:db8:1:2::1", "2001:db8:1:3::1", false},
	} {
		if got := from(c.a) == from(c.b); got != c.same {
			t.Errorf("%s and %s are one source: %v, want %v", c.a, c.b, got, c.same)
		}
	}
	if got := sourceOf(&net.UnixAddr{}); got != (netip.Prefix{}) {
		t.Errorf("an address of another kind: %v", got)
	}
}

func TestPressureIsWhatGoroutinesWaitFor(t *testing.T) {
	p := newPressure()
	p.measure()
	if d := p.measure(); d < 0 || d > time.Minute {
		t.Errorf("got %v", d)
	}
	if p.sample[0].Value.Float64Histogram() == nil {
		t.Error("the runtime does not count what goroutines wait")
	}
}

func TestAFullHouseWaitsForAPlaceAndNotForever(t *testing.T) {
	h := halfOpen{max: 1, freed: make(chan struct{}, 1)}
	first, _ := net.Pipe()
	place := h.add(first)
	through := make(chan struct{})
	go func() {
		h.room(t.Context())
		close(through)
	}()
	h.remove(place)
	select {
	case <-through:
	case <-time.After(20 * time.Second):
		t.Fatal("a place was free and nobody was let in")
	}
	h.conns.PushBack(entrant{first, time.Now().Add(-halfOpenMin)})
	h.room(t.Context()) // the one that is there has had its time
	second, _ := net.Pipe()
	h.add(second)
	if _, err := first.Write([]byte{0}); err == nil || h.len() != 1 {
		t.Errorf("%d half open; writing to the one that was pushed out: %v", h.len(), err)
	}
}

func TestAFullNodeNamesTheOthersWhereThereAreAny(t *testing.T) {
	for _, others := range []bool{true, false} {
		b := start(t, Config{ConnectionsMax: 1, OthersServe: func() bool { return others }}, newMemory())
		dial(t, b, 5, "c1", connectOptions{})
		want := packets.ErrServerBusy.Code
		if others {
			want = packets.ErrUseAnotherServer.Code
		}
		if _, ack := dial(t, b, 5, "c2", connectOptions{wantRefuse: true}); ack.ReasonCode != want {
			t.Errorf("others serve %v: got %#x, want %#x", others, ack.ReasonCode, want)
		}
		if _, ack := dial(t, b, 4, "c3", connectOptions{wantRefuse: true}); ack.ReasonCode != 3 {
			t.Errorf("others serve %v: a 3.1.1 client got %#x, want 3", others, ack.ReasonCode)
		}
	}
}
