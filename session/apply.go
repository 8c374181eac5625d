package session

import (
	"cmp"
	"container/heap"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/sluice-iot/sluice/internal/wire"
)

// Apply applies one entry of the log: the leader's clock in microseconds and a
// batch. The answer is for the node that proposed it, see DecodeAnswers.
func (st *State) Apply(now int64, batch []byte) []byte {
	st.advance(now)
	r := wire.NewReader(batch)
	node, epoch, seq := r.String(), r.Uint(), r.Uint()
	o := st.origins[node]
	if node != "" && o != nil && (epoch < o.epoch || epoch == o.epoch && seq <= o.seq) {
		if epoch == o.epoch && seq == o.seq {
			return o.answers
		}
		return wire.AppendUint(nil, 0) // nobody waits for it any more
	}
	n := r.Count(1)
	answers := wire.AppendUint(nil, uint64(n))
	for range n {
		status, body := st.op(r.Blob())
		answers = wire.AppendString(append(answers, byte(status)), body)
	}
	if node != "" && r.Err() == nil {
		if o == nil {
			o = &origin{}
			st.origins[node] = o
		}
		o.epoch, o.seq, o.answers = epoch, seq, answers
	}
	return answers
}

// op applies one operation.
func (st *State) op(b []byte) (Status, []byte) {
	r := wire.NewReader(b)
	kind := opKind(r.Byte())
	switch kind {
	case opConnect:
		c := decodeConnect(r)
		return st.whole(r, func() (Status, []byte) { return st.connect(&c) })
	case opMessage:
		return st.message(r)
	case opGone:
		node, epoch := r.String(), r.Uint()
		return st.whole(r, func() (Status, []byte) { st.gone(node, epoch); return StatusOK, nil })
	case opWillSent:
		for range r.Count(1) {
			st.sent(r.Uint())
		}
		return StatusOK, nil
	case opTick:
		return StatusOK, nil
	}
	ref := decodeRef(r)
	s := st.sessions[ref.Client]
	if r.Err() != nil {
		return StatusInvalid, nil
	}
	if s == nil || s.epoch != ref.Epoch {
		return StatusFenced, nil
	}
	return st.sessionOp(kind, s, r)
}

// whole runs f if the operation was read to its end.
func (st *State) whole(r *wire.Reader, f func() (Status, []byte)) (Status, []byte) {
	if r.Err() != nil {
		return StatusInvalid, nil
	}
	return f()
}

// sessionOp applies an operation of a session's owner.
func (st *State) sessionOp(kind opKind, s *state, r *wire.Reader) (Status, []byte) {
	switch kind {
	case opDisconnect:
		will, minDelay, expiry, sent := r.Bool(), r.Int(), r.Int(), r.Uint()
		return st.whole(r, func() (Status, []byte) {
			s.expiry = max(expiry, 0)
			if s.connected {
				s.sent = min(sent, s.last())
				st.leaveAs(s, will, minDelay)
			} else if !will {
				s.will = ""
			}
			return StatusOK, nil
		})
	case opAttach:
		st.attach(s)
		return StatusOK, nil
	case opSubscribe:
		return st.subscribe(s, r)
	case opAck:
		seq := r.Uint()
		return st.whole(r, func() (Status, []byte) { st.ack(s, seq); return StatusOK, nil })
	case opRelease:
		seq := r.Uint()
		return st.whole(r, func() (Status, []byte) {
			if it := s.item(seq); it != nil && it.QoS == 2 {
				it.Released = true
			}
			return StatusOK, nil
		})
	case opReceive:
		id := uint16(r.Uint())
		return st.whole(r, func() (Status, []byte) { return st.receive(s, id) })
	case opDelivered:
		id := uint16(r.Uint())
		return st.whole(r, func() (Status, []byte) {
			for i := range s.received {
				if s.received[i].id == id {
					s.received[i].delivered = true
				}
			}
			return StatusOK, nil
		})
	case opForget:
		id := uint16(r.Uint())
		return st.whole(r, func() (Status, []byte) {
			s.received = slices.DeleteFunc(s.received, func(x receipt) bool { return x.id == id })
			return StatusOK, nil
		})
	case opEnqueue:
		it := decodeItem(r)
		return st.whole(r, func() (Status, []byte) { st.enqueue(s, it); return StatusOK, nil })
	}
	return StatusInvalid, nil
}

// connect gives a session to a connection. What was there before stays, unless the
// client asked for a clean start or its session was not durable.
func (st *State) connect(c *Connect) (Status, []byte) {
	s := st.sessions[c.Client]
	var out Connected
	if s != nil {
		if s.identity != c.Identity {
			return StatusIdentity, nil
		}
		if s.connected {
			s.sent = s.last()
			out.Node, out.NodeEpoch, out.Before = s.owner.Node, s.owner.Epoch, s.epoch
		}
		switch {
		case c.Clean || !s.durable:
			st.end(s)
			s = nil
		case s.connected && s.willDelay == 0:
			st.due(s) // the connection that is taken over ends without a good-bye
		}
	}
	if s == nil {
		if len(st.sessions) >= sessionsMax {
			return StatusFull, nil
		}
		s = &state{client: c.Client, identity: c.Identity, first: 1}
		st.sessions[c.Client] = s
	} else {
		out.Present = true
	}
	st.disown(s)
	st.serial++
	s.epoch, s.owner = st.serial, st.ownerOf(c.Node, c.NodeEpoch)
	s.durable, s.expiry = c.Durable, c.Expiry
	s.limits = limits{c.QueueMax, c.QueueBytes, c.QueueAge}
	s.will, s.willDelay, s.willAt, s.endAt = pack(c.Will), c.WillDelay, 0, 0
	st.own(s)
	st.arm(s)
	out.Epoch, out.First, out.Last, out.Sent = s.epoch, s.first, s.last(), s.sent
	for _, x := range s.received {
		out.Received = append(out.Received, x.id)
	}
	for _, v := range s.subs {
		out.Subs = append(out.Subs, v.Subscription)
	}
	return StatusOK, out.append(nil)
}

// ownerOf is a process whose name is not kept once more for every session.
func (st *State) ownerOf(node string, epoch uint64) Owner {
	for o := range st.owners {
		if o.Node == node {
			return Owner{o.Node, epoch}
		}
	}
	return Owner{node, epoch}
}

// own and disown keep count of a process's connections, and of the members of
// shared groups that are here.
func (st *State) own(s *state) {
	s.connected = true
	st.owners[s.owner]++
	st.shifted(s)
}

func (st *State) disown(s *state) {
	if !s.connected {
		return
	}
	s.connected = false
	if st.owners[s.owner]--; st.owners[s.owner] <= 0 {
		delete(st.owners, s.owner)
	}
	st.shifted(s)
}

// shifted reports the weights of a session's shared filters, which have changed.
func (st *State) shifted(s *state) {
	for _, v := range s.subs {
		if st.groups[v.Filter] != nil {
			st.effects.Filters = append(st.effects.Filters, st.weigh(v.Filter))
		}
	}
}

// leaveAs ends a connection whose owner tells what becomes of the will.
func (st *State) leaveAs(s *state, will bool, minDelay int64) {
	if !will {
		s.will = ""
	} else if s.will != "" {
		s.willDelay = max(s.willDelay, minDelay)
	}
	st.leave(s)
}

// attach makes a session its owner's again after the owner was given up.
func (st *State) attach(s *state) {
	if s.connected {
		return
	}
	s.willAt, s.endAt = 0, 0
	st.own(s)
	st.arm(s)
}

// leave ends the connection of a session: its will and its end come in time.
func (st *State) leave(s *state) {
	if !s.connected {
		return
	}
	if !s.durable || s.expiry == 0 {
		st.end(s)
		return
	}
	st.disown(s)
	s.endAt = st.now + s.expiry
	if s.will != "" {
		s.willAt = st.now + min(s.willDelay, s.expiry)
		if s.willDelay == 0 {
			st.due(s)
		}
	}
	st.arm(s)
}

// due makes the will of a session one that the leader has to send.
func (st *State) due(s *state) {
	s.willAt = 0
	if s.will == "" {
		return
	}
	m := s.will.unpack()
	if m.Expires > 0 { // an interval that begins now
		m.Expires += st.now
	}
	st.wills = append(st.wills, Will{st.nextWill, s.client, m})
	st.nextWill++
	st.effects.Wills = true
	s.will = ""
}

// sent takes away a will that reached its subscribers. They are in the order of their
// numbers and sent in about that order: what is in front moves, when a whole fleet is
// lost that is little.
func (st *State) sent(id uint64) {
	at, ok := slices.BinarySearchFunc(st.wills, id, func(w Will, id uint64) int { return cmp.Compare(w.ID, id) })
	if !ok {
		return
	}
	copy(st.wills[1:], st.wills[:at])
	st.wills[0] = Will{}
	if st.wills = st.wills[1:]; len(st.wills) == 0 {
		st.wills = nil
	}
}

// end removes a session; its will is due at the latest now.
func (st *State) end(s *state) {
	st.due(s)
	st.disown(s)
	for len(s.subs) > 0 {
		st.drop(s, s.subs[len(s.subs)-1].Filter)
	}
	delete(st.backlog, s)
	delete(st.sessions, s.client)
}

// gone ends all connections of a process and its predecessors.
func (st *State) gone(node string, epoch uint64) {
	var lost []string
	for client, s := range st.sessions {
		if s.connected && s.owner.Node == node && s.owner.Epoch <= epoch {
			lost = append(lost, client)
		}
	}
	slices.Sort(lost)
	for _, client := range lost {
		s := st.sessions[client]
		s.sent = s.last() // nobody knows
		st.leave(s)
	}
}

func (st *State) subscribe(s *state, r *wire.Reader) (Status, []byte) {
	var add []Subscription
	var remove []string
	for range r.Count(3) {
		add = append(add, DecodeSubscription(r))
	}
	for range r.Count(1) {
		remove = append(remove, r.String())
	}
	if r.Err() != nil {
		return StatusInvalid, nil
	}
	if len(s.subs)+len(add) > subscriptionsMax {
		return StatusFull, nil
	}
	for i := range add {
		st.put(s, add[i])
	}
	for _, f := range remove {
		st.drop(s, f)
	}
	return StatusOK, nil
}

func (st *State) put(s *state, p Subscription) {
	if old := s.subs.Get(p.Filter); old != nil {
		old.Subscription = p
		return
	}
	v := &sub{s, p}
	s.subs.Put(v)
	st.enlist(v)
	st.effects.Filters = append(st.effects.Filters, st.weigh(p.Filter))
}

func (st *State) enlist(v *sub) {
	plain, shared := SplitShared(v.Filter)
	if !shared {
		st.index.Add(plain, v)
		return
	}
	g := st.groups[v.Filter]
	if g == nil {
		g = &group{}
		st.groups[v.Filter] = g
	}
	g.members = append(g.members, v)
	slices.SortFunc(g.members, func(a, b *sub) int { // the same order after a snapshot
		if a.s.client < b.s.client {
			return -1
		}
		return 1
	})
}

func (st *State) drop(s *state, filter string) {
	v := s.subs.Get(filter)
	if v == nil {
		return
	}
	s.subs.Remove(filter)
	if plain, shared := SplitShared(filter); !shared {
		st.index.Remove(plain, v)
	} else if g := st.groups[filter]; g != nil {
		g.members, _ = without(g.members, v)
		if len(g.members) == 0 {
			delete(st.groups, filter)
		}
	}
	st.effects.Filters = append(st.effects.Filters, st.weigh(filter))
}

func (st *State) receive(s *state, id uint16) (Status, []byte) {
	for _, x := range s.received {
		if x.id == id {
			return StatusOK, wire.AppendBool(wire.AppendUint(nil, x.number), x.delivered)
		}
	}
	if len(s.received) >= receivedMax {
		return StatusFull, nil
	}
	st.serial++
	s.received = append(s.received, receipt{id: id, number: st.serial})
	return StatusOK, wire.AppendBool(wire.AppendUint(nil, st.serial), false)
}

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

// next is the member of a shared group whose turn it is; one that is connected
// comes before all that are away.
func (st *State) next(filter string) *sub {
	g := st.groups[filter]
	if g == nil {
		return nil
	}
	g.turn++
	here := make([]*sub, 0, len(g.members))
	for _, v := range g.members {
		if v.s.connected {
			here = append(here, v)
		}
	}
	if len(here) == 0 {
		here = g.members
	}
	return here[g.turn%uint64(len(here))]
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

// retain keeps m as its topic's message; an empty one clears it. False when there
// is no room, and then the earlier one stays.
func (st *State) retain(m *Message) bool {
	old := st.retained[m.Topic]
	n, bytes := len(st.retained), st.kept
	if old != nil {
		n, bytes = n-1, bytes-old.Bytes()
	}
	if len(m.Payload) == 0 {
		if old != nil {
			delete(st.retained, m.Topic)
			st.kept = bytes
		}
		return true
	}
	if n >= retainedMax || bytes+m.Bytes() > retainedBytesMax {
		return false
	}
	st.retained[m.Topic] = m
	st.kept = bytes + m.Bytes()
	return true
}

func (k Key) hash() uint64 {
	return xxhash.Sum64(wire.AppendUint(append([]byte(k.Client), 0), k.Number))
}

func (st *State) repeats(k Key) bool {
	_, ok := st.known[k.hash()]
	return ok
}

func (st *State) remember(k Key) {
	h := k.hash()
	st.known[h] = struct{}{}
	st.keys = append(st.keys, h)
	if len(st.keys) > keysMax {
		delete(st.known, st.keys[0])
		st.keys = st.keys[1:]
	}
}

// advance moves the clock and does what has become due.
func (st *State) advance(now int64) {
	st.now = max(st.now, now)
	for len(st.timers) > 0 && st.timers[0].at <= st.now {
		t := heap.Pop(&st.timers).(timer)
		s := st.sessions[t.client]
		if s == nil || s.timer != t.at {
			continue
		}
		s.timer = 0
		st.ring(s)
	}
}

// ring does what is due for a session whose client is away.
func (st *State) ring(s *state) {
	if s.endAt > 0 && s.endAt <= st.now {
		st.end(s)
		return
	}
	if s.willAt > 0 && s.willAt <= st.now {
		st.due(s)
	}
	if !s.connected && s.limits.age > 0 {
		for i := range s.queue {
			it := &s.queue[i]
			if it.acked {
				continue
			}
			if it.at+s.limits.age > st.now {
				break
			}
			st.drops.Aged++
			s.settle(it)
		}
		st.trim(s)
	}
	st.arm(s)
}

// arm puts the session's next deadline into the timers.
func (st *State) arm(s *state) {
	at := int64(0)
	for _, t := range [...]int64{s.endAt, s.willAt, s.oldest()} {
		if t > 0 && (at == 0 || t < at) {
			at = t
		}
	}
	if at == s.timer {
		return
	}
	s.timer = at
	if at == 0 {
		return
	}
	if len(st.timers) > 2*len(st.sessions)+timersSlack {
		st.timers = slices.DeleteFunc(st.timers, func(t timer) bool {
			x := st.sessions[t.client]
			return x == nil || x.timer != t.at
		})
		heap.Init(&st.timers)
	}
	heap.Push(&st.timers, timer{at, s.client})
}

// timersSlack is how many deadlines that nobody waits for any more may stand beside
// two a session: a client that comes and goes leaves one every time.
const timersSlack = 1024

// oldest is when the head of a waiting queue becomes too old.
func (s *state) oldest() int64 {
	if s.connected || s.limits.age == 0 || len(s.queue) == 0 {
		return 0
	}
	return s.queue[0].at + s.limits.age
}
