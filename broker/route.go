package broker

import (
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// routePublish routes p when there is anybody or anything to route it for.
func (b *Broker) routePublish(p *publish) {
	if p.retain() || b.subscriptions() > 0 {
		b.route(p.message())
	}
}

// route gives m to the local subscribers whose filters match, and retains it when
// its publisher asked for that. It never blocks on a subscriber.
func (b *Broker) route(m *message) {
	if m.retain {
		if !b.retained.store(b.mqtt.Topics, m) {
			b.metrics.dropped.WithLabelValues("retained_full").Inc()
		}
	}
	if b.subscriptions() == 0 {
		return
	}
	now := time.Now()
	if m.expired(now) {
		return
	}
	subs := b.mqtt.Topics.Subscribers(m.topic)
	if len(subs.Shared) > 0 {
		b.selectShared(subs)
		subs.MergeSharedSelected()
	}
	for id, sub := range subs.Subscriptions {
		if sub.NoLocal && id == m.origin {
			continue
		}
		s := b.sessions.get(id)
		if s == nil || b.cfg.Authorizer != nil && !b.cfg.Authorizer.Allow(s.identity, id, ActionReceive, m.topic) {
			continue
		}
		s.deliver(b, m, &sub, false, now)
	}
}

// selectShared picks one member of each shared group, a connected one if there is
// any. The order of a Go map is the lottery.
func (b *Broker) selectShared(subs *mqtt.Subscribers) {
	for _, group := range subs.Shared {
		var chosen string
		for id := range group {
			s := b.sessions.get(id)
			if s == nil {
				continue
			}
			chosen = id
			s.mu.Lock()
			here := s.conn != nil
			s.mu.Unlock()
			if here {
				break
			}
		}
		if chosen == "" {
			continue
		}
		sub := group[chosen]
		if other, ok := subs.SharedSelected[chosen]; ok {
			sub = other.Merge(sub)
		}
		subs.SharedSelected[chosen] = sub
	}
}

// retained bounds the retained messages, which stand in mochi's index.
type retained struct {
	max      int
	bytesMax int64

	mu    sync.Mutex
	sizes map[string]int64
	bytes int64
}

// room reports whether m may be retained; messages that are not to be, may.
func (r *retained) room(m *message) bool {
	if !m.retain || len(m.payload) == 0 {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old, known := r.sizes[m.topic]
	return (known || len(r.sizes) < r.max) && r.bytes-old+retainedSize(m) <= r.bytesMax
}

// retainedOverhead is what mochi's packet and index entry take beside the payload.
const retainedOverhead = 1024

func retainedSize(m *message) int64 {
	return int64(len(m.topic)+len(m.payload)) + retainedOverhead
}

// store sets, replaces or clears the retained message of m's topic. A message for
// which there is no room leaves the earlier one.
func (r *retained) store(index *mqtt.TopicsIndex, m *message) bool {
	if !r.room(m) {
		return false
	}
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: m.qos, Retain: true},
		TopicName: m.topic, Payload: m.payload, Origin: m.origin, ProtocolVersion: 5}
	if !m.expires.IsZero() {
		pk.Expiry = m.expires.UnixMicro()
	}
	if m.props != nil {
		pk.Properties = packets.Properties{ContentType: m.props.contentType, ResponseTopic: m.props.responseTopic,
			CorrelationData: m.props.correlation, User: m.props.user, PayloadFormat: m.props.payloadFormat, PayloadFormatFlag: m.props.hasFormat}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes -= r.sizes[m.topic]
	delete(r.sizes, m.topic)
	if len(m.payload) > 0 {
		r.sizes[m.topic] = retainedSize(m)
		r.bytes += retainedSize(m)
	}
	index.RetainMessage(pk)
	return true
}

// drop forgets an expired message.
func (r *retained) drop(index *mqtt.TopicsIndex, topic string) {
	r.store(index, &message{topic: topic, retain: true})
}

// asMessage turns a retained packet back into a message.
func asMessage(pk *packets.Packet) *message {
	m := &message{topic: pk.TopicName, payload: pk.Payload, origin: pk.Origin, qos: pk.FixedHeader.Qos, retain: true}
	if pk.Expiry > 0 {
		m.expires = time.UnixMicro(pk.Expiry)
	}
	m.takeProperties(&pk.Properties, time.Time{})
	return m
}
