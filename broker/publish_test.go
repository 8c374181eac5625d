package broker

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/telemetry"
)

const topic1 = "devices/d1/telemetry"

func versions(t *testing.T, f func(t *testing.T, v byte)) {
	for _, v := range []byte{4, 5} {
		t.Run(fmt.Sprintf("v%d", v), func(t *testing.T) { f(t, v) })
	}
}

func TestAckFollowsCommit(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		m := newMemory()
		b := start(t, Config{}, m)
		c, _ := dial(t, b, v, "c1", connectOptions{})
		before := time.Now().UnixMicro()
		c.publish(pub{topic: topic1, payload: "{}", qos: 1, id: 7})
		h := m.next(t)
		c.ping() // everything is read, nothing is acknowledged
		if h.Client != "c1" || h.Device != "d1" || h.Topic != topic1 || string(h.Payload) != "{}" || h.PacketID != 7 || h.QoS != 1 || h.Dup {
			t.Fatalf("ingest got %+v", h.Publish)
		}
		if h.Received < before || h.Received > time.Now().UnixMicro() {
			t.Fatalf("received %d, want a time since %d", h.Received, before)
		}
		h.apply()
		if pk := c.expect(packets.Puback, 7); pk.ReasonCode != 0 || len(pk.Properties.ReasonString) > 0 {
			t.Fatalf("got %s", describe(pk))
		}
	})
}

func TestQoS0HasNoAnswer(t *testing.T) {
	m := newMemory()
	b := start(t, Config{}, m)
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	c.publish(pub{topic: topic1, payload: "{}"})
	m.next(t).apply()
	c.publish(pub{topic: topic1, payload: "{}"})
	m.next(t).decide(telemetry.Result{Unknown: 1})
	c.ping()
	eventually(t, "nothing in flight", func() bool { return b.Stats().InFlight == 0 && b.unanswered.Load() == 0 })
}

func TestQoS2IsExactlyOneIngest(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		m := newMemory()
		b := start(t, Config{}, m)
		c, _ := dial(t, b, v, "c1", connectOptions{keep: v == 4})
		p := pub{topic: topic1, payload: "{}", qos: 2, id: 3}
		c.publish(p)
		h := m.next(t)
		p.dup = true
		c.publish(p) // while it is being committed: the same message
		c.ping()
		h.apply()
		c.expect(packets.Pubrec, 3)
		c.publish(p) // after PUBREC: answered again, not handed over again
		c.expect(packets.Pubrec, 3)
		c.ack(packets.Pubrel, 3)
		c.expect(packets.Pubcomp, 3)
		c.ack(packets.Pubrel, 3)
		if pk := c.expect(packets.Pubcomp, 3); v == 5 && pk.ReasonCode != 0x92 {
			t.Fatalf("release of an unknown id: got %s, want 0x92", describe(pk))
		}
		if m.count() != 1 {
			t.Fatalf("ingest got %d publishes, want 1", m.count())
		}
		p.dup = false
		c.publish(p) // the id is free again
		m.next(t).apply()
		c.expect(packets.Pubrec, 3)
	})
}

func TestAcksKeepPublishOrder(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		m := newMemory()
		b := start(t, Config{}, m)
		c, _ := dial(t, b, v, "c1", connectOptions{})
		const n = 1000
		var batch []byte
		for i := range n {
			batch = append(batch, c.encode(pub{topic: topic1, payload: "{}", qos: 1 + byte(i%3/2), id: uint16(i + 1)})...)
		}
		go func() { _, _ = c.Write(batch) }() // fails only when the test does
		publishes := make([]*held, n)
		for i := range publishes {
			publishes[i] = m.next(t)
			if publishes[i].PacketID != uint16(i+1) {
				t.Fatalf("publish %d was handed over as number %d", publishes[i].PacketID, i+1)
			}
		}
		if s := b.Stats(); s.InFlight != n {
			t.Fatalf("%d in flight, want %d", s.InFlight, n)
		}
		rand.Shuffle(n, func(i, j int) { publishes[i], publishes[j] = publishes[j], publishes[i] })
		for _, p := range publishes {
			go p.apply()
		}
		for i := range n {
			kind := packets.Puback
			if i%3 == 2 {
				kind = packets.Pubrec
			}
			c.expect(kind, uint16(i+1))
		}
	})
}

func TestResultsMapToAnswers(t *testing.T) {
	for _, k := range []struct {
		name   string
		result telemetry.Result
		code5  byte
		ack3   bool // 3.1.1: acknowledged; otherwise the connection closes
	}{
		{"applied", telemetry.Result{Applied: 2}, 0, true},
		{"duplicate", telemetry.Result{Duplicate: 1}, 0, true},
		{"mixed", telemetry.Result{Applied: 1, Quarantined: 1, Reason: "no object"}, 0, true},
		{"quarantined", telemetry.Result{Quarantined: 2, Reason: "not JSON"}, 0x99, true},
		{"topic", telemetry.Result{Refused: 1, Refusal: telemetry.RefusalTopic, Reason: "no such device"}, 0x90, false},
		{"quota", telemetry.Result{Refused: 1, Refusal: telemetry.RefusalQuota, Reason: "disk nearly full"}, 0x97, false},
		{"too large", telemetry.Result{Refused: 1, Refusal: telemetry.RefusalTooLarge, Reason: "too large"}, 0x97, false},
	} {
		for _, qos := range []byte{1, 2} {
			t.Run(fmt.Sprintf("%s/qos%d", k.name, qos), func(t *testing.T) {
				m := newMemory()
				b := start(t, Config{}, m)
				kind := packets.Puback
				if qos == 2 {
					kind = packets.Pubrec
				}
				c5, _ := dial(t, b, 5, "c5", connectOptions{})
				c5.publish(pub{topic: topic1, qos: qos, id: 1})
				m.next(t).decide(k.result)
				pk := c5.expect(kind, 1)
				if pk.ReasonCode != k.code5 || k.code5 != 0 && pk.Properties.ReasonString != k.result.Reason {
					t.Fatalf("got %s, want %#x %q", describe(pk), k.code5, k.result.Reason)
				}
				plain, _ := dial(t, b, 5, "plain", connectOptions{props: []byte{packets.PropRequestProblemInfo, 0}})
				plain.publish(pub{topic: topic1, qos: qos, id: 1})
				m.next(t).decide(k.result)
				if pk := plain.expect(kind, 1); pk.ReasonCode != k.code5 || pk.Properties.ReasonString != "" {
					t.Fatalf("without problem information: got %s", describe(pk))
				}
				c3, _ := dial(t, b, 4, "c3", connectOptions{})
				c3.publish(pub{topic: topic1, qos: qos, id: 1})
				c3.publish(pub{topic: topic1, qos: qos, id: 2})
				first, second := m.next(t), m.next(t)
				second.apply()
				first.decide(k.result)
				if !k.ack3 {
					c3.closed(0)
					return
				}
				c3.expect(kind, 1)
				c3.expect(kind, 2)
			})
		}
	}
}

func TestUnknownIsNeverAcknowledged(t *testing.T) {
	for _, r := range []telemetry.Result{{Unknown: 1}, {Applied: 3, Unknown: 1}, {Applied: 1, Refused: 1, Refusal: telemetry.RefusalQuota}, {}} {
		versions(t, func(t *testing.T, v byte) {
			m := newMemory()
			b := start(t, Config{CommitDeadline: 200 * time.Millisecond}, m)
			c, _ := dial(t, b, v, "c1", connectOptions{})
			c.publish(pub{topic: topic1, qos: 1, id: 1})
			c.publish(pub{topic: topic1, qos: 1, id: 2})
			m.next(t).decide(r)
			m.next(t).apply()
			if v == 5 {
				c.closed(0x89)
			} else {
				c.closed(0)
			}
		})
	}
}

func TestCommitDeadlineClosesConnection(t *testing.T) {
	m := newMemory()
	const deadline = 2 * time.Second
	b := start(t, Config{CommitDeadline: deadline}, m)
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	for i := range uint16(3) { // the clock is the oldest publish's, also after earlier ones were answered
		c.publish(pub{topic: topic1, qos: 1, id: i + 1})
		m.next(t).apply()
		c.expect(packets.Puback, i+1)
		time.Sleep(20 * time.Millisecond)
	}
	sent := time.Now()
	c.publish(pub{topic: topic1, qos: 1, id: 9})
	late := m.next(t)
	c.closed(0x89)
	if d := time.Since(sent); d < deadline {
		t.Fatalf("closed after %v, want %v", d, deadline)
	}
	late.apply() // a result after the end is only counted
	eventually(t, "nothing in flight", func() bool { s := b.Stats(); return s.InFlight == 0 && s.InFlightBytes == 0 })
}

func TestDupIsPassedOn(t *testing.T) {
	m := newMemory()
	b := start(t, Config{}, m)
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	c.publish(pub{topic: topic1, payload: "{}", qos: 1, id: 1})
	m.next(t)
	c.Close()
	c, _ = dial(t, b, 4, "c1", connectOptions{})
	c.publish(pub{topic: topic1, payload: "{}", qos: 1, id: 1, dup: true})
	h := m.next(t)
	if !h.Dup || h.PacketID != 1 {
		t.Fatalf("got %+v, want the repeat with Dup", h.Publish)
	}
	h.decide(telemetry.Result{Duplicate: 1})
	c.expect(packets.Puback, 1)
}

func TestBadTelemetryIsRefusedInTurn(t *testing.T) {
	m := newMemory()
	b := start(t, Config{PayloadBytesMax: 1000}, m)
	for _, k := range []struct {
		name string
		p    pub
		code byte
	}{
		{"device id", pub{topic: "devices/bad id/telemetry"}, 0x90},
		{"gateway id", pub{topic: "gateways/-x/telemetry"}, 0x90},
		{"payload", pub{topic: topic1, payload: strings.Repeat("x", 1001)}, 0x97},
		{"$ topic", pub{topic: "$SYS/broker/uptime"}, 0x90},
		{"$ topic of ours", pub{topic: "$sluice/x"}, 0x90},
		{"levels", pub{topic: strings.Repeat("a/", 40) + "b"}, 0x90},
	} {
		t.Run(k.name, func(t *testing.T) {
			c5, _ := dial(t, b, 5, "c5", connectOptions{})
			c5.publish(pub{topic: topic1, qos: 1, id: 1})
			h := m.next(t)
			k.p.qos, k.p.id = 1, 2
			c5.publish(k.p)
			c5.ping()
			h.apply()
			c5.expect(packets.Puback, 1)
			if pk := c5.expect(packets.Puback, 2); pk.ReasonCode != k.code {
				t.Fatalf("got %s, want %#x", describe(pk), k.code)
			}
			c3, _ := dial(t, b, 4, "c3", connectOptions{})
			c3.publish(pub{topic: topic1, qos: 1, id: 1})
			c3.publish(k.p)
			m.next(t).apply()
			c3.expect(packets.Puback, 1)
			c3.closed(0)
			k.p.qos = 0
			c0, _ := dial(t, b, 4, "c0", connectOptions{})
			c0.publish(k.p)
			c0.ping()
		})
	}
	m.none(t, 10*time.Millisecond)
}

func TestGatewayTopicHasNoDevice(t *testing.T) {
	m := newMemory()
	b := start(t, Config{}, m)
	c, _ := dial(t, b, 4, "gw", connectOptions{})
	c.publish(pub{topic: "gateways/g1/telemetry", payload: "[]", qos: 1, id: 1})
	if h := m.next(t); h.Device != "" || h.Topic != "gateways/g1/telemetry" {
		t.Fatalf("got %+v", h.Publish)
	} else {
		h.apply()
	}
	c.expect(packets.Puback, 1)
}

func TestTopicAliasIsResolved(t *testing.T) {
	m := newMemory()
	b := start(t, Config{TopicAliasMax: 4}, m)
	c, ack := dial(t, b, 5, "c1", connectOptions{})
	if ack.Properties.TopicAliasMaximum != 4 {
		t.Fatalf("CONNACK announces %d aliases, want 4", ack.Properties.TopicAliasMaximum)
	}
	alias := func(n byte) []byte { return []byte{packets.PropTopicAlias, 0, n} }
	for i, k := range []struct {
		topic string
		alias byte
		want  string
	}{{topic1, 1, "d1"}, {"", 1, "d1"}, {"devices/d2/telemetry", 2, "d2"}, {"", 1, "d1"}, {"devices/d3/telemetry", 1, "d3"}, {"", 1, "d3"}, {"", 2, "d2"}} {
		c.publish(pub{topic: k.topic, props: alias(k.alias), qos: 1, id: uint16(i + 1)})
		h := m.next(t)
		if h.Device != k.want || h.Topic != "devices/"+k.want+"/telemetry" {
			t.Fatalf("publish %d: got device %q on %q, want %q", i, h.Device, h.Topic, k.want)
		}
		h.apply()
		c.expect(packets.Puback, uint16(i+1))
	}
	for _, k := range []struct {
		alias, code byte
	}{{5, 0x94}, {0, 0x82}, {3, 0x82}} {
		c, _ := dial(t, b, 5, "c2", connectOptions{})
		c.publish(pub{topic: "", props: alias(k.alias), qos: 1, id: 1})
		c.closed(k.code)
	}
}
