package broker

import (
	"time"

	"github.com/sluice-iot/sluice/session"
)

// fetchBelow is how few messages may wait here before more are fetched.
const fetchBelow = 64

// fetch asks the shard for what is queued behind the last message taken from it.
// s.mu is held.
func (s *live) fetch(b *Broker) {
	if !s.durable || s.fetching || s.gone || s.conn == nil || s.have >= s.last || s.unsent.Len() >= fetchBelow {
		return
	}
	s.fetching = true
	b.cluster.Fetch(s.ref, s.have+1, func(items []session.Item, last uint64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.fetching = false
		for i := range items {
			s.take(&items[i])
		}
		s.last = max(s.last, last)
		if len(items) == 0 {
			s.have = max(s.have, last) // all of it was acknowledged
		}
		s.advance(b, time.Now())
	})
}

// take accepts the next message of the queue.
func (s *live) take(it *session.Item) {
	if s.gone || it.Seq <= s.have {
		return
	}
	s.have = it.Seq
	s.add(&outgoing{m: it.Message, ids: it.IDs, seq: it.Seq, id: it.PacketID(), qos: it.QoS, retain: it.Retain,
		dup: it.Seq <= s.again, released: it.Released})
}

// queued is what the shard tells of a durable session's queue; it may be repeated,
// late, or about to be fetched.
func (s *live) queued(b *Broker, it *session.Item, last uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return
	}
	now := time.Now()
	if it != nil && it.Seq == 0 {
		if s.conn != nil {
			s.write(b, s.conn, &outgoing{m: it.Message, ids: it.IDs, retain: it.Retain}, now)
		}
		return
	}
	s.last = max(s.last, last)
	if it != nil && it.Seq == s.have+1 && !s.fetching && s.unsent.Len() < b.cfg.QueueMax {
		s.take(it)
	}
	s.advance(b, now)
}
