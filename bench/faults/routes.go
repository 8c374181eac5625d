package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/devcluster"
)

// Subscriptions that are made and dropped on every node while the fault lasts, on both
// sides of a partition. Once it is over, what is published on any node has to reach
// exactly those who were told last that they are subscribed, once each, and no node
// may keep a route that nobody has asked for (C12).

// routeFilters are subscribed to and dropped; the topics below are what each matches.
var routeFilters = map[string][]string{
	"routes/a":              {"routes/a"},
	"routes/+":              {"routes/a", "routes/b", "routes/d"},
	"routes/b/#":            {"routes/b", "routes/b/c"},
	"routes/+/c":            {"routes/b/c"},
	"routes/b/c":            {"routes/b/c"},
	"$share/crew/jobs/left": {routeShared},
}

var routeTopics = []string{"routes/a", "routes/b", "routes/b/c", "routes/d", "nobody/home", routeShared}

const (
	routeShared  = "jobs/left"  // has one receiver among those who share it
	routeEnd     = "routes-end" // comes behind everything else of a publisher
	routeEach    = 2            // messages on every topic through every node
	routePause   = 150 * time.Millisecond
	routeAnswer  = 15 * time.Second // for a SUBACK: a node that is cut off waits for the others for 10 s
	routeSettle  = 60 * time.Second // for everything that has to be so once the fault is over
	indexFilters = "sluice_pubsub_index_filters"
)

type routeState byte

const (
	routeOff routeState = iota
	routeOn
	routeUnknown // asked for, and not answered
)

// churner is a client that changes its mind.
type churner struct {
	id    string
	clean bool
	addrs []string
	at    int // where it is at home
	rng   *rand.Rand

	l      *link
	known  bool // it has had a session
	lastID uint16
	state  map[string]routeState
	void   bool // its connection broke while it listened: what it missed says nothing

	mu   sync.Mutex
	got  map[string]int // payloads
	ends map[string]bool
	gone string // why its session is wrong
}

// routes drives and judges.
type routes struct {
	churners []*churner
	cancel   context.CancelFunc
	done     sync.WaitGroup
	base     float64 // filters in every index before
}

// startRoutes begins with the churn: per node a client with a session that ends with
// its connection, and one with a session that stays.
func startRoutes(ctx context.Context, addrs []string, seed uint64, base float64) *routes {
	r := &routes{base: base}
	ctx, r.cancel = context.WithCancel(ctx)
	for i := range addrs {
		for _, clean := range []bool{true, false} {
			c := &churner{id: fmt.Sprintf("churner-%d-%v", i, clean), clean: clean, addrs: addrs, at: i, state: map[string]routeState{}, got: map[string]int{},
				ends: map[string]bool{}, rng: rand.New(rand.NewPCG(seed, uint64(300+len(r.churners))))}
			r.churners = append(r.churners, c)
			r.done.Go(func() { c.churn(ctx) })
		}
	}
	return r
}

// stop ends the churn.
func (r *routes) stop() {
	r.cancel()
	r.done.Wait()
}

func (c *churner) churn(ctx context.Context) {
	filters := filterNames()
	for ; ctx.Err() == nil; sleep(ctx, routePause) {
		if c.l == nil && !c.connect(ctx, c.at) {
			continue
		}
		f := filters[c.rng.IntN(len(filters))]
		c.change(ctx, f, c.state[f] != routeOn)
	}
}

func filterNames() (out []string) {
	for f := range routeFilters {
		out = append(out, f)
	}
	slices.Sort(out)
	return out
}

func (c *churner) connect(ctx context.Context, at int) bool {
	l, present, err := dialLink(ctx, c.addrs[at%len(c.addrs)], c.id, c.clean)
	if err != nil {
		return false
	}
	c.l = l
	if c.known && !c.clean && !present {
		c.mu.Lock()
		c.gone = "its session is gone"
		c.mu.Unlock()
	}
	if !present {
		clear(c.state)
	}
	c.known = true
	return true
}

func (c *churner) drop() {
	if c.l != nil {
		c.l.close()
		c.l = nil
	}
}

// change subscribes or unsubscribes and waits for the answer; until it has come,
// nobody knows.
func (c *churner) change(ctx context.Context, filter string, on bool) bool {
	c.lastID++
	id := c.lastID
	c.state[filter] = routeUnknown
	kind, want := byte(kindSuback), routeOn
	err := error(nil)
	if on {
		err = c.l.subscribe(id, filter)
	} else {
		kind, want = kindUnsuback, routeOff
		err = c.l.unsubscribe(id, filter)
	}
	if err == nil && c.await(ctx, routeAnswer, func(p inbound) bool { return p.kind == kind && p.id == id && !p.refused }) {
		c.state[filter] = want
		return true
	}
	c.drop()
	return false
}

// await reads until a packet of a kind comes, and takes in messages meanwhile; false
// when it does not come in time or the connection breaks.
func (c *churner) await(ctx context.Context, most time.Duration, ok func(inbound) bool) bool {
	for end := time.Now().Add(most); ctx.Err() == nil && time.Now().Before(end); {
		p, some, err := c.l.read(time.Now().Add(routePause))
		switch {
		case err != nil:
			return false
		case !some:
		case p.kind == kindPublish:
			if c.take(p) != nil {
				return false
			}
		case ok(p):
			return true
		}
		if some && p.kind == kindPublish && ok(p) {
			return true
		}
	}
	return false
}

func (c *churner) take(p inbound) error {
	c.mu.Lock()
	if p.topic == routeEnd {
		c.ends[p.payload] = true
	} else {
		c.got[p.payload]++
	}
	c.mu.Unlock()
	return c.l.ack(p.id)
}

// settle makes certain what is not known, and nothing else: what was answered during
// the fault stands.
func (c *churner) settle(ctx context.Context) error {
	for at, end := c.at, time.Now().Add(routeSettle); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, routePause) {
		if c.l == nil && !c.connect(ctx, at) {
			at++ // its home may be gone for good
			continue
		}
		certain := c.l.ping() == nil && c.await(ctx, routeAnswer, func(p inbound) bool { return p.kind == kindPingresp })
		if !certain {
			c.drop()
			continue
		}
		for _, f := range filterNames() {
			certain = certain && (c.state[f] != routeUnknown || c.change(ctx, f, true))
		}
		if certain && (c.state[routeEnd] == routeOn || c.change(ctx, routeEnd, true)) {
			return nil
		}
	}
	return fmt.Errorf("%s cannot subscribe within %v", c.id, routeSettle)
}

// listen takes in messages until the last of every publisher has come.
func (c *churner) listen(ctx context.Context, publishers int) {
	all := func(inbound) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.ends) >= publishers
	}
	if !all(inbound{}) && !c.await(ctx, routeSettle, all) {
		c.void = true
	}
}

// leave drops all subscriptions, and the connection.
func (c *churner) leave(ctx context.Context) {
	for f, s := range c.state {
		if s != routeOff && c.l != nil {
			c.change(ctx, f, false)
		}
	}
	c.drop()
}

// wants reports whether the client is subscribed to a topic, not counting what is
// shared.
func (c *churner) wants(topic string) bool {
	for f, topics := range routeFilters {
		if c.state[f] == routeOn && !strings.HasPrefix(f, "$") && slices.Contains(topics, topic) {
			return true
		}
	}
	return false
}

// probe is one message of the judgement.
type probe struct {
	topic, payload string
	uncertain      bool // its acknowledgement did not come
}

// publishProbes publishes on every topic through one node, and the end.
func publishProbes(ctx context.Context, n *devcluster.Node) (list []probe, err error) {
	l, _, err := dialLink(ctx, n.MQTT, "prober-"+n.ID, true)
	if err != nil {
		return nil, err
	}
	defer l.close()
	for i := range routeEach {
		for _, topic := range routeTopics {
			list = append(list, probe{topic: topic, payload: fmt.Sprintf("%s through %s, %d", topic, n.ID, i)})
		}
	}
	list = append(list, probe{topic: routeEnd, payload: n.ID})
	for i, p := range list {
		if err := l.publish(uint16(i+1), p.topic, p.payload, false); err != nil {
			return nil, err
		}
	}
	acked := map[uint16]bool{}
	for end := time.Now().Add(routeSettle); len(acked) < len(list) && time.Now().Before(end) && ctx.Err() == nil; {
		p, ok, err := l.read(time.Now().Add(routePause))
		if err != nil {
			return nil, fmt.Errorf("%d of %d publishes are acknowledged: %w", len(acked), len(list), err)
		}
		if ok && p.kind == kindPuback {
			acked[p.id] = true
		}
	}
	for i := range list {
		list[i].uncertain = !acked[uint16(i+1)]
	}
	return list, nil
}

// judge settles the clients, publishes, and compares (C12).
func (r *routes) judge(ctx context.Context, run *Run, res *Result) {
	r.stop()
	r.all(func(c *churner) {
		if err := c.settle(ctx); err != nil {
			c.gone = err.Error()
		}
	})
	for _, c := range r.churners {
		if c.gone != "" {
			res.fail("C12", "%s: %s", c.id, c.gone)
			return
		}
	}
	if _, err := run.indexes(ctx, func(values []float64) bool { return slices.Min(values) == slices.Max(values) }); err != nil {
		res.fail("C12", "the nodes know different numbers of filters: %v", err)
	}
	var probes []probe
	publishers := 0
	for _, n := range run.nodes() {
		if !n.Running() {
			continue
		}
		list, err := publishProbes(ctx, n)
		if err != nil {
			res.fail("C12", "publish through %s: %v", n.ID, err)
			return
		}
		publishers++
		probes = append(probes, list...)
	}
	r.all(func(c *churner) { c.listen(ctx, publishers) })
	r.compare(probes, res)
	r.all(func(c *churner) { c.leave(ctx) })
	if values, err := run.indexes(ctx, func(values []float64) bool {
		return slices.Min(values) == r.base && slices.Max(values) == r.base
	}); err != nil {
		res.fail("C12", "after everybody has unsubscribed the nodes have %v filters, before there were %v: %v", values, r.base, err)
	}
}

func (r *routes) all(f func(*churner)) {
	var wg sync.WaitGroup
	for _, c := range r.churners {
		wg.Go(func() { f(c) })
	}
	wg.Wait()
}

// compare wants every message once at everyone who is subscribed, and of those who
// share a subscription at one.
func (r *routes) compare(probes []probe, res *Result) {
	for _, p := range probes {
		shares, members, voids := 0, 0, 0
		for _, c := range r.churners {
			n := c.got[p.payload]
			want := 0
			switch {
			case p.topic == routeEnd:
				continue
			case p.topic == routeShared:
				shares += n
				if c.state["$share/crew/jobs/left"] == routeOn {
					members++
				} else if n > 0 {
					res.fail("C12", "%s was given %q and does not share it any more", c.id, p.payload)
				}
				if c.void {
					voids++
				}
				continue
			case c.wants(p.topic):
				want = 1
			}
			if n > want || n < want && !c.void && !p.uncertain {
				res.fail("C12", "%s was given %q %d times, want %d (%v)", c.id, p.payload, n, want, c.state)
			}
		}
		if want := min(members, 1); shares > want || shares < want && voids == 0 && !p.uncertain {
			res.fail("C12", "%q reached %d of %d who share it, want %d", p.payload, shares, members, want)
		}
	}
	for _, c := range r.churners {
		if c.void && !c.clean { // a clean session that was given up meanwhile is closed late
			res.fail("C12", "%s: its connection broke, or not everything came, after the fault was over: ends of %v", c.id, c.ends)
		}
	}
}

// indexes waits until the numbers of filters that the nodes know are right.
func (r *Run) indexes(ctx context.Context, right func([]float64) bool) (values []float64, err error) {
	for end := r.patience(routeSettle); ; sleep(ctx, scrapeEvery) {
		values, err = nil, nil
		for _, n := range r.nodes() {
			if !n.Running() {
				continue
			}
			m, merr := metricsOf(ctx, n)
			if merr != nil {
				err = merr
				break
			}
			values = append(values, m[indexFilters])
		}
		if err == nil && len(values) > 0 && right(values) {
			return values, nil
		}
		if !time.Now().Before(end) || ctx.Err() != nil {
			return values, errors.Join(fmt.Errorf("not within %v: %v", routeSettle, values), err)
		}
	}
}
