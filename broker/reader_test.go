package broker

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// connOf finds a client's connection in the broker.
func connOf(t testing.TB, b *Broker, client string) *conn {
	t.Helper()
	var found *conn
	eventually(t, "the connection of "+client, func() bool {
		for _, c := range b.all() {
			if c.client == client {
				found = c
			}
		}
		return found != nil
	})
	return found
}

func isParked(c *conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.parked
}

// waitParked waits until the connection has given its goroutine back.
func waitParked(t testing.TB, b *Broker, client string) *conn {
	t.Helper()
	c := connOf(t, b, client)
	if c.socket == nil {
		t.Skip("connections keep their goroutines on this system")
	}
	for end := time.Now().Add(20 * time.Second); !isParked(c); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("an idle connection still has its goroutine after 20 s")
		}
	}
	return c
}

func TestParkedConnectionGoesOnWhereItWas(t *testing.T) {
	m := newMemory()
	m.auto = applied
	b := start(t, Config{IdleAfter: 50 * time.Millisecond}, m)
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	c.subscribe("cmd/#", 1)
	for round := range uint16(3) {
		held := waitParked(t, b, "c1")
		eventually(t, "a parked connection keeps no buffer", func() bool {
			held.mu.Lock()
			defer held.mu.Unlock()
			return held.out == nil && held.spare == nil && held.partial == nil
		})
		c.publish(pub{topic: topic1, payload: "{}", qos: 1, id: 10 + round})
		c.expect(packets.Puback, 10+round)
	}
	// Messages reach a parked client without waking its reader.
	waitParked(t, b, "c1")
	other, _ := dial(t, b, 5, "c2", connectOptions{})
	other.publish(pub{topic: "cmd/go", payload: "now", qos: 1, id: 1})
	if pk := c.read(); string(pk.Payload) != "now" {
		t.Fatalf("got %s", describe(pk))
	}
	c.ack(packets.Puback, 1)
	c.ping()
}

func TestPacketCutAnywhereIsReadAcrossParking(t *testing.T) {
	m := newMemory()
	m.auto = applied
	b := start(t, Config{IdleAfter: 50 * time.Millisecond}, m)
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	whole := c.encode(pub{topic: topic1, payload: strings.Repeat("x", 5000), qos: 1, id: 7})
	for from, cuts := 0, []int{1, 2, 40, 3000, len(whole)}; len(cuts) > 0; cuts = cuts[1:] {
		waitParked(t, b, "c1")
		c.send(whole[from:cuts[0]])
		from = cuts[0]
	}
	c.expect(packets.Puback, 7)
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.received) != 1 || len(m.received[0].Payload) != 5000 {
		t.Errorf("%d publishes arrived, want the one of 5,000 bytes", len(m.received))
	}
}

func TestKeepAliveEndsAParkedConnection(t *testing.T) {
	b := start(t, Config{IdleAfter: 50 * time.Millisecond}, newMemory())
	c, _ := dial(t, b, 5, "c1", connectOptions{keepAlive: 2})
	waitParked(t, b, "c1")
	c.send([]byte{0x30}) // the beginning of a packet is none
	pk, err := c.tryRead(20 * time.Second)
	if err != nil || pk.FixedHeader.Type != packets.Disconnect || pk.ReasonCode != packets.ErrKeepAliveTimeout.Code {
		t.Fatalf("got %s, %v, want DISCONNECT 0x8d", describe(pk), err)
	}
}

func TestPingsKeepAParkedConnectionAlive(t *testing.T) {
	b := start(t, Config{IdleAfter: 50 * time.Millisecond}, newMemory())
	c, _ := dial(t, b, 5, "c1", connectOptions{keepAlive: 2})
	for range 3 {
		waitParked(t, b, "c1")
		c.ping()
	}
	if n := b.Stats().Connections; n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestEndsReachAParkedConnection(t *testing.T) {
	for name, k := range map[string]struct {
		end  func(b *Broker, c *client)
		code byte
	}{
		"take-over":     {func(b *Broker, c *client) { dial(t, b, 5, "c1", connectOptions{}) }, packets.ErrSessionTakenOver.Code},
		"drain":         {func(b *Broker, _ *client) { _ = b.Drain(t.Context()) }, packets.ErrServerShuttingDown.Code},
		"close":         {func(b *Broker, _ *client) { _ = b.Close() }, packets.ErrServerShuttingDown.Code},
		"client closes": {func(_ *Broker, c *client) { c.send([]byte{0xE0, 0}) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, Config{IdleAfter: 50 * time.Millisecond}, newMemory())
			c, _ := dial(t, b, 5, "c1", connectOptions{})
			held := waitParked(t, b, "c1")
			k.end(b, c)
			c.closed(k.code)
			eventually(t, "the connection is over", func() bool {
				held.mu.Lock()
				defer held.mu.Unlock()
				return held.over
			})
		})
	}
	b := start(t, Config{IdleAfter: 50 * time.Millisecond}, newMemory())
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	waitParked(t, b, "c1")
	c.Close() // without a word
	eventually(t, "the dead connection is noticed", func() bool { return b.Stats().Connections == 0 })
}

func TestIdleConnectionsHaveNoGoroutines(t *testing.T) {
	b := start(t, Config{IdleAfter: 50 * time.Millisecond}, newMemory())
	const n = 200
	for i := range n {
		dial(t, b, 5, fmt.Sprintf("c%d", i), connectOptions{keepAlive: 60})
	}
	for i := range n {
		waitParked(t, b, fmt.Sprintf("c%d", i))
	}
	eventually(t, "one goroutine for all that wait", func() bool { return countGoroutines("broker.(*conn)") == 0 })
}

// countGoroutines counts those whose stack names a function.
func countGoroutines(function string) int {
	buf := make([]byte, 1<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), function)
}
