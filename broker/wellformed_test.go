package broker

import (
	"slices"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// properties puts their length in front of properties.
func properties(list ...[]byte) []byte {
	p := slices.Concat(list...)
	return append(appendVarint(nil, len(p)), p...)
}

func text(property byte, s string) []byte { return appendString([]byte{property}, s) }

// subscribeBody is a SUBSCRIBE of MQTT 5 for one filter.
func subscribeBody(props []byte, filter string, options byte) []byte {
	return append(appendString(append([]byte{0, 1}, props...), filter), options)
}

func publishBody(topic string, props []byte, payload string) []byte {
	return append(append(appendString(nil, topic), props...), payload...)
}

func TestWhatTheStandardForbidsEndsTheConnectionWithItsReason(t *testing.T) {
	b := start(t, Config{}, newMemory())
	none := properties()
	twice := func(p []byte) []byte { return properties(p, p) }
	user := appendString(text(packets.PropUser, "k"), "v")
	for _, k := range []struct {
		name string
		p    []byte
		code byte // 0: nothing is wrong
	}{
		{"retain handling 3", packet(0x82, subscribeBody(none, "a", 0x31)), 0x82},
		{"no local on a shared subscription", packet(0x82, subscribeBody(none, "$share/g/a", 0x05)), 0x82},
		{"reserved bits of options", packet(0x82, subscribeBody(none, "a", 0x41)), 0x81},
		{"subscription identifier 0", packet(0x82, subscribeBody(properties([]byte{packets.PropSubscriptionIdentifier, 0}), "a", 1)), 0x82},
		{"two subscription identifiers", packet(0x82, subscribeBody(twice([]byte{packets.PropSubscriptionIdentifier, 5}), "a", 1)), 0x82},
		{"user properties of SUBSCRIBE", packet(0x82, subscribeBody(twice(user), "a", 1)), 0},
		{"subscription identifier in PUBLISH", packet(0x30, publishBody("a", properties([]byte{packets.PropSubscriptionIdentifier, 5}), "")), 0x82},
		{"payload format twice", packet(0x30, publishBody("a", twice([]byte{packets.PropPayloadFormat, 1}), "")), 0x82},
		{"payload format 2", packet(0x30, publishBody("a", properties([]byte{packets.PropPayloadFormat, 2}), "")), 0x82},
		{"message expiry twice", packet(0x30, publishBody("a", twice(seconds(packets.PropMessageExpiryInterval, 5)), "")), 0x82},
		{"topic alias twice", packet(0x30, publishBody("a", twice([]byte{packets.PropTopicAlias, 0, 1}), "")), 0x82},
		{"topic alias 0", packet(0x30, publishBody("a", properties([]byte{packets.PropTopicAlias, 0, 0}), "")), 0x94},
		{"topic alias beyond the maximum", packet(0x30, publishBody("a", properties([]byte{packets.PropTopicAlias, 0xff, 0xff}), "")), 0x94},
		{"content type twice", packet(0x30, publishBody("a", twice(text(packets.PropContentType, "x")), "")), 0x82},
		{"response topic twice", packet(0x30, publishBody("a", twice(text(packets.PropResponseTopic, "x")), "")), 0x82},
		{"response topic with a wildcard", packet(0x30, publishBody("a", properties(text(packets.PropResponseTopic, "x/+")), "")), 0x82},
		{"correlation data twice", packet(0x30, publishBody("a", twice(text(packets.PropCorrelationData, "x")), "")), 0x82},
		{"a property longer than the properties", packet(0x30, publishBody("a", append([]byte{4}, text(packets.PropContentType, "xxx")...), "payload")), 0x81},
		{"a property of another packet", packet(0x30, publishBody("a", properties(seconds(packets.PropSessionExpiryInterval, 5)), "")), 0x81},
		{"user properties of PUBLISH", packet(0x30, publishBody("a", twice(user), "x")), 0},
		{"reason string twice in PUBACK", packet(0x40, append([]byte{0, 9, 0}, twice(text(packets.PropReasonString, "x"))...)), 0x82},
		{"PUBACK with bytes behind it", packet(0x40, []byte{0, 9, 0, 0, 1}), 0x81},
		{"PUBACK without a reason", packet(0x40, []byte{0, 9}), 0},
		{"PUBREC with a reason alone", packet(0x50, []byte{0, 9, 0x80}), 0},
		{"session expiry twice in DISCONNECT", packet(0xE0, append([]byte{0}, twice(seconds(packets.PropSessionExpiryInterval, 0))...)), 0x82},
		{"PINGREQ with a body", packet(0xC0, []byte{1}), 0x81},
	} {
		t.Run(k.name, func(t *testing.T) {
			c, _ := dial(t, b, 5, "c1", connectOptions{})
			c.send(k.p)
			if k.code != 0 {
				c.closed(k.code)
				return
			}
			c.send([]byte{0xC0, 0})
			for c.read().FixedHeader.Type != packets.Pingresp { // a SUBACK, or the PUBREL that answers PUBREC
			}
		})
	}
}

func TestOldClientsAreHeldToTheLengthOfTheirPackets(t *testing.T) {
	b := start(t, Config{}, newMemory())
	for _, p := range [][]byte{{0x40, 3, 0, 9, 0}, {0x62, 3, 0, 9, 0}, {0xE0, 1, 0}, {0xC0, 1, 0}} {
		c, _ := dial(t, b, 4, "c1", connectOptions{})
		c.send(p)
		c.closed(0)
	}
}

func TestConnectsAgainstTheStandardAreRefusedWithTheirReason(t *testing.T) {
	b := start(t, Config{}, newMemory())
	will := &packets.Packet{TopicName: "will", Payload: []byte("w")}
	twice := func(p []byte) []byte { return slices.Concat(p, p) }
	connect := func(flags byte, rest ...[]byte) []byte {
		b := append(appendString(nil, "MQTT"), 5, flags, 0, 0)
		return packet(0x10, append(b, slices.Concat(rest...)...))
	}
	of := func(o connectOptions) []byte { return connectPacket(5, "c1", o) }
	none, id := properties(), appendString(nil, "c1")
	for _, k := range []struct {
		name string
		p    []byte
		code byte
	}{
		{"receive maximum 0", of(connectOptions{props: []byte{packets.PropReceiveMaximum, 0, 0}}), 0x82},
		{"receive maximum twice", of(connectOptions{props: twice([]byte{packets.PropReceiveMaximum, 0, 9})}), 0x82},
		{"maximum packet size 0", of(connectOptions{props: seconds(packets.PropMaximumPacketSize, 0)}), 0x82},
		{"maximum packet size twice", of(connectOptions{props: twice(seconds(packets.PropMaximumPacketSize, 99))}), 0x82},
		{"session expiry twice", of(connectOptions{props: twice(seconds(packets.PropSessionExpiryInterval, 9))}), 0x82},
		{"topic alias maximum twice", of(connectOptions{props: twice([]byte{packets.PropTopicAliasMaximum, 0, 9})}), 0x82},
		{"request response information 2", of(connectOptions{props: []byte{packets.PropRequestResponseInfo, 2}}), 0x82},
		{"request problem information 2", of(connectOptions{props: []byte{packets.PropRequestProblemInfo, 2}}), 0x82},
		{"request problem information twice", of(connectOptions{props: twice([]byte{packets.PropRequestProblemInfo, 1})}), 0x82},
		{"authentication data without a method", of(connectOptions{props: text(packets.PropAuthenticationData, "x")}), 0x82},
		{"will delay twice", of(connectOptions{will: will, willProps: twice(seconds(packets.PropWillDelayInterval, 9))}), 0x82},
		{"will payload format 2", of(connectOptions{will: will, willProps: []byte{packets.PropPayloadFormat, 2}}), 0x82},
		{"will with a wildcard to answer to", of(connectOptions{will: will, willProps: text(packets.PropResponseTopic, "#")}), 0x82},
		{"will of QoS 3", connect(2|4|3<<3, none, id, none, appendString(nil, "will"), appendString(nil, "w")), 0x81},
		{"will QoS without a will", connect(2|1<<3, none, id), 0x82},
		{"will retain without a will", connect(2|1<<5, none, id), 0x82},
		{"password without its flag", connect(2|0x80, none, id, appendString(nil, "user"), appendString(nil, "secret")), 0x81},
		{"password without a user name, which MQTT 5 allows", connect(2|0x40, none, id, appendString(nil, "secret")), 0},
		{"reserved flag", connect(2|1, none, id), 0x82},
		{"user name without its flag", connect(2, none, id, appendString(nil, "user")), 0x81},
		{"user name that is no text", connect(2|0x80, none, id, appendString(nil, "\xff")), 0x81},
		{"the highest values", of(connectOptions{props: slices.Concat([]byte{packets.PropReceiveMaximum, 0xff, 0xff}, seconds(packets.PropMaximumPacketSize, 1<<28))}), 0},
	} {
		t.Run(k.name, func(t *testing.T) {
			c := dialRaw(t, b)
			c.v = 5
			c.send(k.p)
			ack := c.read()
			if ack.FixedHeader.Type != packets.Connack || ack.ReasonCode != k.code || ack.SessionPresent {
				t.Fatalf("got %s session present %v, want %#x", describe(ack), ack.SessionPresent, k.code)
			}
			if k.code != 0 {
				c.closed(0)
			}
		})
	}
}

func TestPropertiesAreTakenApartWhereverTheyAreCut(t *testing.T) { // and nothing is read beyond them
	p := slices.Concat([]byte{packets.PropSubscriptionIdentifier, 0x80, 1}, appendString(text(packets.PropUser, "k"), "v"),
		seconds(packets.PropMaximumPacketSize, 7), []byte{packets.PropReceiveMaximum, 0, 1, packets.PropPayloadFormat, 1}, text(packets.PropContentType, "text"))
	whole := map[int]bool{0: true, 3: true, 10: true, 15: true, 18: true, 20: true, len(p): true}
	for n := range len(p) + 1 {
		want := packets.CodeSuccess
		if !whole[n] {
			want = codeBeyond
		}
		if got := propertyFault(p[:n:n]); got != want {
			t.Errorf("the first %d bytes of %x: %v, want %v", n, p, got, want)
		}
	}
}
