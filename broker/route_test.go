package broker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/telemetry"
)

func TestSubscribersGetTelemetryAfterItsCommit(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		m := newMemory()
		b := start(t, Config{}, m)
		sub, _ := dial(t, b, v, "sub", connectOptions{})
		sub.subscribe("devices/+/telemetry", 1)
		c, _ := dial(t, b, v, "c1", connectOptions{})
		for i := range uint16(3) {
			c.publish(pub{topic: topic1, payload: fmt.Sprintf(`{"n":%d}`, i), qos: byte(i), id: i})
			h := m.next(t)
			sub.quiet(20 * time.Millisecond)
			h.apply()
			pk := sub.read()
			if pk.FixedHeader.Type != packets.Publish || pk.TopicName != topic1 || string(pk.Payload) != fmt.Sprintf(`{"n":%d}`, i) || pk.FixedHeader.Qos != min(byte(i), 1) {
				t.Fatalf("got %s", describe(pk))
			}
		}
		for _, r := range []telemetry.Result{{Unknown: 1}, {Quarantined: 1}, {Refused: 1}} {
			c.publish(pub{topic: topic1})
			m.next(t).decide(r)
		}
		c.publish(pub{topic: topic1, payload: "last"})
		m.next(t).apply()
		if pk := sub.read(); string(pk.Payload) != "last" {
			t.Fatalf("got %s, want only what was applied", describe(pk))
		}
	})
}

func TestTelemetryOfAClientThatLeftIsDelivered(t *testing.T) {
	m := newMemory()
	b := start(t, Config{}, m)
	sub, _ := dial(t, b, 4, "sub", connectOptions{})
	sub.subscribe("devices/#", 0)
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	c.publish(pub{topic: topic1, payload: "one"})
	c.publish(pub{topic: topic1, payload: "two"})
	c.send([]byte{0xE0, 0})
	c.closed(0)
	first, second := m.next(t), m.next(t)
	second.apply()
	first.apply()
	for _, want := range []string{"one", "two"} {
		if pk := sub.read(); string(pk.Payload) != want {
			t.Fatalf("got %s, want %s", describe(pk), want)
		}
	}
	eventually(t, "the connection is over", func() bool { return len(b.all()) == 1 })
}

func TestLocalMessagesFlowBothQoS(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		b := start(t, Config{}, newMemory())
		sub, _ := dial(t, b, v, "sub", connectOptions{})
		if ack := sub.subscribe("cmd/#", 2); ack.ReasonCodes[0] != 2 {
			t.Fatalf("granted %v", ack.ReasonCodes)
		}
		c, _ := dial(t, b, v, "c1", connectOptions{})
		c.publish(pub{topic: "cmd/a", payload: "0"})
		c.publish(pub{topic: "cmd/a", payload: "1", qos: 1, id: 1})
		c.publish(pub{topic: "cmd/a", payload: "2", qos: 2, id: 2})
		c.expect(packets.Puback, 1)
		c.expect(packets.Pubrec, 2)
		c.ack(packets.Pubrel, 2)
		c.expect(packets.Pubcomp, 2)
		sub.expect(packets.Publish, 0)
		sub.ack(packets.Puback, sub.expect(packets.Publish, 1).PacketID)
		sub.ack(packets.Pubrec, sub.expect(packets.Publish, 2).PacketID)
		sub.expect(packets.Pubrel, 2)
		sub.ack(packets.Pubcomp, 2)
		sub.ping()
		s := b.sessions.get("sub")
		if s.mu.Lock(); len(s.sent)+len(s.flight)+s.unsent.Len()+s.bytes != 0 {
			t.Errorf("left over: %d sent, %d unsent, %d bytes", len(s.sent), s.unsent.Len(), s.bytes)
		}
		s.mu.Unlock()
		sub.send(packet(0xA2, append(map[byte][]byte{4: {0, 5}, 5: {0, 5, 0}}[v], appendString(nil, "cmd/#")...)))
		sub.expect(packets.Unsuback, 5)
		c.publish(pub{topic: "cmd/a", payload: "3"})
		c.ping()
		sub.ping()
		if n := b.Stats().Subscriptions; n != 0 {
			t.Fatalf("%d subscriptions left", n)
		}
	})
}

func TestSlowSubscriberHoldsUpNobody(t *testing.T) {
	m := newMemory()
	m.auto = applied
	b := start(t, Config{OutBytesMax: 64 << 10}, m)
	sub, _ := dial(t, b, 4, "sub", connectOptions{})
	sub.subscribe("devices/#", 0) // and reads nothing more
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	payload := strings.Repeat("x", 10_000)
	for i := range uint16(2000) {
		c.publish(pub{topic: topic1, payload: payload, qos: 1, id: i + 1})
		c.expect(packets.Puback, i+1)
	}
	if value(t, b.metrics.dropped.WithLabelValues("slow")) == 0 {
		t.Fatal("20 MB to a client that does not read, and nothing was dropped")
	}
}

func TestRetainedMessages(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		m := newMemory()
		m.auto = applied
		b := start(t, Config{}, m)
		c, _ := dial(t, b, v, "c1", connectOptions{})
		c.publish(pub{topic: "state/a", payload: "old", qos: 1, id: 1, retain: true})
		c.expect(packets.Puback, 1)
		c.publish(pub{topic: "state/a", payload: "on", qos: 1, id: 2, retain: true})
		c.expect(packets.Puback, 2)
		c.publish(pub{topic: topic1, payload: "{}", qos: 1, id: 3, retain: true})
		c.expect(packets.Puback, 3)
		sub, _ := dial(t, b, v, "sub", connectOptions{})
		sub.subscribe("state/+", 1)
		if pk := sub.read(); !pk.FixedHeader.Retain || string(pk.Payload) != "on" {
			t.Fatalf("got %s", describe(pk))
		}
		sub.subscribe("devices/#", 0)
		if pk := sub.read(); !pk.FixedHeader.Retain || pk.TopicName != topic1 {
			t.Fatalf("got %s", describe(pk))
		}
		c.publish(pub{topic: "state/a", payload: "live", retain: true})
		if pk := sub.read(); pk.FixedHeader.Retain || string(pk.Payload) != "live" {
			t.Fatalf("a live message: got %s retain %v", describe(pk), pk.FixedHeader.Retain)
		}
		c.publish(pub{topic: "state/a", payload: "passing"})
		sub.expectPayload("passing")
		other, _ := dial(t, b, v, "other", connectOptions{})
		other.subscribe("state/a", 0)
		other.expectPayload("live") // what is not retained replaces nothing
		other.ping()
		c.publish(pub{topic: "state/a", qos: 1, id: 4, retain: true})
		c.expect(packets.Puback, 4)
		c.publish(pub{topic: topic1, qos: 1, id: 5, retain: true})
		c.expect(packets.Puback, 5)
		late, _ := dial(t, b, v, "late", connectOptions{})
		late.subscribe("#", 1)
		late.quiet(50 * time.Millisecond)
	})
}

func TestSharedSubscriptionGivesEachMessageToOne(t *testing.T) {
	b := start(t, Config{}, newMemory())
	var members []*client
	for i := range 3 {
		c, _ := dial(t, b, 5, fmt.Sprintf("m%d", i), connectOptions{})
		c.subscribe("$share/g/jobs/#", 1)
		members = append(members, c)
	}
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	for i := range uint16(30) {
		c.publish(pub{topic: "jobs/x", qos: 1, id: i + 1})
		c.expect(packets.Puback, i+1)
	}
	low, _ := dial(t, b, 5, "low", connectOptions{})
	low.subscribe("$share/low/jobs/#", 0)
	c.publish(pub{topic: "jobs/x", payload: "low", qos: 1, id: 31})
	c.expect(packets.Puback, 31)
	if pk := low.expectPayload("low"); pk.FixedHeader.Qos != 0 {
		t.Fatalf("a member that was granted QoS 0 gets %d", pk.FixedHeader.Qos)
	}
	total := 0
	for _, c := range members {
		c.send([]byte{0xC0, 0})
		for c.read().FixedHeader.Type == packets.Publish {
			total++
		}
	}
	if total != 31 {
		t.Fatalf("%d deliveries, want 31", total)
	}
}

func TestPropertiesAndIdentifiersReachTheSubscriber(t *testing.T) {
	b := start(t, Config{}, newMemory())
	sub, _ := dial(t, b, 5, "sub", connectOptions{props: []byte{packets.PropTopicAliasMaximum, 0, 1}})
	body := append([]byte{0, 1, 2, packets.PropSubscriptionIdentifier, 9}, appendString(nil, "rpc/+")...)
	sub.send(packet(0x82, append(body, 0x08))) // retain as published
	sub.expect(packets.Suback, 1)
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	props := appendString([]byte{packets.PropResponseTopic}, "rpc/answer")
	props = appendString(append(props, packets.PropCorrelationData), "\x00\xff")
	props = appendString(append(props, packets.PropContentType), "text/plain")
	props = appendString(appendString(append(props, packets.PropUser), "k"), "v")
	props = append(props, packets.PropPayloadFormat, 1, packets.PropMessageExpiryInterval, 0, 0, 0, 100)
	for i := range 2 {
		c.publish(pub{topic: "rpc/x", payload: "hello", props: props, retain: true})
		pk := sub.read()
		p := pk.Properties
		if p.ResponseTopic != "rpc/answer" || string(p.CorrelationData) != "\x00\xff" || p.ContentType != "text/plain" || len(p.User) != 1 ||
			p.User[0] != (packets.UserProperty{Key: "k", Val: "v"}) || p.PayloadFormat != 1 || p.MessageExpiryInterval < 98 || p.MessageExpiryInterval > 100 ||
			len(p.SubscriptionIdentifier) != 1 || p.SubscriptionIdentifier[0] != 9 || !pk.FixedHeader.Retain || p.TopicAlias != 1 {
			t.Fatalf("got %s %+v", describe(pk), p)
		}
		if want := []string{"rpc/x", ""}[i]; pk.TopicName != want {
			t.Fatalf("publish %d: topic %q, want %q", i, pk.TopicName, want)
		}
	}
	c.publish(pub{topic: "rpc/y", payload: "more aliases than the client takes"})
	if pk := sub.read(); pk.TopicName != "rpc/y" || pk.Properties.TopicAlias > 1 {
		t.Fatalf("a second topic is sent as %q, alias %d; the client takes one alias", pk.TopicName, pk.Properties.TopicAlias)
	}
}

func TestReceiveMaximumAndPacketSizeOfTheClientAreKept(t *testing.T) {
	b := start(t, Config{}, newMemory())
	sub, _ := dial(t, b, 5, "sub", connectOptions{props: []byte{packets.PropReceiveMaximum, 0, 2, packets.PropMaximumPacketSize, 0, 0, 0, 60}})
	sub.subscribe("cmd", 1)
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	for i := range uint16(6) {
		payload := fmt.Sprint(i)
		if i == 1 {
			payload = strings.Repeat("x", 100)
		}
		c.publish(pub{topic: "cmd", payload: payload, qos: 1, id: i + 1})
		c.expect(packets.Puback, i+1)
	}
	for _, want := range []string{"0", "2", "3", "4", "5"} {
		pk := sub.read()
		if string(pk.Payload) != want {
			t.Fatalf("got %s, want %s", describe(pk), want)
		}
		if want == "2" {
			sub.quiet(20 * time.Millisecond) // two are unacknowledged
			sub.ack(packets.Puback, 1)
		} else if want != "0" {
			sub.ack(packets.Puback, pk.PacketID)
		}
		if want == "2" {
			sub.ack(packets.Puback, pk.PacketID)
		}
	}
}

func TestSysTopicsAreReadOnly(t *testing.T) {
	b := start(t, Config{}, newMemory())
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	c.subscribe("$SYS/broker/clients/#", 0)
	for range 2 {
		if pk := c.read(); !strings.HasPrefix(pk.TopicName, "$SYS/broker/clients/") || string(pk.Payload) != "1" {
			t.Fatalf("got %s", describe(pk))
		}
	}
	if ack := c.subscribe("$internal/#", 0); ack.ReasonCodes[0] != 0x80 {
		t.Fatalf("granted %v", ack.ReasonCodes)
	}
}
