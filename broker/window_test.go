package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func TestWindowOfMQTT5IsEnforced(t *testing.T) {
	m := newMemory()
	b := start(t, Config{Window: 8}, m)
	c, ack := dial(t, b, 5, "c1", connectOptions{})
	if ack.Properties.ReceiveMaximum != 8 {
		t.Fatalf("CONNACK announces %d, want 8", ack.Properties.ReceiveMaximum)
	}
	for round := range 3 {
		for i := range uint16(8) {
			c.publish(pub{topic: topic1, qos: 1 + byte(i%2), id: i + 1})
		}
		for range 8 {
			m.next(t).apply()
		}
		for i := range uint16(8) {
			if i%2 == 0 {
				c.expect(packets.Puback, i+1)
			} else {
				c.expect(packets.Pubrec, i+1)
			}
		}
		for i := range uint16(8) {
			if i%2 == 1 {
				c.ack(packets.Pubrel, i+1)
				c.expect(packets.Pubcomp, i+1)
			}
		}
		_ = round
	}
	for i := range uint16(9) {
		c.publish(pub{topic: topic1, qos: 1, id: i + 1})
	}
	c.closed(0x93)
}

func TestWindowOf311StopsPublishesNotPings(t *testing.T) {
	m := newMemory()
	b := start(t, Config{Window: 4, WaitBytesMax: 100_000}, m)
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	const n = 50
	for i := range uint16(n) {
		c.publish(pub{topic: topic1, payload: "{}", qos: 1, id: i + 1})
	}
	c.ping()
	window := []*held{m.next(t), m.next(t), m.next(t), m.next(t)}
	m.none(t, 20*time.Millisecond)
	for i := range uint16(n) {
		window[0].apply()
		c.expect(packets.Puback, i+1)
		window = window[1:]
		if int(i) < n-4 {
			h := m.next(t)
			if h.PacketID != i+5 {
				t.Fatalf("publish %d came after %d", h.PacketID, i+4)
			}
			window = append(window, h)
		}
	}
	if s := b.Stats(); s.Waiting != 0 || s.InFlight != 0 {
		t.Fatalf("left over: %+v", s)
	}
}

func TestWaitingBytesStopTheReader(t *testing.T) {
	m := newMemory()
	b := start(t, Config{Window: 1, WaitBytesMax: 4000, CommitDeadline: time.Minute}, m)
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	go func() {
		for i := range uint16(1000) { // more than the sockets hold together with the broker
			if _, err := c.Write(c.encode(pub{topic: topic1, payload: strings.Repeat("x", 20_000), qos: 1, id: i + 1})); err != nil {
				return
			}
		}
	}()
	m.next(t)
	eventually(t, "the allowance is used", func() bool { return b.Stats().Waiting > 4000 })
	time.Sleep(50 * time.Millisecond)
	if w := b.Stats().Waiting; w > 4000+21_000 {
		t.Fatalf("%d bytes wait, want at most 4000 and one packet", w)
	}
}

func TestByteBudgetIsSharedFairly(t *testing.T) {
	m := newMemory()
	b := start(t, Config{InFlightBytesMax: 4 * (1000 + publishOverhead)}, m)
	var clients []*client
	for i := range 4 {
		c, _ := dial(t, b, 4, fmt.Sprintf("c%d", i), connectOptions{})
		clients = append(clients, c)
		for id := range uint16(10) {
			c.publish(pub{topic: topic1, payload: strings.Repeat("x", 1000), qos: 1, id: id + 1})
		}
		c.ping()
	}
	for range 40 {
		if n := b.budget.used.Load(); n > b.cfg.InFlightBytesMax {
			t.Fatalf("%d bytes in flight, want at most %d", n, b.cfg.InFlightBytesMax)
		}
		m.next(t).apply()
	}
	for _, c := range clients {
		for id := range uint16(10) {
			c.expect(packets.Puback, id+1)
		}
	}
	if s := b.Stats(); s.InFlightBytes != 0 || s.Waiting != 0 {
		t.Fatalf("left over: %+v", s)
	}
}

func TestDrainAnswersWhatIsInFlight(t *testing.T) {
	m := newMemory()
	b := start(t, Config{}, m)
	c5, _ := dial(t, b, 5, "c5", connectOptions{})
	c3, _ := dial(t, b, 4, "c3", connectOptions{})
	for _, c := range []*client{c5, c3} {
		c.publish(pub{topic: topic1, qos: 1, id: 1})
		c.ping()
	}
	first, second := m.next(t), m.next(t)
	ended := make(chan error, 1)
	go func() { ended <- b.Drain(context.Background()) }()
	eventually(t, "the listener is closed", func() bool { return b.draining.Load() })
	c5.publish(pub{topic: topic1, qos: 1, id: 2}) // too late: not taken, not answered
	first.apply()
	second.apply()
	c5.expect(packets.Puback, 1)
	c3.expect(packets.Puback, 1)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	c5.closed(0x8B)
	c3.closed(0)
	m.none(t, 10*time.Millisecond)
}

func TestDrainGivesUpWithItsContext(t *testing.T) {
	m := newMemory()
	b := start(t, Config{}, m)
	c, _ := dial(t, b, 5, "c5", connectOptions{})
	c.publish(pub{topic: topic1, qos: 1, id: 1})
	m.next(t)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := b.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 publishes") {
		t.Fatalf("got %v", err)
	}
	c.closed(0x8B)
}
