package broker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

var errNotConnect = errors.New("first packet is not CONNECT")

// readConnect reads the first packet. Memory grows with what has arrived, not with
// what the length promises, and what the client sent behind its CONNECT is kept.
// What is wrong with a CONNECT that can be answered is the fault.
func (c *conn) readConnect() (pk packets.Packet, fault packets.Code, err error) {
	buf := make([]byte, 0, 512)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := c.Conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if len(buf) > 0 && buf[0] != packets.Connect<<4 {
			return pk, fault, errNotConnect
		}
		body, size, ok := frame(buf)
		if body < 0 || size > c.b.cfg.ConnectBytesMax {
			return pk, fault, fmt.Errorf("CONNECT of %d bytes: %w", size, packets.ErrPacketTooLarge)
		}
		if ok {
			c.partial = bytes.Clone(buf[size:])
			pk.FixedHeader = packets.FixedHeader{Type: packets.Connect, Remaining: size - body}
			if err := pk.ConnectDecode(buf[body:size:size]); err != nil {
				return pk, fault, err
			}
			return pk, connectFault(&pk, buf[body:size]), nil
		}
		if err != nil {
			return pk, fault, fmt.Errorf("read CONNECT: %w", err)
		}
	}
}

// frame finds the first packet in b: where its body begins (-1 for a length that is
// none), the size of the whole packet as far as it is known, and whether all of it is there.
func frame(b []byte) (body, size int, ok bool) {
	n := 0
	for i := 1; i < len(b); i++ {
		if i > 4 {
			return -1, 0, false
		}
		n |= int(b[i]&0x7f) << (7 * (i - 1))
		if b[i] < 0x80 {
			return i + 1, i + 1 + n, len(b) >= i+1+n
		}
	}
	return 0, 0, false
}

// admit decides whether a client may connect, and fills in what the connection
// knows of it. It returns with the client id's gate locked on success.
func (b *Broker) admit(ctx context.Context, c *conn, pk *packets.Packet, fault packets.Code) packets.Code {
	if code := c.greet(pk); code != packets.CodeSuccess {
		return code
	}
	if fault != packets.CodeSuccess {
		return fault
	}
	if code := b.queue(ctx, c); code != packets.CodeSuccess {
		return code
	}
	if code := b.willAndIdentity(ctx, c, pk); code != packets.CodeSuccess {
		return code
	}
	replaces := b.sessions.get(c.client) != nil
	if !replaces && b.connected.Load() >= int64(b.cfg.ConnectionsMax) || b.draining.Load() {
		return b.elsewhere()
	}
	return b.connectSession(ctx, c)
}

// elsewhere is the answer of a node that has no place: to use another server, where
// there is one.
func (b *Broker) elsewhere() packets.Code {
	if b.cfg.OthersServe != nil && b.cfg.OthersServe() {
		return packets.ErrUseAnotherServer
	}
	return packets.ErrServerBusy
}

func (b *Broker) willAndIdentity(ctx context.Context, c *conn, pk *packets.Packet) packets.Code {
	if b.cfg.Authenticator != nil {
		ctx, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
		defer cancel()
		identity, err := b.cfg.Authenticator.Authenticate(ctx, Credentials{Client: c.client, Username: string(pk.Connect.Username),
			Password: pk.Connect.Password, Remote: c.RemoteAddr(), Conn: c.Conn, TLS: tlsState(c.Conn)})
		switch {
		case errors.Is(err, ErrBadCredentials):
			return packets.ErrBadUsernameOrPassword
		case errors.Is(err, ErrBanned):
			return packets.ErrBanned
		case err != nil:
			b.log.Warn("authenticate client", "client", c.client, "err", err)
			return packets.ErrServerUnavailable
		}
		c.identity = identity
	}
	return b.willOf(c, pk)
}

// greet checks the CONNECT against the standard and takes what concerns the connection.
func (c *conn) greet(pk *packets.Packet) packets.Code {
	p := &pk.Connect
	name := string(p.ProtocolName)
	switch {
	case name == "MQTT" && (pk.ProtocolVersion == 4 || pk.ProtocolVersion == 5), name == "MQIsdp" && pk.ProtocolVersion == 3:
		c.version = pk.ProtocolVersion
	default:
		c.version = 4
		return packets.ErrUnsupportedProtocolVersion
	}
	c.problemInfo = c.version == 5 && !(pk.Properties.RequestProblemInfoFlag && pk.Properties.RequestProblemInfo == 0)
	c.packetMax = pk.Properties.MaximumPacketSize
	switch {
	case pk.ReservedBit != 0, p.PasswordFlag && !p.UsernameFlag && c.version < 5,
		pk.Properties.AuthenticationMethod == "" && len(pk.Properties.AuthenticationData) > 0:
		return packets.ErrProtocolViolation
	case pk.Properties.AuthenticationMethod != "":
		return packets.ErrBadAuthenticationMethod
	case len(p.ClientIdentifier) > clientIDBytesMax:
		return packets.ErrClientIdentifierNotValid
	case p.ClientIdentifier == "" && (c.version == 3 || c.version == 4 && !p.Clean):
		return packets.ErrClientIdentifierNotValid
	}
	c.client, c.clean = strings.Clone(p.ClientIdentifier), p.Clean // the packet's string pins the whole CONNECT
	if c.client == "" {
		var id [12]byte
		_, _ = rand.Read(id[:]) // never fails
		c.client, c.assigned = "auto-"+hex.EncodeToString(id[:]), true
	}
	c.keepAlive = time.Duration(p.Keepalive) * time.Second
	if limit := c.b.cfg.KeepAliveMax; limit > 0 && c.version == 5 && (c.keepAlive == 0 || c.keepAlive > limit) {
		c.keepAlive, c.hurried = limit, true
	}
	c.sendWindow = deliverWindow
	if n := int(pk.Properties.ReceiveMaximum); n > 0 {
		c.sendWindow = uint16(min(n, deliverWindow))
	}
	c.aliasMax = min(pk.Properties.TopicAliasMaximum, c.b.cfg.TopicAliasMax)
	c.expiry = c.b.cfg.SessionExpiryMax
	if c.version == 5 {
		c.expiry = time.Duration(pk.Properties.SessionExpiryInterval) * time.Second
		if c.expiry > c.b.cfg.SessionExpiryMax {
			c.expiry, c.shortened = c.b.cfg.SessionExpiryMax, true
		}
	}
	return packets.CodeSuccess
}

// appendWelcome encodes the CONNACK of a success: what an MQTT 5 client must know of
// the limits, and what became of its wishes.
func (c *conn) appendWelcome(dst []byte, present bool) []byte {
	flags := byte(0)
	if present {
		flags = 1
	}
	if c.version < 5 {
		return append(dst, packets.Connack<<4, 2, flags, 0)
	}
	props := binary.BigEndian.AppendUint16([]byte{packets.PropReceiveMaximum}, uint16(c.b.cfg.Window))
	props = binary.BigEndian.AppendUint16(append(props, packets.PropTopicAliasMaximum), c.b.cfg.TopicAliasMax)
	props = binary.BigEndian.AppendUint32(append(props, packets.PropMaximumPacketSize), c.b.cfg.PacketBytesMax)
	if c.shortened {
		props = binary.BigEndian.AppendUint32(append(props, packets.PropSessionExpiryInterval), uint32(c.expiry/time.Second))
	}
	if c.hurried {
		props = binary.BigEndian.AppendUint16(append(props, packets.PropServerKeepAlive), uint16(c.keepAlive/time.Second))
	}
	if c.assigned {
		props = appendString(append(props, packets.PropAssignedClientID), c.client)
	}
	dst = appendVarint(append(dst, packets.Connack<<4), 2+sizeVarint(len(props))+len(props))
	return append(appendVarint(append(dst, flags, 0), len(props)), props...)
}

// appendConnack encodes a refusal.
func (c *conn) appendConnack(dst []byte, code packets.Code) []byte {
	if c.version < 5 {
		return append(dst, packets.Connack<<4, 2, 0, connack3(code))
	}
	reason := code.Reason
	if !c.problemInfo || reason == "" || c.packetMax > 0 && 16+len(reason) > int(c.packetMax) {
		return append(dst, packets.Connack<<4, 3, 0, code.Code, 0)
	}
	dst = appendVarint(append(dst, packets.Connack<<4), 2+sizeVarint(3+len(reason))+3+len(reason))
	dst = appendVarint(append(dst, 0, code.Code), 3+len(reason))
	return appendString(append(dst, packets.PropReasonString), reason)
}

// connack3 maps a reason code to a return code of MQTT 3.1.1.
func connack3(code packets.Code) byte {
	switch code.Code {
	case packets.ErrUnsupportedProtocolVersion.Code:
		return 1
	case packets.ErrClientIdentifierNotValid.Code:
		return 2
	case packets.ErrBadUsernameOrPassword.Code:
		return 4
	case packets.ErrNotAuthorized.Code, packets.ErrBanned.Code, packets.ErrTopicNameInvalid.Code:
		return 5
	default:
		return 3
	}
}
