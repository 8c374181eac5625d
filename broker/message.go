package broker

import (
	"encoding/binary"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/session"
)

// carries reports whether a publish has properties that travel with it.
func carries(p *packets.Properties) bool {
	return p.MessageExpiryInterval > 0 || p.ContentType != "" || p.ResponseTopic != "" || len(p.CorrelationData) > 0 || len(p.User) > 0 || p.PayloadFormatFlag
}

// expiryOf is when a message published at now expires.
func expiryOf(p *packets.Properties, now time.Time) int64 {
	if p.MessageExpiryInterval == 0 {
		return 0
	}
	return clock.Micros(now) + int64(p.MessageExpiryInterval)*1_000_000
}

// propsOf encodes the properties of a publish that travel with it, once for all
// its subscribers.
func propsOf(p *packets.Properties) []byte {
	var dst []byte
	if p.PayloadFormatFlag {
		dst = append(dst, packets.PropPayloadFormat, p.PayloadFormat)
	}
	if p.ContentType != "" {
		dst = appendString(append(dst, packets.PropContentType), p.ContentType)
	}
	if p.ResponseTopic != "" {
		dst = appendString(append(dst, packets.PropResponseTopic), p.ResponseTopic)
	}
	if len(p.CorrelationData) > 0 {
		dst = appendString(append(dst, packets.PropCorrelationData), string(p.CorrelationData))
	}
	for _, u := range p.User {
		dst = appendString(appendString(append(dst, packets.PropUser), u.Key), u.Val)
	}
	return dst
}

// appendProperties encodes m's properties, subscription identifiers and topic alias
// without the length in front.
func appendProperties(dst []byte, m *session.Message, ids []uint32, alias uint16, now time.Time) []byte {
	if alias > 0 {
		dst = binary.BigEndian.AppendUint16(append(dst, packets.PropTopicAlias), alias)
	}
	dst = m.AppendExpiry(dst, clock.Micros(now))
	for _, id := range ids {
		dst = appendVarint(append(dst, packets.PropSubscriptionIdentifier), int(id))
	}
	return append(dst, m.Props...)
}

// outgoing is a message on its way to one subscriber.
type outgoing struct {
	m        *session.Message
	ids      []uint32 // subscription identifiers
	seq      uint64   // in the queue of a durable session
	id       uint16   // packet id, 0 while queued
	qos      byte
	retain   bool
	dup      bool
	released bool // QoS 2: PUBREC was received, PUBREL sent
	done     bool
}

// publishLocked encodes o for this connection and gathers it. False means that the
// client cannot take it: too large for it, or (QoS 0) too much waits already.
func (c *conn) publishLocked(o *outgoing, now time.Time) (bool, string) {
	if c.silent || c.dead {
		return false, "closed"
	}
	if o.qos == 0 && c.outBytesLocked()+len(o.m.Payload) > c.b.cfg.OutBytesMax {
		return false, "slow"
	}
	start := len(c.out)
	topic, alias := o.m.Topic, uint16(0)
	fresh := false
	if c.aliasMax > 0 {
		topic, alias, fresh = c.outAliasLocked(topic)
	}
	var scratch [128]byte
	var props []byte
	size := 2 + len(topic) + len(o.m.Payload)
	if o.qos > 0 {
		size += 2
	}
	if c.version == 5 {
		props = appendProperties(scratch[:0], o.m, o.ids, alias, now)
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
	if c.packetMax > 0 && len(c.out)-start+len(o.m.Payload) > int(c.packetMax) {
		c.out = c.out[:start]
		if fresh {
			delete(c.outAliases, o.m.Topic)
		}
		return false, "too_large"
	}
	if len(o.m.Payload) < sharedBytesMin {
		c.out = append(c.out, o.m.Payload...)
	} else {
		c.shared = append(c.shared, insert{len(c.out), o.m.Payload})
		c.sharedBytes += len(o.m.Payload)
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
