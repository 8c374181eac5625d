package broker

import (
	"context"
	"encoding/binary"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/session"
)

// handleSubscribe answers SUBSCRIBE when every node knows the new filters, and then
// sends the retained messages that the new subscriptions are owed. mochi does not
// see it: a SUBSCRIBE whose packet id equals that of a message on its way to the
// client is lost there.
func (c *conn) handleSubscribe(pk *packets.Packet) verdict {
	if code := pk.SubscribeValidate(); code != packets.CodeSuccess {
		return c.reject(code)
	}
	codes := make([]byte, len(pk.Filters))
	granted := make([]grant, 0, len(pk.Filters))
	var announced func(context.Context) error // of the last new filter: all before it are known then
	for i := range pk.Filters {
		code, g := c.subscribe(subscriptionOf(&pk.Filters[i]))
		codes[i] = code.Code
		if code.Code >= packets.ErrUnspecifiedError.Code {
			c.b.metrics.refused.WithLabelValues("subscription", reasonLabel(code)).Inc()
			if c.version < 5 {
				codes[i] = packets.ErrUnspecifiedError.Code
			}
			continue
		}
		granted = append(granted, g)
		if g.announced != nil {
			announced = g.announced
		}
	}
	if err := c.keepSubscriptions(granted); err != nil {
		c.b.log.Debug("subscriptions not kept in time", "client", c.client, "err", err)
		return c.reject(packets.ErrServerUnavailable)
	}
	c.announce(announced)
	if c.send(c.appendSubAck(packets.Suback, pk.PacketID, codes)) != nil {
		return refuse
	}
	for i := range granted {
		c.sendRetained(&granted[i])
	}
	return handled
}

// keepSubscriptions brings the subscriptions of a durable session into its shard.
func (c *conn) keepSubscriptions(granted []grant) error {
	if !c.session.durable || len(granted) == 0 {
		return nil
	}
	add := make([]session.Subscription, len(granted))
	for i := range granted {
		add[i] = granted[i].sub
	}
	ctx, cancel := context.WithTimeout(context.Background(), announceMax)
	defer cancel()
	return c.b.cluster.Change(ctx, c.ref, add, nil)
}

// announce waits until all nodes know of a subscription. A node that cannot be told
// in time may not route by what it knew before.
func (c *conn) announce(announced func(context.Context) error) {
	if announced == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), announceMax)
	defer cancel()
	if err := announced(ctx); err != nil {
		c.b.log.Debug("subscription not announced to all nodes in time", "client", c.client, "err", err)
	}
}

// announceMax bounds the wait of a SUBACK for other nodes.
const announceMax = 10 * time.Second

// grant is a subscription that was granted; fresh: the session had none with its filter.
type grant struct {
	sub   session.Subscription
	fresh bool

	announced func(context.Context) error
}

func subscriptionOf(s *packets.Subscription) session.Subscription {
	return session.Subscription{Filter: s.Filter, QoS: s.Qos, NoLocal: s.NoLocal, RetainAsPublished: s.RetainAsPublished,
		RetainHandling: s.RetainHandling, ID: uint32(max(s.Identifier, 0))}
}

func (c *conn) subscribe(sub session.Subscription) (packets.Code, grant) {
	filter := sub.Filter
	if rest, ok := strings.CutPrefix(filter, sharePrefix); ok {
		group, inner, found := strings.Cut(rest, "/")
		if !found || group == "" || strings.ContainsAny(group, "+#") {
			return packets.ErrTopicFilterInvalid, grant{}
		}
		filter = inner
	}
	switch {
	case !validFilter(filter), strings.HasPrefix(filter, "$") && !strings.HasPrefix(filter, sysPrefix):
		return packets.ErrTopicFilterInvalid, grant{}
	case !c.b.allow(c, ActionSubscribe, filter):
		return packets.ErrNotAuthorized, grant{}
	}
	sub.Filter = strings.Clone(sub.Filter) // the packet's string pins the packet
	fresh, ok, announced := c.session.subscribe(c.b, sub)
	if !ok {
		return packets.ErrQuotaExceeded, grant{}
	}
	return packets.Code{Code: sub.QoS}, grant{sub, fresh, announced}
}

// sendRetained sends what is retained under a subscription's filter, and for
// $SYS/... the node's figures of this moment.
func (c *conn) sendRetained(g *grant) {
	sub := &g.sub
	_, shared := session.SplitShared(sub.Filter)
	if sub.RetainHandling == 2 || sub.RetainHandling == 1 && !g.fresh || shared {
		return
	}
	now := time.Now()
	var ids []uint32
	if sub.ID > 0 {
		ids = []uint32{sub.ID}
	}
	if strings.HasPrefix(sub.Filter, sysPrefix) {
		for _, m := range c.b.sysMessages(sub.Filter) {
			c.session.deliver(c.b, m, sub, ids, true, now)
		}
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), announceMax)
	defer cancel()
	found, err := c.b.cluster.Retained(ctx, sub.Filter)
	if err != nil {
		c.b.log.Warn("retained messages not found", "client", c.client, "filter", sub.Filter, "err", err)
		c.b.metrics.dropped.WithLabelValues("retained_unavailable").Inc()
	}
	for _, m := range found {
		switch qos := min(sub.QoS, m.QoS); {
		case sub.NoLocal && m.Origin == c.client, !c.b.allow(c, ActionReceive, m.Topic):
		case c.session.durable && qos > 0:
			c.b.cluster.Enqueue(c.ref, m, qos, true, ids)
		default:
			c.session.deliver(c.b, m, sub, ids, true, now)
		}
	}
}

func (c *conn) handleUnsubscribe(pk *packets.Packet) verdict {
	if code := pk.UnsubscribeValidate(); code != packets.CodeSuccess {
		return c.reject(code)
	}
	codes := make([]byte, len(pk.Filters))
	var gone []string
	for i := range pk.Filters {
		if c.session.unsubscribe(c.b, pk.Filters[i].Filter) {
			gone = append(gone, pk.Filters[i].Filter)
		} else {
			codes[i] = packets.CodeNoSubscriptionExisted.Code
		}
	}
	if err := c.b.unsubscribed(c, gone); err != nil {
		c.b.log.Debug("subscriptions not ended in time", "client", c.client, "err", err)
		return c.reject(packets.ErrServerUnavailable)
	}
	if c.send(c.appendSubAck(packets.Unsuback, pk.PacketID, codes)) != nil {
		return refuse
	}
	return handled
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
