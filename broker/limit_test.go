package broker

import (
	"bufio"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func TestConnectStormWaitsItsTurnAndTheRestIsToldToComeAgain(t *testing.T) {
	// 100 pass at once, 20 per second after them, and nobody waits longer than 1 s: of
	// 200 at most about 120 can be let in, whatever the machine does.
	b := start(t, Config{Limits: Limits{Connects: 20, ConnectWait: time.Second}, HalfOpenMax: 10}, newMemory())
	var mu sync.Mutex
	in, busy := 0, 0
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range 200 {
		nc := dialTCP(t, b.Addr())
		c, version := nc, byte(4+i%2)
		if _, err := nc.Write(connectPacket(version, fmt.Sprintf("c%d", i), connectOptions{})); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer c.Close()
			ack, err := (&client{Conn: c, t: t, r: bufio.NewReader(c), v: version}).tryRead(20 * time.Second)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil || ack.FixedHeader.Type != packets.Connack:
				t.Errorf("client %d: got %s, %v", i, describe(ack), err)
			case ack.ReasonCode == 0:
				in++
			case version == 4 && ack.ReasonCode == 3, version == 5 && ack.ReasonCode == packets.ErrServerBusy.Code && strings.Contains(ack.Properties.ReasonString, "try again in"):
				busy++
			default:
				t.Errorf("client %d was refused with %s", i, describe(ack))
			}
		})
	}
	wg.Wait()
	allowed := connectBurstMin + int(20*time.Since(begin).Seconds()) + 1
	if in < connectBurstMin || in > allowed || in+busy != 200 {
		t.Errorf("%d let in, %d told to come again; at least %d and at most %d may be in", in, busy, connectBurstMin, allowed)
	}
}

func TestMQTT5ClientOverItsLimitIsToldHowLongToWait(t *testing.T) {
	for name, limits := range map[string]Limits{"client": {Identity: 0.5}, "device": {Device: 0.5}} {
		m := newMemory()
		m.auto = applied
		b := start(t, Config{Limits: limits}, m)
		c, _ := dial(t, b, 5, "c1", connectOptions{})
		c.publish(pub{topic: topic1, payload: "{}", qos: 1, id: 1}) // the bucket holds one
		if ack := c.expect(packets.Puback, 1); ack.ReasonCode != 0 {
			t.Fatalf("%s: the first publish is refused: %s", name, describe(ack))
		}
		for id, qos := range []byte{1, 2} {
			kind := packets.Puback
			if qos == 2 {
				kind = packets.Pubrec
			}
			c.publish(pub{topic: topic1, payload: "{}", qos: qos, id: uint16(2 + id)})
			ack := c.expect(kind, uint16(2+id))
			if ack.ReasonCode != packets.ErrQuotaExceeded.Code || !strings.Contains(ack.Properties.ReasonString, name) || !strings.Contains(ack.Properties.ReasonString, "try again in") {
				t.Errorf("%s: got %s", name, describe(ack))
			}
		}
		if n := m.count(); n != 1 {
			t.Errorf("%s: %d publishes reached the log, want 1", name, n)
		}
	}
}

func TestOldClientOverItsLimitWaitsAndLosesNothing(t *testing.T) {
	m := newMemory()
	m.auto = applied
	b := start(t, Config{Limits: Limits{Identity: 10}}, m) // 20 at once, one each 100 ms after them
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	begin := time.Now()
	for id := range uint16(25) {
		c.publish(pub{topic: topic1, payload: "{}", qos: 1, id: id + 1})
	}
	for id := range uint16(25) {
		c.expect(packets.Puback, id+1)
	}
	if d := time.Since(begin); d < 400*time.Millisecond {
		t.Errorf("25 publishes of a client that may send 10 a second took %v", d)
	}
	// A client that waits is still closed at once.
	c.publish(pub{topic: topic1, payload: "{}", qos: 1, id: 100})
	c.expect(packets.Puback, 100)
}

func TestLimitOfOneDeviceIsNotThatOfAnother(t *testing.T) {
	m := newMemory()
	m.auto = applied
	b := start(t, Config{Limits: Limits{Device: 0.5}}, m)
	c, _ := dial(t, b, 5, "gateway", connectOptions{})
	for i := range uint16(20) {
		c.publish(pub{topic: fmt.Sprintf("devices/d%d/telemetry", i), payload: "{}", qos: 1, id: i + 1})
		if ack := c.expect(packets.Puback, i+1); ack.ReasonCode != 0 {
			t.Fatalf("device %d: %s", i, describe(ack))
		}
	}
}

func TestLimitersForgetRatherThanGrow(t *testing.T) {
	l := newLimiters(1)
	l.max = 10
	now := time.Now()
	for i := range 40 * limitShards {
		l.take(fmt.Sprint(i), now, false)
	}
	n := 0
	for i := range l.shards {
		n += len(l.shards[i].byName)
	}
	if n > limitShards*l.max {
		t.Errorf("%d buckets, the bound is %d", n, limitShards*l.max)
	}
}
