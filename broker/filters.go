package broker

import (
	"context"
	"slices"

	"github.com/sluice-iot/sluice/session"
)

// subscribe puts a subscription into the session and the node's index and announces
// it; fresh says that the session had none with this filter, ok is false when it has
// too many. announced, where it is not nil, waits until all nodes know. The shared
// subscriptions of a durable session are its shard's to announce.
func (s *live) subscribe(b *Broker, sub session.Subscription) (fresh, ok bool, announced func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.subs.Get(sub.Filter)
	if s.gone || old == nil && len(s.subs) >= b.cfg.SubscriptionsMax {
		return false, false, nil
	}
	v := &subscriber{s, sub}
	s.subs.Put(v)
	if s.elsewhere(sub.Filter) {
		return old == nil, true, nil
	}
	b.subs.put(v, old)
	if old == nil {
		announced = b.cluster.Subscribe(sub.Filter)
	}
	return old == nil, true, announced
}

// elsewhere reports whether a filter is served by the session's shard alone.
func (s *live) elsewhere(filter string) bool {
	_, shared := session.SplitShared(filter)
	return shared && s.durable
}

// unsubscribe reports whether there was a subscription with the filter.
func (s *live) unsubscribe(b *Broker, filter string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.subs.Get(filter)
	if v == nil {
		return false
	}
	s.subs.Remove(filter)
	s.forget(b, v)
	return true
}

func (s *live) forget(b *Broker, v *subscriber) {
	if !s.elsewhere(v.sub.Filter) {
		b.subs.remove(v)
		b.cluster.Unsubscribe(v.sub.Filter)
	}
}

func (b *Broker) unsubscribed(c *conn, filters []string) error {
	if len(filters) == 0 || !c.session.durable {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), announceMax)
	defer cancel()
	return b.cluster.Change(ctx, c.ref, nil, slices.Clone(filters))
}
