package broker

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// pacedMemory is an ingest path that says how much it wants in flight.
type pacedMemory struct {
	*memory
	allowance atomic.Int64
}

func (p *pacedMemory) Allowance() int64 { return p.allowance.Load() }

// TestTelemetryWaitsForTheAllowance: four publishes may be in flight. The rest waits in
// the broker, a command does not, and when the allowance grows more is handed over
// although nothing was committed.
func TestTelemetryWaitsForTheAllowance(t *testing.T) {
	m := &pacedMemory{memory: newMemory()}
	const size = 1000
	m.allowance.Store(4 * (size + publishOverhead))
	b := start(t, Config{CommitDeadline: time.Minute}, m)
	sub, _ := dial(t, b, 4, "sub", connectOptions{})
	sub.subscribe("devices/+/commands", 1)
	full, _ := dial(t, b, 5, "full", connectOptions{})
	for id := range uint16(20) {
		full.publish(pub{topic: topic1, payload: strings.Repeat("x", size), qos: 1, id: id + 1})
	}
	full.ping()
	if n := m.count(); n != 4 {
		t.Fatalf("%d publishes were handed over, want 4", n)
	}
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	c.publish(pub{topic: "devices/c1/commands", payload: strings.Repeat("y", size), qos: 1, id: 1})
	c.expect(packets.Puback, 1)
	sub.ack(packets.Puback, sub.expect(packets.Publish, 1).PacketID)
	if n := m.count(); n != 4 {
		t.Fatalf("%d publishes were handed over, want 4 still", n)
	}
	m.allowance.Store(12 * (size + publishOverhead))
	eventually(t, "more is handed over", func() bool { return m.count() == 12 })
	for range 20 {
		m.next(t).apply()
	}
	for id := range uint16(20) {
		full.expect(packets.Puback, id+1)
	}
	if n := b.budget.paced.Load() + b.budget.used.Load(); n != 0 {
		t.Errorf("%d bytes are counted when nothing is in flight", n)
	}
}

// TestConnectionsTakeTurnsInTheAllowance: one connection has hundreds of publishes
// waiting, another comes later with one. It waits for a share, not for all of them.
func TestConnectionsTakeTurnsInTheAllowance(t *testing.T) {
	m := &pacedMemory{memory: newMemory()}
	const size, crowd = 1000, 300
	m.allowance.Store(budgetShare)
	b := start(t, Config{CommitDeadline: time.Minute, WaitBytesMax: 1 << 20}, m)
	full, _ := dial(t, b, 5, "full", connectOptions{})
	for id := range uint16(crowd) {
		full.publish(pub{topic: topic1, payload: strings.Repeat("x", size), qos: 1, id: id + 1})
	}
	full.ping()
	flight := m.count()
	one, _ := dial(t, b, 4, "one", connectOptions{})
	one.publish(pub{topic: "devices/one/telemetry", payload: strings.Repeat("y", size), qos: 1, id: 1})
	one.ping()
	const share = budgetShare/(size+publishOverhead) + 1
	for n := 0; ; n++ {
		h := m.next(t)
		h.apply()
		if h.Device == "one" {
			if most := flight + 3*share; n > most {
				t.Errorf("%d publishes of the first connection came before, want at most %d", n, most)
			}
			one.expect(packets.Puback, 1)
			for ; n < crowd; n++ {
				m.next(t).apply()
			}
			break
		}
	}
	for id := range uint16(crowd) {
		full.expect(packets.Puback, id+1)
	}
}
