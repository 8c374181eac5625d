package broker

import (
	"fmt"
	"slices"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// More statements of the standard; docs/mqtt.md has the list.

func TestTopicsAreComparedByteForByte(t *testing.T) { // a byte order mark is a character, spaces and slashes count
	b := start(t, Config{}, newMemory())
	const mark = "\ufeffa"
	for _, topic := range []string{mark, "a b", "/a", "a/", "/", "A"} {
		c, _ := dial(t, b, 5, "c1", connectOptions{})
		other, _ := dial(t, b, 5, "other", connectOptions{})
		c.subscribe(topic, 0)
		for _, near := range []string{"a", "a ", "ab", "/A"} {
			other.publish(pub{topic: near, payload: "near"})
		}
		other.publish(pub{topic: topic, payload: "it"})
		if pk := c.expectPayload("it"); pk.TopicName != topic {
			t.Fatalf("subscribed to %q, got %s", topic, describe(pk))
		}
		c.ping()
	}
}

func TestSubscribeAnswersEveryFilterInOrder(t *testing.T) {
	b := start(t, Config{}, newMemory())
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	body := []byte{0, 9, 0}
	for i, filter := range []string{"a", "b/#/c", "c/+", "d+", "$share//x", "$share/g+/x", "$share/g", "e"} {
		body = append(appendString(body, filter), byte(i%3))
	}
	c.send(packet(0x82, body))
	ack := c.expect(packets.Suback, 9)
	if want := []byte{0, 0x8F, 2, 0x8F, 0x8F, 0x8F, 0x8F, 1}; !slices.Equal(ack.ReasonCodes, want) {
		t.Fatalf("got %x, want %x", ack.ReasonCodes, want)
	}
	for _, topic := range []string{"a", "c/x", "e", "x"} {
		c.publish(pub{topic: topic, payload: topic})
	}
	for _, topic := range []string{"a", "c/x", "e"} {
		c.expectPayload(topic)
	}
	c.ping()
}

func TestClientThatWantsNoReasonsGetsCodesAlone(t *testing.T) {
	b := start(t, Config{}, newMemory())
	c, ack := dial(t, b, 5, "c1", connectOptions{props: []byte{packets.PropRequestProblemInfo, 0, packets.PropRequestResponseInfo, 0}})
	if ack.Properties.ResponseInfo != "" {
		t.Fatalf("response information %q that nobody asked for", ack.Properties.ResponseInfo)
	}
	for qos, kind := range map[byte]byte{1: packets.Puback, 2: packets.Pubrec} {
		c.publish(pub{topic: "devices/a b/telemetry", payload: "{}", qos: qos, id: 7})
		if pk := c.expect(kind, 7); pk.ReasonCode != packets.ErrTopicNameInvalid.Code || pk.Properties.ReasonString != "" {
			t.Fatalf("got %s", describe(pk))
		}
	}
}

func TestWhatIsSentBehindARefusedConnectIsNotProcessed(t *testing.T) {
	m := newMemory()
	b := guarded(t, m)
	send := func(user string) *client {
		c := dialRaw(t, b)
		c.v = 5
		c.send(slices.Concat(connectPacket(5, "c1", connectOptions{user: user}), c.encode(pub{topic: topic1, payload: "{}", qos: 1, id: 1})))
		if ack := c.read(); ack.FixedHeader.Type != packets.Connack || (ack.ReasonCode == 0) != (user == "admin") {
			t.Fatalf("got %s", describe(ack))
		}
		return c
	}
	send("banned").closed(0)
	c := send("admin") // the same is welcome behind a CONNECT that is accepted
	m.next(t).apply()
	c.expect(packets.Puback, 1)
	if m.count() != 1 {
		t.Fatalf("%d publishes reached the ingest path, want 1", m.count())
	}
}

func TestDupOfThePublisherIsNotThatOfTheSubscriber(t *testing.T) {
	b := start(t, Config{}, newMemory())
	for _, keep := range []bool{false, true} {
		for qos := range byte(2) { // of QoS 0 nothing is a repeat
			sub, _ := dial(t, b, 5, "sub", connectOptions{keep: keep})
			sub.subscribe("x", qos)
			c, _ := dial(t, b, 5, "c1", connectOptions{})
			c.publish(pub{topic: "x", payload: "p", qos: 1, id: 1, dup: true})
			c.expect(packets.Puback, 1)
			if pk := sub.expectPayload("p"); pk.FixedHeader.Dup || pk.FixedHeader.Qos != qos {
				t.Fatalf("keep %v: a first delivery of QoS %d is one of %d, repeat %v", keep, qos, pk.FixedHeader.Qos, pk.FixedHeader.Dup)
			}
		}
	}
}

func TestAliasesEndWithTheirConnection(t *testing.T) {
	b := start(t, Config{}, newMemory())
	o := connectOptions{keep: true, props: seconds(packets.PropSessionExpiryInterval, 100)}
	alias := []byte{packets.PropTopicAlias, 0, 1}
	c, _ := dial(t, b, 5, "c1", o)
	c.subscribe("x", 0)
	c.publish(pub{topic: "x", payload: "1", props: alias})
	c.publish(pub{payload: "2", props: alias})
	c.expectPayload("1")
	c.expectPayload("2")
	c.Close()
	c, ack := dial(t, b, 5, "c1", o)
	if !ack.SessionPresent {
		t.Fatal("session not present")
	}
	c.publish(pub{payload: "3", props: alias})
	c.closed(0x82)
}

func TestUnsubscribeLetsAnExchangeComeToItsEnd(t *testing.T) {
	for _, keep := range []bool{false, true} {
		b := start(t, Config{}, newMemory())
		sub, _ := dial(t, b, 5, "sub", connectOptions{keep: keep})
		sub.subscribe("a", 2)
		c, _ := dial(t, b, 5, "c1", connectOptions{})
		c.publish(pub{topic: "a", payload: "x", qos: 2, id: 1})
		c.expect(packets.Pubrec, 1)
		id := sub.expectPayload("x").PacketID
		sub.send(packet(0xA2, append([]byte{0, 7, 0}, appendString(nil, "a")...)))
		sub.expect(packets.Unsuback, 7)
		sub.ack(packets.Pubrec, id)
		if pk := sub.expect(packets.Pubrel, id); pk.ReasonCode != 0 {
			t.Fatalf("keep %v: got %s", keep, describe(pk))
		}
		sub.ack(packets.Pubcomp, id)
		sub.ping()
	}
}

// TestARefusedMessageIsSettled: an acknowledgement with an error ends the exchange; the
// message is not sent again, to nobody.
func TestARefusedMessageIsSettled(t *testing.T) {
	b := start(t, Config{}, newMemory())
	o := connectOptions{keep: true, props: seconds(packets.PropSessionExpiryInterval, 100)}
	for qos, kind := range map[byte]byte{1: packets.Puback, 2: packets.Pubrec} {
		for _, filter := range []string{"jobs", "$share/g/jobs"} {
			t.Run(fmt.Sprintf("QoS %d of %s", qos, filter), func(t *testing.T) {
				dial(t, b, 5, "m1", connectOptions{}) // what was there ends
				dial(t, b, 5, "m2", connectOptions{})
				one, _ := dial(t, b, 5, "m1", o)
				one.subscribe(filter, qos)
				c, _ := dial(t, b, 5, "c1", connectOptions{})
				c.publish(pub{topic: "jobs", payload: "bad", qos: qos, id: 1})
				c.expect(kind, 1)
				pk := one.expectPayload("bad")
				if filter != "jobs" { // another member that could be given it
					two, _ := dial(t, b, 5, "m2", o)
					two.subscribe(filter, qos)
					defer two.ping()
				}
				one.send(packet(kind<<4, []byte{byte(pk.PacketID >> 8), byte(pk.PacketID), 0x80}))
				one.ping()
				one.Close()
				eventually(t, "its connection has ended", func() bool { return b.sessions.get("m1") == nil })
				one, ack := dial(t, b, 5, "m1", o)
				if !ack.SessionPresent {
					t.Fatal("session not present")
				}
				one.ping() // and nothing more
			})
		}
	}
}

func TestAClientWithoutCreditIsAnsweredAllTheSame(t *testing.T) {
	b := start(t, Config{}, newMemory())
	sub, _ := dial(t, b, 5, "sub", connectOptions{props: []byte{packets.PropReceiveMaximum, 0, 1}})
	sub.subscribe("x", 2)
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	for id := range uint16(3) {
		c.publish(pub{topic: "x", payload: fmt.Sprint(id), qos: 2, id: id + 1})
		c.expect(packets.Pubrec, id+1)
	}
	for id := range 3 {
		pk := sub.expectPayload(fmt.Sprint(id))
		sub.ping()
		sub.subscribe("y", 0) // packets without credit pass
		sub.ack(packets.Pubrec, pk.PacketID)
		sub.expect(packets.Pubrel, pk.PacketID)
		sub.ping() // a PUBREC gives no credit back, a PUBCOMP does
		sub.ack(packets.Pubcomp, pk.PacketID)
	}
}

// TestReleasesKeepTheOrderOfTheReceipts: PUBREL goes out in the order in which PUBREC came in.
func TestReleasesKeepTheOrderOfTheReceipts(t *testing.T) {
	b := start(t, Config{}, newMemory())
	for _, keep := range []bool{false, true} { // by the node, and after the shard knows
		sub, _ := dial(t, b, 5, "sub", connectOptions{keep: keep})
		sub.subscribe("x", 2)
		c, _ := dial(t, b, 5, "c1", connectOptions{})
		const n = 16
		var receipts []byte
		for i := range uint16(n) {
			c.publish(pub{topic: "x", payload: "p", qos: 2, id: i + 1})
			c.expect(packets.Pubrec, i+1)
			receipts = append(receipts, 0x50, 2, 0, byte(sub.expectPayload("p").PacketID))
		}
		sub.send(receipts)
		for i := range n {
			sub.expect(packets.Pubrel, uint16(receipts[4*i+3]))
		}
	}
}

// TestAMessageOfQoS2StaysWithTheMemberThatHasIt: of a shared group it is sent to that member again when it
// is back, and to nobody else, not even when its session ends.
func TestAMessageOfQoS2StaysWithTheMemberThatHasIt(t *testing.T) {
	b := start(t, Config{}, newMemory())
	o := connectOptions{keep: true, props: seconds(packets.PropSessionExpiryInterval, 100)}
	one, _ := dial(t, b, 5, "m1", o)
	one.subscribe("$share/g/jobs", 2)
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	c.publish(pub{topic: "jobs", payload: "job", qos: 2, id: 1})
	c.expect(packets.Pubrec, 1)
	id := one.expectPayload("job").PacketID
	two, _ := dial(t, b, 5, "m2", o)
	two.subscribe("$share/g/jobs", 2)
	one.Close()
	eventually(t, "its connection has ended", func() bool { return b.sessions.get("m1") == nil })
	two.ping()
	one, _ = dial(t, b, 5, "m1", o)
	if pk := one.expectPayload("job"); pk.PacketID != id || !pk.FixedHeader.Dup {
		t.Fatalf("sent again as %s, repeat %v", describe(pk), pk.FixedHeader.Dup)
	}
	dial(t, b, 5, "m1", connectOptions{}) // its session ends
	two.ping()
	c.ack(packets.Pubrel, 1)
	c.expect(packets.Pubcomp, 1)
	two.ping()
}
