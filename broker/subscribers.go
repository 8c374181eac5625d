package broker

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sluice-iot/sluice/session"
)

// subscriber is one subscription of a session.
type subscriber struct {
	s   *live
	sub session.Subscription
}

// Subscribed is the filter.
func (v *subscriber) Subscribed() string { return v.sub.Filter }

// subscribers is the index of the subscriptions of this node's sessions. Shared
// groups are not matched here: who routes a message knows all their members, on
// every node, and names the groups whose turn is here.
type subscribers struct {
	mu     sync.RWMutex
	index  session.Index[*subscriber]
	groups map[string][]*subscriber // by the whole filter, $share/group/filter
	turn   atomic.Uint64
	n      atomic.Int64
}

// put adds v, in the place of old if there is one.
func (x *subscribers) put(v, old *subscriber) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old != nil {
		x.removeLocked(old)
	}
	x.n.Add(1)
	plain, shared := session.SplitShared(v.sub.Filter)
	if !shared {
		x.index.Add(plain, v)
		return
	}
	if x.groups == nil {
		x.groups = map[string][]*subscriber{}
	}
	x.groups[v.sub.Filter] = append(x.groups[v.sub.Filter], v)
}

func (x *subscribers) remove(v *subscriber) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.removeLocked(v)
}

func (x *subscribers) removeLocked(v *subscriber) {
	x.n.Add(-1)
	plain, shared := session.SplitShared(v.sub.Filter)
	if !shared {
		x.index.Remove(plain, v)
		return
	}
	left := slices.DeleteFunc(x.groups[v.sub.Filter], func(w *subscriber) bool { return w == v })
	if len(left) == 0 {
		delete(x.groups, v.sub.Filter)
	} else {
		x.groups[v.sub.Filter] = left
	}
}

// match lists the plain subscriptions that want m.
func (x *subscribers) match(m *session.Message) []*subscriber {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []*subscriber
	x.index.Match(m.Topic, func(v *subscriber) {
		if !v.sub.NoLocal || v.s.id != m.Origin {
			out = append(out, v)
		}
	})
	return out
}

// next is the member of a shared group whose turn it is, a connected one if there
// is any; nil for a group that has none.
func (x *subscribers) next(group string) *subscriber {
	x.mu.RLock()
	defer x.mu.RUnlock()
	members := x.groups[group]
	if len(members) == 0 {
		return nil
	}
	at := x.turn.Add(1)
	for i := range members {
		v := members[(at+uint64(i))%uint64(len(members))]
		if v.s.connected() {
			return v
		}
	}
	return members[at%uint64(len(members))]
}

// merge makes one delivery of the overlapping subscriptions of a session: the
// highest quality of service, retain as published if any asks for it, and all
// identifiers [MQTT-3.3.4-2, MQTT-3.3.4-4].
func merge(list []*subscriber) (sub session.Subscription, ids []uint32) {
	sub = list[0].sub
	for _, v := range list {
		sub.QoS = max(sub.QoS, v.sub.QoS)
		sub.RetainAsPublished = sub.RetainAsPublished || v.sub.RetainAsPublished
		if v.sub.ID > 0 {
			ids = append(ids, v.sub.ID)
		}
	}
	slices.Sort(ids)
	return sub, ids
}
