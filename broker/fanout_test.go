package broker

import (
	"crypto/tls"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/session"
)

func TestLargeAndSmallMessagesArriveWholeAndInOrder(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	b := start(t, Config{Endpoints: []Endpoint{{Listen: "127.0.0.1:0", TLS: a.server(ClientAuthNone)}}}, newMemory())
	plain, _ := dial(t, b, 5, "plain", connectOptions{})
	secure := mustHello(t, tls.Client(dialTCP(t, b.Addrs()[1]), a.client("")), "secure")
	old, _ := dial(t, b, 4, "old", connectOptions{})
	subscribers := []*client{plain, secure, old}
	for _, c := range subscribers {
		c.subscribe("m/#", 1)
	}
	from, _ := dial(t, b, 5, "from", connectOptions{})
	payload := func(i int) string { // around the bound, and far beyond it
		return strings.Repeat(string(rune('a'+i%26)), []int{0, 1, sharedBytesMin - 1, sharedBytesMin, 5000, 70_000}[i%6])
	}
	const n = 60
	for i := range n {
		from.publish(pub{topic: fmt.Sprintf("m/%d", i), payload: payload(i), qos: byte(i % 2), id: uint16(i + 1)})
	}
	for _, c := range subscribers {
		for i := range n {
			pk := c.read()
			if pk.FixedHeader.Type != packets.Publish || pk.TopicName != fmt.Sprintf("m/%d", i) || string(pk.Payload) != payload(i) {
				t.Fatalf("message %d: got %s of %d bytes, want %d", i, describe(pk), len(pk.Payload), len(payload(i)))
			}
			if pk.FixedHeader.Qos == 1 {
				c.ack(packets.Puback, pk.PacketID)
			}
		}
	}
}

func TestSubscribersShareThePayload(t *testing.T) {
	b := &Broker{cfg: Config{}.withDefaults()}
	m := &session.Message{Topic: "m", Payload: make([]byte, 100_000)}
	for range 3 {
		c := newConn(b, nil)
		c.version, c.pumping = 5, true // nobody writes
		if ok, why := c.publishLocked(&outgoing{m: m}, time.Time{}); !ok {
			t.Fatal(why)
		}
		if len(c.shared) != 1 || &c.shared[0].body[0] != &m.Payload[0] || cap(c.out) > 1000 || c.outBytesLocked() < len(m.Payload) {
			t.Errorf("%d bytes gathered, %d payloads shared", cap(c.out), len(c.shared))
		}
	}
}

func TestSharedPayloadsCountTowardsTheAllowance(t *testing.T) {
	b := &Broker{cfg: Config{OutBytesMax: 1000}.withDefaults()}
	c := newConn(b, nil)
	c.version, c.pumping = 5, true
	o := &outgoing{m: &session.Message{Topic: "m", Payload: make([]byte, 600)}}
	if ok, why := c.publishLocked(o, time.Time{}); !ok {
		t.Fatal(why)
	}
	if ok, why := c.publishLocked(o, time.Time{}); ok || why != "slow" {
		t.Errorf("a second message of 600 bytes fits into an allowance of 1,000: %v, %s", ok, why)
	}
}

// BenchmarkFanOut gives one message of 16 KiB to 1,000 subscribers; an op is one
// message. B/op is what all of them together cost.
func BenchmarkFanOut(b *testing.B) {
	const subscribers = 1000
	br := start(b, Config{}, newMemory())
	for i := range subscribers {
		nc := dialTCP(b, br.Addr())
		b.Cleanup(func() { nc.Close() })
		hello := connectPacket(5, fmt.Sprintf("s%d", i), connectOptions{})
		if _, err := nc.Write(append(hello, packet(packets.Subscribe<<4|2, append(appendString([]byte{0, 1, 0}, "m"), 0))...)); err != nil {
			b.Fatal(err)
		}
		go io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{nc}, make([]byte, 64<<10)) // until the test closes it
	}
	eventually(b, "all have subscribed", func() bool { return br.subscriptions() == subscribers })
	m := &session.Message{Topic: "m", Payload: make([]byte, 16<<10)}
	b.ReportAllocs()
	for b.Loop() {
		br.Deliver(m, nil)
		for _, c := range br.all() { // written before the next
			for busy := true; busy; runtime.Gosched() {
				c.mu.Lock()
				busy = c.pumping
				c.mu.Unlock()
			}
		}
	}
}
