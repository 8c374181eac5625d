package broker

import (
	"context"
	"time"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// Cluster is what the brokers of all nodes have in common: who has subscribed to
// what, and the sessions of all clients, which live in the shards. Nothing of it
// blocks, but for what takes a context.
type Cluster interface {
	// Subscribe announces a filter of a client of this node; announced waits until
	// every node holds it, and all filters announced before. Each call is undone by
	// one Unsubscribe.
	Subscribe(filter string) (announced func(context.Context) error)
	Unsubscribe(filter string)
	// Wanted reports whether anybody anywhere has subscribed to anything; it costs
	// next to nothing.
	Wanted() bool
	// Publish gives m to the durable sessions and the connected clients of all nodes,
	// those of this one through Broker.Deliver, and keeps it if it is retained. done is
	// called exactly once: with nil when m is safe, with session.ErrFull when it cannot
	// be retained and went nowhere, or with another error when its fate is unknown. The
	// key is zero but for PublishOnce.
	Publish(m *session.Message, key session.Key, done func(error))
	// Retained lists the retained messages under a filter.
	Retained(ctx context.Context, filter string) ([]*session.Message, error)
	Sessions
}

// Sessions is the sessions in their shards. Operations with the Ref of a session
// that has another owner by now change nothing and end in Broker.Fence.
type Sessions interface {
	// Connect takes the session of a client id away from whoever had it. When ctx ends
	// first, late, if there is one, is called once with the outcome when it comes, on a
	// goroutine of its own; without one the session is given back.
	Connect(ctx context.Context, c session.Connect, late func(session.Connected, error)) (session.Connected, error)
	// Disconnect gives it back; see session.AppendDisconnect.
	Disconnect(ref session.Ref, will bool, minDelay, expiry time.Duration, sent uint64)
	// Attach says that the client is still connected.
	Attach(ref session.Ref)
	// Change adds and removes subscriptions of a durable session and returns when
	// nobody routes without them.
	Change(ctx context.Context, ref session.Ref, add []session.Subscription, remove []string) error
	// Fetch gets what is queued from a number on. done is called at most once, never
	// on the caller's goroutine.
	Fetch(ref session.Ref, from uint64, done func(items []session.Item, last uint64))
	// Enqueue puts a message into the queue.
	Enqueue(ref session.Ref, m *session.Message, qos byte, retain bool, ids []uint32)
	// Ack and Release say what became of a queued message; Release calls done when
	// that is certain.
	Ack(ref session.Ref, seq uint64)
	Release(ref session.Ref, seq uint64, done func())
	// PublishOnce is Publish for a message of QoS 2 under a packet id of a durable
	// session, which is the same message wherever it is sent until Forget.
	PublishOnce(ref session.Ref, id uint16, m *session.Message, done func(error))
	Forget(ref session.Ref, id uint16, done func())
	// ShardOf is the shard of a client id.
	ShardOf(client string) telemetry.ShardID
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
	if s.durable && min(m.QoS, sub.QoS) > 0 {
		return // comes from its shard
	}
	s.deliver(b, m, &sub, ids, false, now)
}
