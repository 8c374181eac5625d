package broker

import (
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// hook is where mochi meets the broker. What mochi still does: it reads and decodes
// packets, establishes the session of a client id and encodes CONNACK. All other
// packets, subscriptions and retained messages are ours; mochi's stores stay empty. contract_test.go pins each behaviour relied on.
type hook struct {
	mqtt.HookBase
	b *Broker
}

func (h *hook) ID() string { return "sluice" }

func (h *hook) Provides(which byte) bool {
	switch which {
	case mqtt.OnConnectAuthenticate, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished,
		mqtt.OnDisconnect, mqtt.OnPacketRead, mqtt.OnPacketEncode:
		return true
	}
	return false
}

// front finds the connection of a mochi client.
func front(cl *mqtt.Client) *conn {
	c, _ := cl.Net.Conn.(*conn)
	return c
}

// OnConnectAuthenticate accepts what was admitted before mochi saw it.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, _ packets.Packet) bool {
	return front(cl) != nil
}

func (h *hook) OnSessionEstablish(cl *mqtt.Client, _ packets.Packet) {
	c := front(cl)
	c.cl = cl
	h.b.enter(c)
}

func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	c := front(cl)
	c.unlockGate()
	c.session.resume(h.b, c)
}

// OnDisconnect leaves the gate locked: mochi is about to delete the client by its
// id, and nobody may take the id over in between.
func (h *hook) OnDisconnect(cl *mqtt.Client, _ error, expire bool) {
	c := front(cl)
	c.lockGate()
	if c.version == 5 { // a DISCONNECT may have changed it
		c.expiry = time.Duration(cl.Properties.Props.SessionExpiryInterval) * time.Second
	}
	h.b.leave(c, expire)
}

// swallowed is a packet that mochi ignores: no message has packet id 0.
var swallowed = packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}}

// OnPacketRead hands every packet to handlePacket. An error other than
// ErrRejectPacket would be lost, and the packet processed.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := front(cl)
	if hello := c.hello; hello != nil { // the placeholder was read
		c.hello = nil
		return *hello, nil
	}
	c.handling = true
	v := c.handlePacket(&pk)
	c.handling = false
	switch v {
	case swallow:
		return swallowed, nil
	case refuse:
		return pk, packets.ErrRejectPacket
	default:
		return pk, nil
	}
}

// OnPacketEncode completes CONNACK: mochi announces neither the aliases nor the
// packet size it takes.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type != packets.Connack {
		return pk
	}
	c := front(cl)
	pk.Properties.TopicAliasMaximum = h.b.cfg.TopicAliasMax
	pk.Properties.MaximumPacketSize = h.b.cfg.PacketBytesMax
	if c.assigned {
		pk.Properties.AssignedClientID = c.client
	}
	return pk
}
