package broker

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// TestCommandsPassTelemetryOnTheWayToASlowClient: a client that has let telemetry pile up
// gets a command next, and the telemetry goes on.
func TestCommandsPassTelemetryOnTheWayToASlowClient(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		m := newMemory()
		m.auto = applied
		b := start(t, Config{}, m)
		sub, _ := dial(t, b, v, "sub", connectOptions{})
		sub.subscribe("devices/#", 1)
		c, _ := dial(t, b, v, "c1", connectOptions{})
		const flight, waiting = deliverWindow, 8
		for i := range uint16(flight + waiting) {
			c.publish(pub{topic: topic1, payload: fmt.Sprintf("t%d", i), qos: 1, id: i + 1})
			c.expect(packets.Puback, i+1)
		}
		for i := range uint16(4) {
			c.publish(pub{topic: "devices/c1/commands/x", payload: fmt.Sprintf("c%d", i), qos: 1, id: 1000 + i})
			c.expect(packets.Puback, 1000+i)
		}
		var got []string
		for i := range flight + waiting + 4 { // the window is full of telemetry: each answer lets one more go
			pk := sub.expect(packets.Publish, uint16(i%65_535)+1)
			got = append(got, string(pk.Payload))
			sub.ack(packets.Puback, pk.PacketID)
		}
		at := func(i int) string { return fmt.Sprintf("t%d", flight+i) }
		want := []string{"c0", "c1", "c2", at(0), "c3", at(1), at(2), at(3)}
		if !slices.Equal(got[flight:flight+len(want)], want) {
			t.Errorf("behind the window came %v, want %v", got[flight:], want)
		}
		if got[len(got)-1] != at(waiting-1) {
			t.Errorf("the last is %s, want %s", got[len(got)-1], at(waiting-1))
		}
	})
}

// TestACommandIsTakenWhileTelemetryFillsTheNode: nothing of it is committed, and as much
// waits as may.
func TestACommandIsTakenWhileTelemetryFillsTheNode(t *testing.T) {
	m := newMemory()
	const size = 1000
	b := start(t, Config{InFlightBytesMax: 16 * (size + publishOverhead), CommitDeadline: time.Minute}, m)
	sub, _ := dial(t, b, 4, "sub", connectOptions{})
	sub.subscribe("devices/+/commands", 1)
	full, _ := dial(t, b, 4, "full", connectOptions{})
	for id := range uint16(20) {
		full.publish(pub{topic: topic1, payload: strings.Repeat("x", size), qos: 1, id: id + 1})
	}
	full.ping()
	other, _ := dial(t, b, 4, "other", connectOptions{})
	other.publish(pub{topic: topic1, payload: strings.Repeat("x", size), qos: 1, id: 1})
	other.ping()
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	c.publish(pub{topic: "devices/c1/commands", payload: strings.Repeat("y", size), qos: 1, id: 1})
	c.expect(packets.Puback, 1)
	sub.ack(packets.Puback, sub.expect(packets.Publish, 1).PacketID)
	if n := m.count(); n != 14 {
		t.Errorf("%d publishes of telemetry were handed over, want 14: an eighth of the room is for commands", n)
	}
	for range 21 {
		m.next(t).apply()
	}
	for id := range uint16(20) {
		full.expect(packets.Puback, id+1)
	}
	other.expect(packets.Puback, 1)
}

// TestTelemetryDoesNotUseUpTheLimitOfAlarms: a device that has sent as much telemetry as
// it may is told so, and its alarm is taken; alarms have the same limit by themselves.
func TestTelemetryDoesNotUseUpTheLimitOfAlarms(t *testing.T) {
	m := newMemory()
	m.auto = applied
	b := start(t, Config{Limits: Limits{Identity: 0.5}}, m)
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	for i, p := range []struct {
		topic string
		code  byte
	}{
		{topic1, 0}, {topic1, packets.ErrQuotaExceeded.Code},
		{"devices/c1/alarms", 0}, {"devices/c1/alarms", packets.ErrQuotaExceeded.Code},
	} {
		id := uint16(i + 1)
		c.publish(pub{topic: p.topic, payload: "{}", qos: 1, id: id})
		ack := c.expect(packets.Puback, id)
		code := ack.ReasonCode
		if code == packets.CodeNoMatchingSubscribers.Code {
			code = 0
		}
		if code != p.code {
			t.Errorf("publish %d on %s: got %s, want 0x%x", i, p.topic, describe(ack), p.code)
		}
	}
}
