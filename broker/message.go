package broker

import (
	"encoding/binary"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// message is what a subscriber gets. The payload is shared by all of them and never
// written to.
type message struct {
	topic   string
	payload []byte
	origin  string // client id of the publisher, for "no local"
	qos     byte
	retain  bool
	expires time.Time // zero is never
	props   *properties
}

// properties are the MQTT 5 properties that travel with a message.
type properties struct {
	contentType   string
	responseTopic string
	correlation   []byte
	user          []packets.UserProperty
	payloadFormat byte
	hasFormat     bool
}

// carries reports whether a publish has properties that travel with it.
func carries(p *packets.Properties) bool {
	return p.MessageExpiryInterval > 0 || p.ContentType != "" || p.ResponseTopic != "" || len(p.CorrelationData) > 0 || len(p.User) > 0 || p.PayloadFormatFlag
}

// takeProperties keeps what a subscriber must be given of a publish's properties.
func (m *message) takeProperties(p *packets.Properties, now time.Time) {
	if p.MessageExpiryInterval > 0 {
		m.expires = now.Add(time.Duration(p.MessageExpiryInterval) * time.Second)
	}
	if p.ContentType == "" && p.ResponseTopic == "" && len(p.CorrelationData) == 0 && len(p.User) == 0 && !p.PayloadFormatFlag {
		return // at most an expiry
	}
	m.props = &properties{contentType: p.ContentType, responseTopic: p.ResponseTopic, correlation: p.CorrelationData,
		user: p.User, payloadFormat: p.PayloadFormat, hasFormat: p.PayloadFormatFlag}
}

func (m *message) expired(now time.Time) bool { return !m.expires.IsZero() && !now.Before(m.expires) }

// appendProperties encodes m's properties, subscription identifiers and topic alias
// without the length in front.
func (m *message) appendProperties(dst []byte, ids []int, alias uint16, now time.Time) []byte {
	if alias > 0 {
		dst = binary.BigEndian.AppendUint16(append(dst, packets.PropTopicAlias), alias)
	}
	if !m.expires.IsZero() {
		left := max(1, int64(m.expires.Sub(now)/time.Second))
		dst = binary.BigEndian.AppendUint32(append(dst, packets.PropMessageExpiryInterval), uint32(left))
	}
	for _, id := range ids {
		dst = appendVarint(append(dst, packets.PropSubscriptionIdentifier), id)
	}
	p := m.props
	if p == nil {
		return dst
	}
	if p.hasFormat {
		dst = append(dst, packets.PropPayloadFormat, p.payloadFormat)
	}
	if p.contentType != "" {
		dst = appendString(append(dst, packets.PropContentType), p.contentType)
	}
	if p.responseTopic != "" {
		dst = appendString(append(dst, packets.PropResponseTopic), p.responseTopic)
	}
	if len(p.correlation) > 0 {
		dst = appendString(append(dst, packets.PropCorrelationData), string(p.correlation))
	}
	for _, u := range p.user {
		dst = appendString(appendString(append(dst, packets.PropUser), u.Key), u.Val)
	}
	return dst
}

// outgoing is a message on its way to one subscriber.
type outgoing struct {
	m        *message
	ids      []int // subscription identifiers
	seq      uint64
	id       uint16 // packet id, 0 while queued
	qos      byte
	retain   bool
	dup      bool
	released bool // QoS 2: PUBREC was received, PUBREL sent
}

// publishLocked encodes o for this connection and gathers it. False means that the
// client cannot take it: too large for it, or (QoS 0) too much waits already.
func (c *conn) publishLocked(o *outgoing, now time.Time) (bool, string) {
	if c.silent || c.dead {
		return false, "closed"
	}
	if o.qos == 0 && len(c.out)+len(o.m.payload) > c.b.cfg.OutBytesMax {
		return false, "slow"
	}
	start := len(c.out)
	topic, alias := o.m.topic, uint16(0)
	fresh := false
	if c.aliasMax > 0 {
		topic, alias, fresh = c.outAliasLocked(topic)
	}
	var scratch [128]byte
	var props []byte
	size := 2 + len(topic) + len(o.m.payload)
	if o.qos > 0 {
		size += 2
	}
	if c.version == 5 {
		props = o.m.appendProperties(scratch[:0], o.ids, alias, now)
		size += sizeVarint(len(props)) + len(props)
	}
	first := packets.Publish<<4 | o.qos<<1
	if o.retain {
		first |= 1
	}
	if o.dup {
		first |= 8
	}
	c.out = appendString(appendVarint(append(c.out, first), size), topic)
	if o.qos > 0 {
		c.out = binary.BigEndian.AppendUint16(c.out, o.id)
	}
	if c.version == 5 {
		c.out = append(appendVarint(c.out, len(props)), props...)
	}
	c.out = append(c.out, o.m.payload...)
	if c.packetMax > 0 && len(c.out)-start > int(c.packetMax) {
		c.out = c.out[:start]
		if fresh {
			delete(c.outAliases, o.m.topic)
		}
		return false, "too_large"
	}
	c.kickLocked()
	return true, ""
}

// outAliasLocked gives the topic to write and its alias: the first topics a
// connection sees get one, in the order of their number, for its lifetime.
func (c *conn) outAliasLocked(topic string) (string, uint16, bool) {
	if alias, ok := c.outAliases[topic]; ok {
		return "", alias, false
	}
	if len(c.outAliases) >= int(c.aliasMax) {
		return topic, 0, false
	}
	if c.outAliases == nil {
		c.outAliases = map[string]uint16{}
	}
	alias := uint16(len(c.outAliases) + 1)
	c.outAliases[topic] = alias
	return topic, alias, true
}
