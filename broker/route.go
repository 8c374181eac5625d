package broker

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/session"
)

// Cluster is the other nodes, as far as publish and subscribe are concerned.
type Cluster interface {
	// Subscribe announces a filter of a client of this node; announced waits until
	// every node holds it, and all filters announced before. Each call is undone by
	// one Unsubscribe. Neither blocks.
	Subscribe(filter string) (announced func(context.Context) error)
	Unsubscribe(filter string)
	// Wanted reports whether anybody anywhere has subscribed to anything; it costs
	// next to nothing.
	Wanted() bool
	// Publish gives m to the subscribers of all nodes; those of this one through
	// Broker.Deliver. It does not wait for anybody.
	Publish(m *session.Message)
}

// routePublish routes p when there is anybody or anything to route it for.
func (b *Broker) routePublish(p *publish) {
	if p.retain() || b.cluster.Wanted() {
		b.route(p.message())
	}
}

// route gives m to the subscribers whose filters match, and retains it when its
// publisher asked for that. It never blocks on a subscriber.
func (b *Broker) route(m *session.Message) {
	if m.Retain && !b.retained.store(m) {
		b.metrics.dropped.WithLabelValues("retained_full").Inc()
	}
	if b.cluster.Wanted() && !m.Expired(time.Now().UnixMicro()) {
		b.cluster.Publish(m)
	}
}

// Deliver gives m to the matching sessions of this node, and for each of the
// shared groups to one member. It waits for nobody.
func (b *Broker) Deliver(m *session.Message, groups []string) {
	now := time.Now()
	list := b.subs.match(m)
	switch {
	case len(list) == 1:
		b.deliver(m, list, now)
	case len(list) > 1:
		bySession := make(map[*live][]*subscriber, len(list))
		for _, v := range list {
			bySession[v.s] = append(bySession[v.s], v)
		}
		for _, own := range bySession {
			b.deliver(m, own, now)
		}
	}
	for _, group := range groups {
		if v := b.subs.next(group); v != nil {
			b.deliver(m, []*subscriber{v}, now)
		}
	}
}

// deliver gives m to the session of the subscriptions, which all match.
func (b *Broker) deliver(m *session.Message, list []*subscriber, now time.Time) {
	s := list[0].s
	if b.cfg.Authorizer != nil && !b.cfg.Authorizer.Allow(s.identity, s.id, ActionReceive, m.Topic) {
		return
	}
	sub, ids := merge(list)
	s.deliver(b, m, &sub, ids, false, now)
}

// retained is the retained messages of this node.
type retained struct {
	max      int
	bytesMax int64

	mu    sync.Mutex
	kept  map[string]*session.Message
	bytes int64
}

// room reports whether m may be retained; messages that are not to be, may.
func (r *retained) room(m *session.Message) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.roomLocked(m)
}

func (r *retained) roomLocked(m *session.Message) bool {
	if !m.Retain || len(m.Payload) == 0 {
		return true
	}
	n, old := len(r.kept)+1, int64(0)
	if k := r.kept[m.Topic]; k != nil {
		n, old = n-1, int64(k.Bytes())
	}
	return n <= r.max && r.bytes-old+int64(m.Bytes()) <= r.bytesMax
}

// store sets, replaces or clears the retained message of m's topic. A message for
// which there is no room leaves the earlier one.
func (r *retained) store(m *session.Message) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.roomLocked(m) {
		return false
	}
	if old := r.kept[m.Topic]; old != nil {
		r.bytes -= int64(old.Bytes())
		delete(r.kept, m.Topic)
	}
	if len(m.Payload) > 0 {
		r.kept[m.Topic] = m
		r.bytes += int64(m.Bytes())
	}
	return true
}

// match lists what is retained under filter and has not expired.
func (r *retained) match(filter string, now int64) (out []*session.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !strings.ContainsAny(filter, "+#") {
		if m := r.kept[filter]; m != nil && !m.Expired(now) {
			out = append(out, m)
		}
		return out
	}
	for topic, m := range r.kept {
		if session.Matches(filter, topic) && !m.Expired(now) {
			out = append(out, m)
		}
	}
	return out
}
