package broker

import (
	"encoding/binary"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// handleSubscribe answers SUBSCRIBE and then sends the retained messages that the
// new subscriptions are owed. mochi does not see it: a SUBSCRIBE whose packet id
// equals that of a message on its way to the client is lost there.
func (c *conn) handleSubscribe(pk *packets.Packet) verdict {
	if code := pk.SubscribeValidate(); code != packets.CodeSuccess {
		return c.reject(code)
	}
	codes := make([]byte, len(pk.Filters))
	fresh := make([]bool, len(pk.Filters))
	for i := range pk.Filters {
		code, isNew := c.subscribe(&pk.Filters[i])
		codes[i], fresh[i] = code.Code, isNew
		if code.Code >= packets.ErrUnspecifiedError.Code {
			c.b.metrics.refused.WithLabelValues("subscription", reasonLabel(code)).Inc()
			if c.version < 5 {
				codes[i] = packets.ErrUnspecifiedError.Code
			}
		}
	}
	if c.send(c.appendSubAck(packets.Suback, pk.PacketID, codes)) != nil {
		return refuse
	}
	for i := range pk.Filters {
		if codes[i] < packets.ErrUnspecifiedError.Code {
			c.sendRetained(&pk.Filters[i], fresh[i])
		}
	}
	return swallow
}

func (c *conn) subscribe(sub *packets.Subscription) (packets.Code, bool) {
	filter, shared := sub.Filter, false
	if rest, ok := strings.CutPrefix(filter, sharePrefix); ok {
		group, inner, found := strings.Cut(rest, "/")
		if !found || group == "" || strings.ContainsAny(group, "+#") {
			return packets.ErrTopicFilterInvalid, false
		}
		filter, shared = inner, true
	}
	switch {
	case !validFilter(filter), strings.HasPrefix(filter, "$") && !strings.HasPrefix(filter, sysPrefix), sub.RetainHandling > 2:
		return packets.ErrTopicFilterInvalid, false
	case shared && sub.NoLocal:
		return packets.ErrTopicFilterInvalid, false
	case !c.b.allow(c, ActionSubscribe, filter):
		return packets.ErrNotAuthorized, false
	}
	_, existed := c.cl.State.Subscriptions.Get(sub.Filter)
	if !existed && c.cl.State.Subscriptions.Len() >= c.b.cfg.SubscriptionsMax {
		return packets.ErrQuotaExceeded, false
	}
	if c.b.mqtt.Topics.Subscribe(c.client, *sub) {
		c.b.countSubscriptions(1)
	}
	c.cl.State.Subscriptions.Add(sub.Filter, *sub)
	return packets.Code{Code: sub.Qos}, !existed
}

// sendRetained sends what is retained under a subscription's filter, and for
// $SYS/... the node's figures of this moment.
func (c *conn) sendRetained(sub *packets.Subscription, fresh bool) {
	if sub.RetainHandling == 2 || sub.RetainHandling == 1 && !fresh || mqtt.IsSharedFilter(sub.Filter) {
		return
	}
	now := time.Now()
	if strings.HasPrefix(sub.Filter, sysPrefix) {
		for _, m := range c.b.sysMessages(sub.Filter) {
			c.session.deliver(c.b, m, sub, true, now)
		}
		return
	}
	for _, pk := range c.b.mqtt.Topics.Messages(sub.Filter) {
		m := asMessage(&pk)
		switch {
		case m.expired(now):
			c.b.retained.drop(c.b.mqtt.Topics, m.topic)
		case sub.NoLocal && m.origin == c.client, !c.b.allow(c, ActionReceive, m.topic):
		default:
			c.session.deliver(c.b, m, sub, true, now)
		}
	}
}

func (c *conn) handleUnsubscribe(pk *packets.Packet) verdict {
	if code := pk.UnsubscribeValidate(); code != packets.CodeSuccess {
		return c.reject(code)
	}
	codes := make([]byte, len(pk.Filters))
	for i := range pk.Filters {
		filter := pk.Filters[i].Filter
		if _, ok := c.cl.State.Subscriptions.Get(filter); !ok {
			codes[i] = packets.CodeNoSubscriptionExisted.Code
			continue
		}
		if c.b.mqtt.Topics.Unsubscribe(filter, c.client) {
			c.b.countSubscriptions(-1)
		}
		c.cl.State.Subscriptions.Delete(filter)
	}
	if c.send(c.appendSubAck(packets.Unsuback, pk.PacketID, codes)) != nil {
		return refuse
	}
	return swallow
}

// appendSubAck encodes SUBACK or UNSUBACK; the latter has codes in MQTT 5 only.
func (c *conn) appendSubAck(kind byte, id uint16, codes []byte) []byte {
	if kind == packets.Unsuback && c.version < 5 {
		codes = nil
	}
	size := 2 + len(codes)
	if c.version == 5 {
		size++
	}
	dst := binary.BigEndian.AppendUint16(appendVarint([]byte{kind << 4}, size), id)
	if c.version == 5 {
		dst = append(dst, 0)
	}
	return append(dst, codes...)
}

const (
	sharePrefix = "$share/"
	sysPrefix   = "$SYS/"
)

// validTopic reports whether a client may publish to topic.
func validTopic(topic string) bool {
	return topic != "" && topic[0] != '$' && !strings.ContainsAny(topic, "+#") && validSize(topic)
}

// validFilter reports whether filter is a topic filter: a wildcard fills its level,
// # is the last.
func validFilter(filter string) bool {
	if filter == "" || !validSize(filter) {
		return false
	}
	for rest, more := filter, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if level == "+" || level == "#" && !more {
			continue
		}
		if strings.ContainsAny(level, "+#") {
			return false
		}
	}
	return true
}

func validSize(s string) bool {
	return len(s) <= topicBytesMax && strings.Count(s, "/") < topicLevelsMax
}
