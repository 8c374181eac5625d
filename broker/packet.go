package broker

import (
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// verdict is what the front must do with a packet after it was handled.
type verdict uint8

const (
	handled verdict = iota
	goodbye         // the client ended the connection
	refuse          // the connection ends, its cause is set
)

// handlePacket is the one entry for every packet that a client sends after its
// CONNECT. It validates, because the decoder does not, and runs on the goroutine that
// reads the connection. It may block only where back-pressure is meant: on a PUBLISH
// beyond the connection's allowance.
func (c *conn) handlePacket(pk *packets.Packet) verdict {
	switch pk.FixedHeader.Type {
	case packets.Publish:
		return c.handlePublish(pk)
	case packets.Puback:
		c.session.acked(c.b, pk.PacketID, packets.Puback)
		return handled
	case packets.Pubrec:
		if pk.ReasonCode >= packets.ErrUnspecifiedError.Code {
			c.session.refused(c.b, pk.PacketID)
		} else {
			c.session.receivedBy(c, pk.PacketID)
		}
		return handled
	case packets.Pubcomp:
		c.session.acked(c.b, pk.PacketID, packets.Pubcomp)
		return handled
	case packets.Pubrel:
		return c.handlePubrel(pk)
	case packets.Subscribe:
		return c.handleSubscribe(pk)
	case packets.Unsubscribe:
		return c.handleUnsubscribe(pk)
	case packets.Pingreq:
		if c.send([]byte{packets.Pingresp << 4, 0}) != nil {
			return refuse
		}
		return handled
	case packets.Disconnect:
		return c.handleDisconnect(pk)
	case packets.Connect:
		return c.reject(packets.ErrProtocolViolationSecondConnect)
	default: // AUTH, which nobody has agreed on, and what only a server sends
		return c.reject(packets.ErrProtocolViolation)
	}
}

// handleDisconnect lets the client go; only the plain reason leaves its will unsent.
func (c *conn) handleDisconnect(pk *packets.Packet) verdict {
	if c.version == 5 && pk.Properties.SessionExpiryIntervalFlag {
		if pk.Properties.SessionExpiryInterval > 0 && c.expiry == 0 {
			return c.reject(packets.ErrProtocolViolationZeroNonZeroExpiry)
		}
		c.expiry = time.Duration(pk.Properties.SessionExpiryInterval) * time.Second
	}
	c.goodbye = pk.ReasonCode == packets.CodeDisconnect.Code
	return goodbye
}

// handlePubrel ends a QoS 2 exchange of the client. It waits for no other answer.
func (c *conn) handlePubrel(pk *packets.Packet) verdict {
	if pk.PacketID == 0 {
		return c.reject(packets.ErrProtocolViolationNoPacketID)
	}
	if c.session.received(pk.PacketID) { // not before the shard has forgotten it: the id may come again
		c.b.cluster.Forget(c.ref, pk.PacketID, func() { c.complete(pk.PacketID, true) })
		return handled
	}
	c.complete(pk.PacketID, false)
	return handled
}

// complete answers a PUBREL; known says that the exchange was kept in the shard.
func (c *conn) complete(id uint16, known bool) {
	code := packets.Code{Code: packets.ErrPacketIdentifierNotFound.Code}
	if known {
		code = packets.CodeSuccess
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.qos2[id] {
		delete(c.qos2, id)
		c.received--
		code = packets.CodeSuccess
	}
	if !c.silent && !c.dead {
		c.out = c.appendAck(c.out, packets.Pubcomp, id, code)
		c.kickLocked() // a publish may have waited for this id's place
	}
}

// reject ends the connection because of what the client sent.
func (c *conn) reject(code packets.Code) verdict {
	c.fail(code)
	return refuse
}
