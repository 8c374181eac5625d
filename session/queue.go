package session

import (
	"slices"

	"github.com/sluice-iot/sluice/internal/wire"
)

// message brings a message to the durable sessions whose subscriptions match, and
// keeps it if it is to be retained.
func (st *State) message(r *wire.Reader) (Status, []byte) {
	m, keep := DecodeMessage(r), r.Bool()
	key := Key{r.String(), r.Uint()}
	var groups []string
	for range r.Count(1) {
		groups = append(groups, r.String())
	}
	if r.Err() != nil {
		return StatusInvalid, nil
	}
	if key != (Key{}) && st.repeats(key) {
		return StatusOK, nil
	}
	if keep && !st.retain(m) {
		return StatusFull, nil
	}
	if key != (Key{}) {
		st.remember(key)
	}
	if m.Expired(st.now) {
		return StatusOK, nil
	}
	st.fanOut(m, groups)
	return StatusOK, nil
}

// fanOut queues m once per session, with the highest quality of service of the
// subscriptions that match and all their identifiers.
func (st *State) fanOut(m *Message, groups []string) {
	bySession := map[*state]*Item{}
	var order []*state
	st.index.Match(m.Topic, func(v *sub) {
		if v.NoLocal && v.s.client == m.Origin {
			return
		}
		it := bySession[v.s]
		if it == nil {
			it = &Item{Message: m}
			bySession[v.s] = it
			order = append(order, v.s)
		}
		it.join(v)
	})
	slices.SortFunc(order, func(a, b *state) int {
		if a.client < b.client {
			return -1
		}
		return 1
	})
	for _, s := range order {
		it := bySession[s]
		slices.Sort(it.IDs)
		if it.QoS > 0 { // of QoS 0 goes from node to node
			st.enqueue(s, *it)
		}
	}
	for _, f := range groups {
		if v := st.next(f); v != nil {
			it := Item{Message: m}
			it.join(v)
			st.enqueue(v.s, it)
		}
	}
}

func (it *Item) join(v *sub) {
	it.QoS = max(it.QoS, min(v.QoS, it.Message.QoS))
	it.Retain = it.Retain || it.Message.Retain && v.RetainAsPublished
	if v.ID > 0 {
		it.IDs = append(it.IDs, v.ID)
	}
}

// enqueue puts an item into a session's queue, or counts that it does not fit.
func (st *State) enqueue(s *state, it Item) {
	if it.QoS == 0 {
		if s.connected {
			st.deliver(s, it)
		}
		return
	}
	if !s.durable {
		return
	}
	st.touch(s)
	if !st.room(s, it.Message) {
		st.drops.Full++
		return
	}
	it.Seq, it.at = s.last()+1, st.now
	s.queue = append(s.queue, it)
	s.live++
	s.bytes += it.Message.Bytes()
	st.backlog[s] = struct{}{}
	if s.connected {
		st.deliver(s, it)
	} else {
		st.arm(s)
	}
}

func (st *State) deliver(s *state, it Item) {
	st.effects.Deliveries = append(st.effects.Deliveries, Delivery{s.owner.Node, s.epoch, s.client, it})
}

// room makes room by what has expired, and tells whether there is enough.
func (st *State) room(s *state, m *Message) bool {
	fits := func() bool {
		return len(s.queue) < s.limits.count && s.bytes+m.Bytes() <= s.limits.bytes
	}
	if fits() {
		return true
	}
	if s.connected {
		return false // what is in the queue may be on its way
	}
	for i := range s.queue {
		if it := &s.queue[i]; !it.acked && !it.Released && it.Message.Expired(st.now) {
			st.drops.Expired++
			s.settle(it)
		}
	}
	st.trim(s)
	return fits()
}

// ack ends the item with a number.
func (st *State) ack(s *state, seq uint64) {
	if it := s.item(seq); it != nil {
		s.settle(it)
		st.trim(s)
	}
}

func (s *state) item(seq uint64) *Item {
	if seq < s.first || seq > s.last() {
		return nil
	}
	it := &s.queue[seq-s.first]
	if it.acked {
		return nil
	}
	return it
}

func (s *state) settle(it *Item) {
	it.acked = true
	s.live--
	s.bytes -= it.Message.Bytes()
	it.Message, it.IDs = nil, nil
}

// trim takes what is done with off the head of the queue.
func (st *State) trim(s *state) {
	n := 0
	for n < len(s.queue) && s.queue[n].acked {
		n++
	}
	s.queue = s.queue[n:]
	s.first += uint64(n)
	if len(s.queue) == 0 {
		s.queue = nil
		delete(st.backlog, s)
	}
}
