package broker

import (
	"container/list"
	"context"
	"fmt"
	"net"
	"net/netip"
	runtimemetrics "runtime/metrics"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// turns lets CONNECTs in at a bounded rate. Who must wait stands behind others of the
// same source, and the sources take turns: a thousand devices behind one address do not
// keep out the device behind another. While somebody waits, the rate follows what the
// machine has to give: clients that connect must not cost those who are in their
// latency.
type turns struct {
	limit, burst float64 // per second, at once
	longest      time.Duration
	pressure     func() time.Duration // how long a goroutine waits for a core, lately

	beats int // owned by serve

	mu      sync.Mutex
	tokens  float64
	filled  time.Time // when tokens was right
	rate    float64   // at present, at most limit
	waiting int
	sources map[netip.Prefix]*list.Element // of order
	order   list.List                      // of *source: whose turn it is, first
	serving bool
	calm    time.Time // when nobody waited any more
}

// source is where waiting CONNECTs come from.
type source struct {
	from  netip.Prefix
	queue list.List // of *turn, oldest first
}

// turn is a CONNECT that waits; ready is closed when it may go on.
type turn struct {
	ready  chan struct{}
	source *source
	place  *list.Element // in its source's queue; nil once it is out of it
}

const (
	turnsBeat  = 5 * time.Millisecond // between two looks at who may go on
	turnsLook  = 4                    // beats between two looks at the pressure
	turnsFresh = time.Second          // without a queue: what the machine has to give is to be found out anew
	// The rate begins at a share of the limit and reaches it in half a second, unless
	// goroutines wait too long for a core; it never falls below turnsShareMin of it, so
	// that on a machine that is always busy clients do get in.
	turnsShareFirst = 0.25
	turnsShareMin   = 0.05
	turnsShareStep  = 0.03 // per look
	turnsBack       = 0.8  // per look with pressure
	// pressureMax is several times what goroutines wait on a machine with a core to
	// spare, and what an answer may take longer because clients connect.
	pressureMax = 4 * time.Millisecond
)

func newTurns(l Limits) *turns {
	burst := max(connectBurstMin, l.Connects/10)
	return &turns{limit: l.Connects, burst: burst, longest: l.ConnectWait, pressure: newPressure().measure,
		tokens: burst, rate: l.Connects, filled: time.Now(), sources: map[netip.Prefix]*list.Element{}}
}

// sourceOf is what counts as one source: an address, of IPv6 the network that one
// customer has.
func sourceOf(remote net.Addr) netip.Prefix {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap()
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // fails for no address at all, which is a source, too
	return p
}

// fillLocked counts the tokens of the time that has passed.
func (t *turns) fillLocked(now time.Time) {
	t.tokens = min(t.burst, t.tokens+t.rate*now.Sub(t.filled).Seconds())
	t.filled = now
}

// join lets a CONNECT pass (nil, 0), gives it a place in the queue, or says after what
// time it is worth to come again. start must begin to serve.
func (t *turns) join(from netip.Prefix, now time.Time) (w *turn, again time.Duration, start bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fillLocked(now)
	if t.waiting == 0 && t.tokens >= 1 {
		t.tokens--
		return nil, 0, false
	}
	if !t.serving && now.Sub(t.calm) > turnsFresh {
		t.rate = t.limit * turnsShareFirst
	}
	at := t.sources[from]
	before, sources := 0, len(t.sources)
	if at == nil {
		sources++
	} else {
		before = at.Value.(*source).queue.Len()
	}
	ahead := min(t.waiting, (before+1)*sources)
	if d := time.Duration(float64(ahead) / t.limit * float64(time.Second)); d > t.longest {
		return nil, t.hintLocked(), false
	}
	if at == nil {
		at = t.order.PushBack(&source{from: from})
		t.sources[from] = at
	}
	s := at.Value.(*source)
	w = &turn{ready: make(chan struct{}), source: s}
	w.place = s.queue.PushBack(w)
	t.waiting++
	start = !t.serving
	t.serving = true
	return w, 0, start
}

// hintLocked is when all who wait now will have been served.
func (t *turns) hintLocked() time.Duration {
	return time.Duration(float64(t.waiting)/t.rate*float64(time.Second)) + time.Second
}

// leave gives a place up; false when its turn has come, otherwise with the time after
// which to come again.
func (t *turns) leave(w *turn) (again time.Duration, left bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.place == nil {
		return 0, false
	}
	again = t.hintLocked()
	t.outLocked(w)
	return again, true
}

// outLocked takes w out of the queue, and a source that is empty out of the order.
func (t *turns) outLocked(w *turn) {
	w.source.queue.Remove(w.place)
	w.place = nil
	t.waiting--
	if w.source.queue.Len() == 0 {
		t.order.Remove(t.sources[w.source.from])
		delete(t.sources, w.source.from)
	}
}

func (t *turns) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.waiting
}

// serve lets those who wait go on in their turn, until nobody waits.
func (t *turns) serve() {
	tick := time.NewTicker(turnsBeat)
	defer tick.Stop()
	t.pressure() // what was before does not count
	for now := range tick.C {
		if t.beats++; t.beats%turnsLook == 0 {
			t.adapt(t.pressure())
		}
		if !t.beat(now) {
			return
		}
	}
}

// adapt makes the rate follow what the machine has to give.
func (t *turns) adapt(pressure time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if pressure > pressureMax {
		t.rate = max(t.rate*turnsBack, t.limit*turnsShareMin)
	} else {
		t.rate = min(t.rate+t.limit*turnsShareStep, t.limit)
	}
}

// beat serves whose turn it is by now; false when nobody waits.
func (t *turns) beat(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fillLocked(now)
	for t.tokens >= 1 && t.waiting > 0 {
		t.tokens--
		first := t.order.Front()
		w := first.Value.(*source).queue.Front().Value.(*turn)
		t.order.MoveToBack(first)
		t.outLocked(w)
		close(w.ready)
	}
	if t.waiting > 0 {
		return true
	}
	t.serving, t.calm = false, now
	return false
}

// queue waits for the turn of a CONNECT.
func (b *Broker) queue(ctx context.Context, c *conn) packets.Code {
	now := time.Now()
	w, again, start := b.turns.join(sourceOf(c.RemoteAddr()), now)
	if start && b.track() { // not when the broker closes: then ctx ends
		go func() {
			defer b.running.Done()
			b.turns.serve()
		}()
	}
	if w == nil {
		if again > 0 {
			return busyFor(again)
		}
		return packets.CodeSuccess
	}
	if err := c.Conn.SetDeadline(now.Add(b.turns.longest + b.cfg.ConnectTimeout)); err != nil {
		b.turns.leave(w)
		return packets.ErrServerBusy // gone
	}
	timer := time.NewTimer(b.turns.longest)
	defer timer.Stop()
	select {
	case <-w.ready:
	case <-timer.C:
		if again, left := b.turns.leave(w); left {
			return busyFor(again)
		}
	case <-ctx.Done():
		b.turns.leave(w)
		return packets.ErrServerShuttingDown
	}
	b.metrics.connectWait.Observe(time.Since(now).Seconds())
	return packets.CodeSuccess
}

func busyFor(again time.Duration) packets.Code {
	return packets.Code{Code: packets.ErrServerBusy.Code, Reason: fmt.Sprintf("too many clients connect at once, try again in %d s", int(again/time.Second)+1)}
}

// pressure measures how long goroutines that could run wait for it, from one call to
// the next, by the runtime's own count.
type pressure struct {
	sample []runtimemetrics.Sample
	before []uint64
}

const schedLatencies = "/sched/latencies:seconds"

func newPressure() *pressure {
	return &pressure{sample: []runtimemetrics.Sample{{Name: schedLatencies}}}
}

// measure returns what a tenth of them waited for, or longer; 0 where the runtime does
// not count.
func (p *pressure) measure() time.Duration {
	runtimemetrics.Read(p.sample)
	if p.sample[0].Value.Kind() != runtimemetrics.KindFloat64Histogram {
		return 0
	}
	h := p.sample[0].Value.Float64Histogram()
	if p.before == nil {
		p.before = make([]uint64, len(h.Counts))
	}
	total := uint64(0)
	for i, n := range h.Counts {
		total += n - p.before[i]
	}
	slow, at := uint64(0), time.Duration(0)
	for i := len(h.Counts) - 1; i >= 0; i-- {
		n := h.Counts[i] - p.before[i]
		p.before[i] = h.Counts[i]
		if at == 0 && total > 0 {
			if slow += n; slow >= (total+9)/10 {
				at = time.Duration(h.Buckets[i] * float64(time.Second)) // the bucket's lower end
			}
		}
	}
	return max(at, 0)
}
