package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/sluice-iot/sluice/devcluster"
)

// Exactly once, with publisher and subscriber on different nodes, when either leaves
// its node, or loses it, between any two packets of an exchange.

// exact is an MQTT 5 client that takes every step of an exchange of QoS 2 by itself, and
// remembers what the standard tells it to across connections.
type exact struct {
	t       *testing.T
	id      string
	durable bool
	nodes   []*devcluster.Node
	at      int // the node it is connected to
	conn    net.Conn
	old     []net.Conn // those that were taken over
	dirty   bool       // it has been connected before

	lastID uint16
	open   []*exchange     // its publishes that are not complete, in order
	held   map[uint16]bool // publishes for it that are not released
	got    []string
}

type exchange struct {
	topic, text string
	id          uint16
	received    bool // PUBREC came
}

func newExact(t *testing.T, nodes []*devcluster.Node, at int, id string, durable bool) *exact {
	t.Helper()
	c := &exact{t: t, id: id, durable: durable, nodes: nodes, held: map[uint16]bool{}}
	c.connect(at)
	t.Cleanup(c.close)
	return c
}

func (c *exact) close() {
	for _, nc := range append(c.old, c.conn) {
		_ = nc.Close()
	}
	c.old = nil
}

// connect goes to a node, or to another one that lives if that one does not let it in,
// and goes on with what is open.
func (c *exact) connect(at int) {
	c.t.Helper()
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if last = c.tryConnect(at); last == nil {
			c.resume()
			return
		}
		at = (at + 1) % len(c.nodes)
	}
	c.t.Fatalf("connect %s: %v", c.id, last)
}

func (c *exact) tryConnect(at int) error {
	n := c.nodes[at]
	nc, err := net.Dial("tcp", n.MQTT)
	if err != nil {
		return err
	}
	expiry := uint32(300)
	hello := packets.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: c.id, CleanStart: !c.durable, KeepAlive: 60, Properties: &packets.Properties{}}
	if c.durable {
		hello.Properties.SessionExpiryInterval = &expiry
	}
	if err = nc.SetDeadline(time.Now().Add(10 * time.Second)); err == nil {
		_, err = hello.WriteTo(nc)
	}
	if err != nil {
		return errors.Join(err, nc.Close())
	}
	p, err := packets.ReadPacket(nc)
	if err != nil {
		return errors.Join(err, nc.Close())
	}
	ack, ok := p.Content.(*packets.Connack)
	if !ok || ack.ReasonCode != 0 {
		return errors.Join(fmt.Errorf("%s answers %v", n.ID, p), nc.Close())
	}
	if c.dirty && c.durable && !ack.SessionPresent {
		c.t.Fatalf("%s: no session on %s", c.id, n.ID)
	}
	c.conn, c.at, c.dirty = nc, at, true
	return nc.SetDeadline(time.Time{})
}

// resume sends again what has no answer, as the standard has it: in order, with DUP.
func (c *exact) resume() {
	for _, x := range c.open {
		if x.received {
			c.send(&packets.Pubrel{PacketID: x.id})
		} else {
			c.send(&packets.Publish{Topic: x.topic, Payload: []byte(x.text), QoS: 2, PacketID: x.id, Duplicate: true})
		}
	}
}

// send writes a packet; that it does not arrive is noticed when its answer is missing.
func (c *exact) send(p packets.Packet) { _, _ = p.WriteTo(c.conn) }

func (c *exact) publish(topic, text string) {
	c.lastID++
	c.open = append(c.open, &exchange{topic: topic, text: text, id: c.lastID})
	c.send(&packets.Publish{Topic: topic, Payload: []byte(text), QoS: 2, PacketID: c.lastID})
}

func (c *exact) subscribe(filter string) {
	c.t.Helper()
	c.send(&packets.Subscribe{PacketID: 60_000, Properties: &packets.Properties{}, Subscriptions: []packets.SubOptions{{Topic: filter, QoS: 2}}})
	c.until("a SUBACK", func(p *packets.ControlPacket) bool { return p.Type == packets.SUBACK })
}

// note takes in a packet without answering it.
func (c *exact) note(p *packets.ControlPacket) (answer packets.Packet) {
	c.t.Helper()
	switch m := p.Content.(type) {
	case *packets.Publish:
		if !c.held[m.PacketID] {
			c.held[m.PacketID] = true
			c.got = append(c.got, string(m.Payload))
		}
		return &packets.Pubrec{PacketID: m.PacketID}
	case *packets.Pubrel:
		delete(c.held, m.PacketID)
		return &packets.Pubcomp{PacketID: m.PacketID}
	case *packets.Pubrec:
		if m.ReasonCode >= 0x80 {
			c.t.Fatalf("%s: publish %d is refused with %#x", c.id, m.PacketID, m.ReasonCode)
		}
		for _, x := range c.open {
			if x.id == m.PacketID {
				x.received = true
			}
		}
		return &packets.Pubrel{PacketID: m.PacketID}
	case *packets.Pubcomp:
		c.open = slices.DeleteFunc(c.open, func(x *exchange) bool { return x.id == m.PacketID })
	}
	return nil
}

// until handles packets up to the first that meets a condition, that one included; a
// connection that breaks is replaced.
func (c *exact) until(what string, ok func(*packets.ControlPacket) bool) {
	c.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		p := c.read(end)
		if p == nil {
			continue
		}
		if answer := c.note(p); answer != nil {
			c.send(answer)
		}
		if ok(p) {
			return
		}
	}
	c.t.Fatalf("%s: not within %v: %s; has %v, open %d, held %d", c.id, patience, what, c.got, len(c.open), len(c.held))
}

func (c *exact) read(end time.Time) *packets.ControlPacket {
	c.t.Helper()
	if err := c.conn.SetReadDeadline(end); err != nil {
		c.t.Fatal(err)
	}
	p, err := packets.ReadPacket(c.conn)
	if err != nil || p.Type == packets.DISCONNECT {
		_ = c.conn.Close()
		if time.Now().Before(end) {
			c.connect((c.at + 1) % len(c.nodes))
		}
		return nil
	}
	return p
}

// complete lets all exchanges come to their ends, and whatever else is on its way.
func (c *exact) complete(has int) {
	c.t.Helper()
	done := func(*packets.ControlPacket) bool { return len(c.open) == 0 && len(c.held) == 0 && len(c.got) >= has }
	if !done(nil) {
		c.until(fmt.Sprintf("%d messages and the ends of all exchanges", has), done)
	}
	c.send(&packets.Pingreq{})
	c.until("a PINGRESP", func(p *packets.ControlPacket) bool { return p.Type == packets.PINGRESP })
}

// moment is a place in an exchange: after the nth packet of a kind has come, before or
// after its answer; kind 0 is before anything has come.
type moment struct {
	name     string
	kind     byte
	answered bool
}

const (
	momentNth   = 3
	momentBatch = 5
)

var publisherMoments = []moment{
	{"publisher between PUBLISH and PUBREC", 0, false},
	{"publisher between PUBREC and PUBREL", packets.PUBREC, false},
	{"publisher between PUBREL and PUBCOMP", packets.PUBREC, true},
}

var subscriberMoments = []moment{
	{"subscriber between PUBLISH and PUBREC", packets.PUBLISH, false},
	{"subscriber between PUBREC and PUBREL", packets.PUBLISH, true},
	{"subscriber between PUBREL and PUBCOMP", packets.PUBREL, false},
}

// reach handles packets up to a moment.
func (c *exact) reach(m moment) {
	c.t.Helper()
	for n, end := 0, time.Now().Add(patience); m.kind != 0; {
		p := c.read(end)
		if p == nil {
			if !time.Now().Before(end) {
				c.t.Fatalf("%s: %s is not reached", c.id, m.name)
			}
			continue
		}
		answer := c.note(p)
		last := false
		if p.Type == m.kind {
			n++
			last = n == momentNth
		}
		if answer != nil && (!last || m.answered) {
			c.send(answer)
		}
		if last {
			return
		}
	}
}

// leave is how a client goes from its node to another one.
type leave struct {
	name string
	do   func(c *exact) (killed int)
}

var leaves = []leave{
	{"connects elsewhere", func(c *exact) int { c.old = append(c.old, c.conn); return -1 }},
	{"breaks off", func(c *exact) int { _ = c.conn.Close(); return -1 }},
	{"its node is killed", func(c *exact) int {
		if err := c.nodes[c.at].Kill(); err != nil {
			c.t.Fatal(err)
		}
		return c.at
	}},
}

func TestQoS2IsExactlyOnceWhicheverStepLosesItsNode(t *testing.T) {
	nodes := start(t).Nodes()
	pub := newExact(t, nodes, 0, "pub", true)
	sub := newExact(t, nodes, 1, "sub", true)
	sub.subscribe("orders/#")
	var want []string
	for _, how := range leaves {
		for _, m := range slices.Concat(publisherMoments, subscriberMoments) {
			title := m.name + ", " + how.name
			from := len(want)
			want = exactCase(t, title, nodes, pub, sub, m, how, want)
			if t.Failed() {
				t.Fatalf("%s: sent %v", title, want[from:])
			}
		}
	}
	if !slices.Equal(sub.got, want) {
		t.Errorf("the subscriber has\n%v, want\n%v", sub.got, want)
	}
}

// exactCase sends a batch while one of the two leaves, and one more message; want grows
// by what was sent. A connected client without a durable session watches on a node that
// lives: it may miss what a dying node was to forward, and is given nothing twice.
func exactCase(t *testing.T, title string, nodes []*devcluster.Node, pub, sub *exact, m moment, how leave, want []string) []string {
	t.Helper()
	mover, other := pub, sub
	if slices.Contains(subscriberMoments, m) {
		mover, other = sub, pub
	}
	if mover.at == other.at { // a node that was restarted may have driven them together
		mover.connect((other.at + 1) % len(nodes))
	}
	third := 3 - mover.at - other.at
	watch := newExact(t, nodes, other.at, "watch", false)
	watch.subscribe("orders/#")
	defer watch.close()
	from := len(want)
	for i := range momentBatch {
		want = append(want, fmt.Sprintf("%s %d", title, i))
		pub.publish("orders/x", want[len(want)-1])
	}
	if mover == sub {
		pub.complete(0)
	}
	mover.reach(m)
	killed := how.do(mover)
	mover.connect(third)
	pub.complete(0)
	want = append(want, title+" at last")
	pub.publish("orders/x", want[len(want)-1])
	pub.complete(0)
	sub.complete(len(want))
	watch.until("the last message", func(*packets.ControlPacket) bool { return slices.Contains(watch.got, want[len(want)-1]) })
	watch.complete(0)
	if !slices.Equal(sub.got, want) {
		t.Errorf("%s: the subscriber has %v, want %v", title, sub.got[min(from, len(sub.got)):], want[from:])
	}
	checkWatcher(t, title, watch.got, want[from:], killed >= 0)
	if killed >= 0 {
		restartNode(t, nodes[killed])
	}
	return want
}

// checkWatcher wants every message once and in order; with gaps, when its node may have
// died on the way.
func checkWatcher(t *testing.T, title string, got, want []string, gaps bool) {
	t.Helper()
	rest := want
	for _, g := range got {
		at := slices.Index(rest, g)
		if at < 0 {
			t.Errorf("%s: a connected client has %v of %v: twice, or out of order", title, got, want)
			return
		}
		rest = rest[at+1:]
	}
	if !gaps && len(got) != len(want) {
		t.Errorf("%s: a connected client has %v, want %v", title, got, want)
	}
}

func restartNode(t *testing.T, n *devcluster.Node) {
	t.Helper()
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := n.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}
