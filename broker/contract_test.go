package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// The tests here pin what the broker relies on in mochi-mqtt's decoder, with it alone: a
// new version that behaves differently fails here, with the name of the assumption.

func TestMochiDecoderPanicsOnTruncatedSubscribe(t *testing.T) { // remove the recover in decode when this one is gone
	defer func() {
		if recover() == nil {
			t.Error("no panic: the decoder has been mended")
		}
	}()
	pk := packets.Packet{ProtocolVersion: 5}
	_ = pk.SubscribeDecode(append([]byte{0, 1, 0}, appendString(nil, "a")...)) // the panic is the point
}

func TestMochiDecoderSlicesItsInput(t *testing.T) { // which is why decode copies what outlives the packet
	body := append(appendString(nil, "a/b"), "payload"...)
	pk := packets.Packet{ProtocolVersion: 4}
	if err := pk.PublishDecode(body); err != nil {
		t.Fatal(err)
	}
	body[len(body)-1] = 'X'
	if string(pk.Payload) != "payloaX" {
		t.Errorf("payload is a copy (%q): decode need not make another", pk.Payload)
	}
}

func TestMochiFixedHeaderRefusesWrongFlags(t *testing.T) {
	for _, first := range []byte{
		packets.Subscribe << 4, packets.Unsubscribe << 4, packets.Pubrel << 4, // need 2
		packets.Pingreq<<4 | 1, packets.Disconnect<<4 | 8, packets.Puback<<4 | 2,
		packets.Publish<<4 | 3<<1, // QoS 3
	} {
		var h packets.FixedHeader
		if err := h.Decode(first); err == nil {
			t.Errorf("first byte %#x: got %+v, want an error", first, h)
		} else if code := (packets.Code{}); !errors.As(err, &code) {
			t.Errorf("first byte %#x: %v is no reason code, the client could not be told", first, err)
		}
	}
}

func TestMochiDecodesAcksAndDisconnectsThatSayNothing(t *testing.T) {
	pk := packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Puback, Remaining: 2}}
	if err := pk.PubackDecode([]byte{0, 7}); err != nil || pk.PacketID != 7 || pk.ReasonCode != 0 {
		t.Errorf("PUBACK: %+v, %v", pk, err)
	}
	pk = packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Disconnect}}
	if err := pk.DisconnectDecode(nil); err != nil || pk.ReasonCode != 0 || pk.Properties.SessionExpiryIntervalFlag {
		t.Errorf("DISCONNECT: %+v, %v", pk, err)
	}
}

func TestMochiSaysWhetherASessionExpiryWasSent(t *testing.T) { // 0 is a wish too
	body := binary.BigEndian.AppendUint32([]byte{0, 5, packets.PropSessionExpiryInterval}, 0)
	pk := packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Disconnect, Remaining: len(body)}}
	if err := pk.DisconnectDecode(body); err != nil || !pk.Properties.SessionExpiryIntervalFlag {
		t.Errorf("got %+v, %v", pk.Properties, err)
	}
}

func TestMochiValidatesWhatTheBrokerDoesNotLookAt(t *testing.T) {
	for name, pk := range map[string]packets.Packet{
		"QoS 1 without packet id":   {FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, TopicName: "a"},
		"wildcard in a topic":       {FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: "a/#"},
		"alias beyond the maximum":  {FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: "a", Properties: packets.Properties{TopicAlias: 33, TopicAliasFlag: true}},
		"alias 0":                   {FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: "a", Properties: packets.Properties{TopicAliasFlag: true}},
		"id only a server may send": {FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: "a", Properties: packets.Properties{SubscriptionIdentifier: []int{5}}},
	} {
		if code := pk.PublishValidate(32); code.Code < packets.ErrUnspecifiedError.Code {
			t.Errorf("%s: got %v, want a reason", name, code)
		}
	}
	sub := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1}
	if code := sub.SubscribeValidate(); code.Code < packets.ErrUnspecifiedError.Code {
		t.Errorf("SUBSCRIBE without filters: got %v", code)
	}
}

func TestMochiEncodesNothingForUs(t *testing.T) { // CONNACK is ours; this is what a client makes of it
	b := &Broker{cfg: Config{Window: 77}.withDefaults()}
	c := &conn{b: b, version: 5, client: "auto-1", assigned: true, shortened: true, expiry: 3e9}
	p := c.appendWelcome(nil, true)
	pk := packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Connack}}
	if err := pk.ConnackDecode(bytes.Clone(p[2:])); err != nil {
		t.Fatal(err)
	}
	got := pk.Properties
	if int(p[1]) != len(p)-2 || !pk.SessionPresent || pk.ReasonCode != 0 || got.ReceiveMaximum != 77 || got.AssignedClientID != "auto-1" ||
		got.SessionExpiryInterval != 3 || got.TopicAliasMaximum != b.cfg.TopicAliasMax || got.MaximumPacketSize != b.cfg.PacketBytesMax {
		t.Errorf("got %x, %+v", p, pk)
	}
}

func TestMochiAcceptsWhatTheStandardForbids(t *testing.T) { // what it refuses one day, wellformed.go need not look for
	twice := []byte{4, packets.PropPayloadFormat, 1, packets.PropPayloadFormat, 7}
	pk := packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Publish}}
	if err := pk.PublishDecode(append(appendString(nil, "a"), twice...)); err != nil {
		t.Errorf("a property twice, with a value it cannot have: %v", err)
	}
	pk = packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Publish}}
	if err := pk.PublishDecode(append(append(appendString(nil, "a"), 4), text(packets.PropContentType, "xxx")...)); err != nil {
		t.Errorf("a property longer than the properties: %v", err)
	}
	pk = packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Subscribe}}
	if err := pk.SubscribeDecode(append(append([]byte{0, 1, 0}, appendString(nil, "a")...), 0xf5)); err != nil {
		t.Errorf("retain handling 3 and reserved bits: %v", err)
	}
	pk = packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Puback, Remaining: 5}}
	if err := pk.PubackDecode([]byte{0, 1, 0, 0, 9}); err != nil {
		t.Errorf("bytes behind a PUBACK: %v", err)
	}
	pk = packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}}
	if err := pk.ConnectDecode(connectPacket(4, "c", connectOptions{user: "\xff"})[2:]); err != nil {
		t.Errorf("a user name that is no text: %v", err)
	}
}
