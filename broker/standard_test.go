package broker

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Statements of the standard that no other test is about; docs/mqtt.md has the list.

// subscribeWith sends a SUBSCRIBE of MQTT 5 with an identifier.
func (c *client) subscribeWith(filter string, options byte, identifier int) {
	c.t.Helper()
	props := appendVarint([]byte{packets.PropSubscriptionIdentifier}, identifier)
	b := append(appendVarint([]byte{0, 99}, len(props)), props...)
	c.send(packet(0x82, append(appendString(b, filter), options)))
	c.expect(packets.Suback, 99)
}

func seconds(property byte, n uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{property}, n)
}

func TestOverlappingSubscriptionsGiveOneMessageWithAllIdentifiers(t *testing.T) {
	for _, keep := range []bool{false, true} { // by the node, and by the shard
		b := start(t, Config{}, newMemory())
		sub, _ := dial(t, b, 5, "sub", connectOptions{keep: keep})
		sub.subscribeWith("a/#", 0, 1)
		sub.subscribeWith("a/+", 2, 2)
		sub.subscribeWith("b", 1, 3)
		c, _ := dial(t, b, 5, "c1", connectOptions{})
		c.publish(pub{topic: "a/x", payload: "p", qos: 1, id: 1})
		c.expect(packets.Puback, 1)
		pk := sub.read()
		ids := pk.Properties.SubscriptionIdentifier
		if pk.FixedHeader.Qos != 1 || len(ids) != 2 || ids[0]+ids[1] != 3 {
			t.Fatalf("keep %v: got %s qos %d identifiers %v, want one message of the highest quality with 1 and 2", keep, describe(pk), pk.FixedHeader.Qos, ids)
		}
		sub.ack(packets.Puback, pk.PacketID)
		sub.ping() // and nothing more
	}
}

func TestNoLocalAndRetainOptions(t *testing.T) {
	const noLocal, asPublished, onlyNew, never = 4, 8, 16, 32
	for _, keep := range []bool{false, true} {
		b := start(t, Config{}, newMemory())
		c, _ := dial(t, b, 5, "c1", connectOptions{keep: keep})
		c.subscribe("own", 1|noLocal)
		c.publish(pub{topic: "own", payload: "x", qos: 1, id: 1})
		c.expect(packets.Puback, 1)
		c.publish(pub{topic: "kept", payload: "r", qos: 1, id: 2, retain: true})
		c.expect(packets.Puback, 2)
		sub, _ := dial(t, b, 5, "sub", connectOptions{keep: keep})
		sub.subscribe("kept", 1|never)
		sub.ping()
		sub.subscribe("kept", 1|onlyNew) // not new any more
		sub.ping()
		sub.subscribe("kept", 1|asPublished)
		pk := sub.read()
		if !pk.FixedHeader.Retain || string(pk.Payload) != "r" {
			t.Fatalf("got %s", describe(pk))
		}
		sub.ack(packets.Puback, pk.PacketID)
		c.publish(pub{topic: "kept", payload: "again", qos: 1, id: 3, retain: true})
		c.expect(packets.Puback, 3)
		if pk = sub.read(); !pk.FixedHeader.Retain || string(pk.Payload) != "again" {
			t.Fatalf("retain as published: got %s retain %v", describe(pk), pk.FixedHeader.Retain)
		}
		sub.ack(packets.Puback, pk.PacketID)
		sub.subscribe("kept", 1)
		sub.ack(packets.Puback, sub.expectPayload("again").PacketID)
		c.publish(pub{topic: "kept", payload: "live", qos: 1, id: 4, retain: true})
		c.expect(packets.Puback, 4)
		if pk = sub.expectPayload("live"); pk.FixedHeader.Retain {
			t.Fatal("a live message has the retain flag although the subscription did not ask for it")
		}
		sub.ack(packets.Puback, pk.PacketID)
		sub.ping() // the subscription was replaced each time: one copy
		fresh, _ := dial(t, b, 5, "fresh", connectOptions{keep: keep})
		fresh.subscribe("kept", 1|onlyNew)
		fresh.expectPayload("live")
		c.ping() // nothing of its own
	}
}

// expectPayload reads a publish.
func (c *client) expectPayload(want string) packets.Packet {
	c.t.Helper()
	pk := c.read()
	if pk.FixedHeader.Type != packets.Publish || string(pk.Payload) != want {
		c.t.Fatalf("got %s, want a publish of %q", describe(pk), want)
	}
	return pk
}

func TestMessagesExpireAndTellWhatIsLeft(t *testing.T) {
	t.Parallel()
	b := start(t, Config{}, newMemory())
	o := connectOptions{keep: true, props: seconds(packets.PropSessionExpiryInterval, 100)}
	sub, _ := dial(t, b, 5, "sub", o)
	sub.subscribe("cmd", 1)
	sub.Close()
	eventually(t, "the subscriber is away", func() bool { return b.Stats().Connections == 0 })
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	c.publish(pub{topic: "cmd", payload: "short", qos: 1, id: 1, props: seconds(packets.PropMessageExpiryInterval, 1)})
	c.publish(pub{topic: "cmd", payload: "long", qos: 1, id: 2, props: seconds(packets.PropMessageExpiryInterval, 1000)})
	c.expect(packets.Puback, 1)
	c.expect(packets.Puback, 2)
	time.Sleep(1200 * time.Millisecond) // longer than the first lives
	sub, _ = dial(t, b, 5, "sub", o)
	if left := sub.expectPayload("long").Properties.MessageExpiryInterval; left == 0 || left >= 1000 {
		t.Fatalf("%d seconds are left of 1000, after more than one", left)
	}
}

func TestDisconnectMayShortenTheSessionAndKeepTheWill(t *testing.T) {
	b := start(t, Config{}, newMemory())
	watch, _ := dial(t, b, 5, "watch", connectOptions{})
	watch.subscribe("will", 1)
	o := connectOptions{keep: true, props: seconds(packets.PropSessionExpiryInterval, 100),
		will: &packets.Packet{TopicName: "will", Payload: []byte("w"), FixedHeader: packets.FixedHeader{Qos: 1}}, willProps: appendString([]byte{packets.PropContentType}, "text")}
	c, _ := dial(t, b, 5, "c1", o)
	c.send([]byte{0xE0, 2, 0x04, 0}) // with will message
	c.closed(0)
	if pk := watch.expectPayload("w"); pk.Properties.ContentType != "text" {
		t.Fatalf("the will lost its properties: %+v", pk.Properties)
	}
	c, ack := dial(t, b, 5, "c1", o)
	if !ack.SessionPresent {
		t.Fatal("the session is not present")
	}
	props := seconds(packets.PropSessionExpiryInterval, 0)
	c.send(packet(0xE0, append([]byte{0, byte(len(props))}, props...)))
	c.closed(0)
	eventually(t, "the client is away", func() bool { return b.Stats().Connections == 1 })
	if _, ack := dial(t, b, 5, "c1", o); ack.SessionPresent {
		t.Fatal("a session that ended with its connection is present")
	}
	watch.quiet(50 * time.Millisecond)
}

func TestDisconnectWithAReasonAloneKeepsTheWill(t *testing.T) {
	b := start(t, Config{}, newMemory())
	watch, _ := dial(t, b, 5, "watch", connectOptions{})
	watch.subscribe("will", 1)
	c, _ := dial(t, b, 5, "c1", connectOptions{will: &packets.Packet{TopicName: "will", Payload: []byte("w")}})
	c.send([]byte{0xE0, 1, 0x04})
	watch.expectPayload("w")
}

func TestClientThatAnswersSlowlyReadsWhyItIsDisconnected(t *testing.T) {
	const window = 60 // answered more slowly than a client that is silent is waited for
	b := start(t, Config{Window: window}, newMemory())
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	for id := range uint16(window) {
		c.publish(pub{topic: "t", payload: "x", qos: 2, id: id + 1})
	}
	eventually(t, "all are answered", func() bool {
		own := b.all()[0]
		own.mu.Lock()
		defer own.mu.Unlock()
		return own.received == window
	})
	c.publish(pub{topic: "t", payload: "x", qos: 2, id: window + 1}) // one more than the receive maximum
	for {
		pk := c.read()
		if pk.FixedHeader.Type == packets.Disconnect {
			if pk.ReasonCode != packets.ErrReceiveMaximum.Code {
				t.Fatalf("disconnected for %s", describe(pk))
			}
			return
		}
		time.Sleep(lingerTimeout * 5 / 4 / window)
		c.send([]byte{0x62, 2, byte(pk.PacketID >> 8), byte(pk.PacketID)})
	}
}

func TestEnhancedAuthenticationIsRefused(t *testing.T) {
	b := start(t, Config{}, newMemory())
	props := appendString([]byte{packets.PropAuthenticationMethod}, "SCRAM-SHA-1")
	if _, ack := dial(t, b, 5, "c1", connectOptions{props: props, wantRefuse: true}); ack.ReasonCode != packets.ErrBadAuthenticationMethod.Code {
		t.Fatalf("got %s", describe(ack))
	}
}

func TestReasonsAreToldToMQTT5Only(t *testing.T) {
	b := start(t, Config{}, newMemory())
	for _, v := range []byte{4, 5} {
		c, _ := dial(t, b, v, "same", connectOptions{})
		dial(t, b, v, "same", connectOptions{})
		c.closed(map[byte]byte{4: 0, 5: 0x8E}[v])
		bad, _ := dial(t, b, v, "bad", connectOptions{})
		bad.send([]byte{0x10, 0}) // a second CONNECT that cannot be decoded either
		pk, err := bad.tryRead(5 * time.Second)
		if v == 4 && err == nil || v == 5 && (err != nil || pk.FixedHeader.Type != packets.Disconnect) {
			t.Fatalf("MQTT %d: got %s (%v)", v, describe(pk), err)
		}
	}
}

func TestUnsubscribeEndsDeliveryAndSaysWhetherThereWasOne(t *testing.T) {
	for _, keep := range []bool{false, true} {
		b := start(t, Config{}, newMemory())
		sub, _ := dial(t, b, 5, "sub", connectOptions{keep: keep})
		sub.subscribe("a", 1)
		body := append([]byte{0, 7, 0}, appendString(nil, "a")...)
		sub.send(packet(0xA2, append(body, appendString(nil, "never")...)))
		ack := sub.expect(packets.Unsuback, 7)
		if len(ack.ReasonCodes) != 2 || ack.ReasonCodes[0] != 0 || ack.ReasonCodes[1] != 0x11 {
			t.Fatalf("got %v", ack.ReasonCodes)
		}
		c, _ := dial(t, b, 5, "c1", connectOptions{})
		c.publish(pub{topic: "a", payload: "x", qos: 1, id: 1})
		c.expect(packets.Puback, 1)
		sub.ping()
	}
}

func TestSharedSubscriptionsOfDurableSessionsShare(t *testing.T) {
	b := start(t, Config{}, newMemory())
	var members []*client
	for _, id := range []string{"m1", "m2"} {
		m, _ := dial(t, b, 5, id, connectOptions{keep: true, props: seconds(packets.PropSessionExpiryInterval, 100)})
		m.subscribe("$share/g/jobs", 1)
		members = append(members, m)
	}
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	for i := range uint16(10) {
		c.publish(pub{topic: "jobs", payload: "x", qos: 1, id: i + 1})
		c.expect(packets.Puback, i+1)
	}
	for _, m := range members {
		for range 5 {
			m.ack(packets.Puback, m.expectPayload("x").PacketID)
		}
		m.ping()
	}
}
