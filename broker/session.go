package broker

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/session"
)

// live is the session of a connected client, as far as its node needs it: its
// subscriptions and what is on its way to it. It lives as long as the connection.
// What a durable session must keep is in its shard; messages of QoS 1 and 2 for it
// come from there, numbered, and stay there until they are acknowledged.
//
// mu may be held while a conn's mu is taken, never the other way round.
type live struct {
	ref      session.Ref
	id       string
	identity Identity
	durable  bool

	mu     sync.Mutex
	subs   session.Filters[*subscriber]
	conn   *conn       // once it has its CONNACK: messages may be written
	gone   bool        // ended; nothing is queued any more
	fenced bool        // a later owner has the session
	unsent []*outgoing // QoS 1 and 2 messages waiting for the window
	flight []*outgoing // sent, in order; the first is not acknowledged
	sent   map[uint16]*outgoing
	bytes  int    // payload bytes in unsent and flight
	nextID uint16 // of a session that is not durable

	have      uint64 // durable: number of the last message taken from the shard
	last      uint64 // of the newest there
	again     uint64 // up to here messages may have been sent by an earlier connection
	wire      uint64 // of the last message written
	fetching  bool
	receiving map[uint16]bool // QoS 2 publishes of the client that its shard has numbered
}

// deliver queues or sends m; the publisher never waits for a subscriber. One that
// lets too much pile up is cut off.
func (s *live) deliver(b *Broker, m *session.Message, sub *session.Subscription, ids []uint32, retained bool, now time.Time) {
	o := &outgoing{m: m, ids: ids, qos: min(m.QoS, sub.QoS), retain: m.Retain && (retained || sub.RetainAsPublished)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return
	}
	if o.qos == 0 {
		if s.conn != nil {
			s.write(b, s.conn, o, now)
		}
		return
	}
	if len(s.unsent)+len(s.sent) >= b.cfg.QueueMax || s.bytes+len(m.Payload) > b.cfg.QueueBytesMax {
		b.metrics.dropped.WithLabelValues("queue_full").Inc()
		if s.conn != nil {
			s.conn.fail(codeSlow)
		}
		return
	}
	s.add(o)
	s.advance(b, now)
}

func (s *live) add(o *outgoing) {
	s.bytes += len(o.m.Payload)
	s.unsent = append(s.unsent, o)
}

// write sends one message on c and counts what became of it.
func (s *live) write(b *Broker, c *conn, o *outgoing, now time.Time) {
	c.mu.Lock()
	ok, why := c.publishLocked(o, now)
	c.mu.Unlock()
	switch {
	case ok:
		b.metrics.delivered.Inc()
	case why == "too_large": // as if it had been delivered [MQTT-3.1.2-25]
		s.settle(b, o)
		fallthrough
	case o.qos == 0:
		b.metrics.dropped.WithLabelValues(why).Inc()
	}
}

// spanMax is how far ahead of the oldest message that is not acknowledged others
// are sent: the packet ids of a durable session follow from its numbers.
const spanMax = 30_000

// advance sends what the client's window allows. s.mu is held.
func (s *live) advance(b *Broker, now time.Time) {
	c := s.conn
	for c != nil && len(s.unsent) > 0 && len(s.sent) < int(c.sendWindow) && len(s.flight) < spanMax {
		o := s.unsent[0]
		s.unsent[0] = nil
		s.unsent = s.unsent[1:]
		if why := s.undeliverable(b, o, now); why != "" {
			s.bytes -= len(o.m.Payload)
			b.metrics.dropped.WithLabelValues(why).Inc()
			if s.durable {
				b.cluster.Ack(s.ref, o.seq)
			}
			continue
		}
		if !s.durable {
			o.id = s.freeID()
		}
		if s.sent == nil {
			s.sent = map[uint16]*outgoing{}
		}
		s.sent[o.id] = o
		s.flight = append(s.flight, o)
		s.wire = max(s.wire, o.seq)
		if o.released {
			_ = c.send(c.appendAck(nil, packets.Pubrel, o.id, packets.CodeSuccess)) // a dead connection: the next one repeats it
		} else {
			s.write(b, c, o, now)
		}
	}
	if len(s.unsent) == 0 {
		s.unsent = nil
	}
	s.fetch(b)
}

// undeliverable says why a message must not be sent, "" for one that may.
func (s *live) undeliverable(b *Broker, o *outgoing, now time.Time) string {
	switch {
	case o.released:
		return ""
	case o.m.Expired(clock.Micros(now)):
		return "expired"
	case s.durable && b.cfg.Authorizer != nil && !b.cfg.Authorizer.Allow(s.identity, s.id, ActionReceive, o.m.Topic):
		return "not_authorized" // the permission was taken back while the message waited
	}
	return ""
}

// freeID finds a packet id that is not in use; the window is far below 65,535.
func (s *live) freeID() uint16 {
	for {
		s.nextID++
		if _, used := s.sent[s.nextID]; s.nextID != 0 && !used {
			return s.nextID
		}
	}
}

// settle ends an exchange: the message is the client's, or never will be.
func (s *live) settle(b *Broker, o *outgoing) {
	if s.sent[o.id] != o {
		return
	}
	delete(s.sent, o.id)
	s.bytes -= len(o.m.Payload)
	o.done = true
	if s.durable {
		b.cluster.Ack(s.ref, o.seq)
	}
	n := 0
	for n < len(s.flight) && s.flight[n].done {
		s.flight[n] = nil
		n++
	}
	if s.flight = s.flight[n:]; len(s.flight) == 0 {
		s.flight = nil
	}
}

// acked handles PUBACK (of QoS 1) and PUBCOMP (of QoS 2, once released).
func (s *live) acked(b *Broker, id uint16, kind byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.sent[id]
	if o == nil || (kind == packets.Puback) != (o.qos == 1) || kind == packets.Pubcomp && !o.released {
		return
	}
	s.settle(b, o)
	s.advance(b, time.Now())
}

// refused handles a PUBREC with an error: the exchange is over.
func (s *live) refused(b *Broker, id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.sent[id]; o != nil && o.qos == 2 && !o.released {
		s.settle(b, o)
		s.advance(b, time.Now())
	}
}

// receivedBy handles PUBREC: the message is the client's, its id is released, for a
// durable session not before its shard knows. An unknown id is answered all the
// same, so that the client can forget it.
func (s *live) receivedBy(c *conn, id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.sent[id]
	switch {
	case o == nil || o.qos != 2:
		_ = c.send(c.appendAck(nil, packets.Pubrel, id, packets.Code{Code: packets.ErrPacketIdentifierNotFound.Code}))
	case s.durable && !o.released:
		c.b.cluster.Release(s.ref, o.seq, func() { s.release(c, o) })
	default:
		o.released = true
		_ = c.send(c.appendAck(nil, packets.Pubrel, id, packets.CodeSuccess))
	}
}

func (s *live) release(c *conn, o *outgoing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.released = true
	_ = c.send(c.appendAck(nil, packets.Pubrel, o.id, packets.CodeSuccess)) // fails when the connection ends; the next repeats it
}

// numbered notes that the shard has numbered a QoS 2 publish of the client.
func (s *live) numbered(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.receiving == nil {
		s.receiving = map[uint16]bool{}
	}
	s.receiving[id] = true
}

// received reports whether the shard has numbered a publish that is now released,
// and forgets it here.
func (s *live) received(id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.receiving[id]
	delete(s.receiving, id)
	return known
}

// begin makes c, which has its CONNACK now, the way to the client: what waits for
// a durable session is fetched from its shard.
func (s *live) begin(b *Broker, c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return
	}
	s.conn = c
	if s.fenced { // before it had its CONNACK
		c.fail(packets.ErrSessionTakenOver)
		return
	}
	s.advance(b, time.Now())
}

// fetchBelow is how few messages may wait here before more are fetched.
const fetchBelow = 64

// fetch asks the shard for what is queued behind the last message taken from it.
// s.mu is held.
func (s *live) fetch(b *Broker) {
	if !s.durable || s.fetching || s.gone || s.conn == nil || s.have >= s.last || len(s.unsent) >= fetchBelow {
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
	if it != nil && it.Seq == s.have+1 && !s.fetching && len(s.unsent) < b.cfg.QueueMax {
		s.take(it)
	}
	s.advance(b, now)
}

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

// end drops everything the session holds here and returns the number of the last
// queued message that was written.
func (s *live) end(b *Broker) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.subs {
		s.forget(b, v)
	}
	s.gone, s.conn = true, nil
	s.subs, s.unsent, s.flight, s.sent, s.bytes = nil, nil, nil, nil, 0
	return max(s.wire, s.again)
}

// connected reports whether messages can be written right now.
func (s *live) connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil
}

// sessions is the node's table of connected clients. The gates serialise what
// happens to one client id here, taking over and ending included.
type sessions struct {
	mu    sync.RWMutex
	byID  map[string]*live
	early map[string]uint64 // clients whose CONNECT is being decided: how far their queues go
	gates [256]sync.Mutex
}

func (t *sessions) get(id string) *live {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

func (t *sessions) put(s *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID[s.id] = s
}

func (t *sessions) remove(s *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[s.id] == s {
		delete(t.byID, s.id)
	}
}

func (t *sessions) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byID)
}

func (t *sessions) all() []*live {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]*live, 0, len(t.byID))
	for _, s := range t.byID {
		out = append(out, s)
	}
	return out
}

// expect notes what is queued for a client between the decision about its CONNECT
// and its first moment here.
func (t *sessions) expect(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.early[id]; !ok {
		t.early[id] = 0
	}
}

// arrived returns what was noted and ends it.
func (t *sessions) arrived(id string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.early[id]
	delete(t.early, id)
	return n
}

// find returns the session of ref, nil when it is not here. A client that is about
// to be here learns later how far its queue goes.
func (t *sessions) find(ref session.Ref, last uint64) *live {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.early[ref.Client]; ok {
		t.early[ref.Client] = max(n, last)
	}
	if s := t.byID[ref.Client]; s != nil && s.ref == ref {
		return s
	}
	return nil
}

// Queued implements pubsub.Local.
func (b *Broker) Queued(ref session.Ref, it *session.Item, last uint64) {
	if s := b.sessions.find(ref, last); s != nil {
		s.queued(b, it, last)
	}
}

// connectSession takes the client's session in its shard; the gate is locked when it
// succeeds.
func (b *Broker) connectSession(ctx context.Context, c *conn) packets.Code {
	op := session.Connect{Client: c.client, Identity: c.identity.Name, Clean: c.clean, Durable: c.durable(), Expiry: c.expiry.Microseconds(),
		QueueMax: b.cfg.QueueMax, QueueBytes: b.cfg.QueueBytesMax, QueueAge: b.cfg.SessionExpiryMax.Microseconds(),
		Will: c.will, WillDelay: c.willDelay.Microseconds()}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	b.sessions.expect(c.client)
	got, err := b.cluster.Connect(ctx, op)
	if err != nil {
		b.sessions.arrived(c.client)
		return b.connectCode(c, err)
	}
	c.ref = session.Ref{Client: c.client, Epoch: got.Epoch}
	c.resumed = &got
	c.will = nil // the shard's from now on
	c.lockGate()
	return packets.CodeSuccess
}

// enter makes the session of c the one of its client id on this node, and reports
// whether it continues an earlier one. The connection that had the id here is told
// and ends. The gate is held.
func (b *Broker) enter(c *conn) (present bool) {
	got := c.resumed
	c.resumed = nil
	s := &live{ref: c.ref, id: c.client, identity: c.identity, durable: c.durable(),
		have: got.First - 1, last: max(got.Last, b.sessions.arrived(c.client)), again: got.Sent}
	c.session = s
	if old := b.sessions.get(c.client); old != nil {
		if old.ref.Epoch > c.ref.Epoch { // a later CONNECT was faster
			s.gone = true
			c.fail(packets.ErrSessionTakenOver)
			return got.Present
		}
		b.takeOver(old)
	}
	b.sessions.put(s)
	for i := range got.Subs {
		s.subscribe(b, got.Subs[i])
	}
	for _, id := range got.Received {
		if s.receiving == nil {
			s.receiving = map[uint16]bool{}
		}
		s.receiving[id] = true
	}
	return got.Present
}

// takeOver ends a session here whose client has connected again.
func (b *Broker) takeOver(s *live) {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c != nil {
		c.fail(packets.ErrSessionTakenOver)
	}
	s.end(b)
	b.sessions.remove(s)
}

// Fence implements pubsub.Local.
func (b *Broker) Fence(ref session.Ref) {
	s := b.sessions.get(ref.Client)
	if s == nil || s.ref.Epoch > ref.Epoch {
		return
	}
	s.mu.Lock()
	c := s.conn
	s.fenced = true
	s.mu.Unlock()
	if c != nil {
		c.fail(packets.ErrSessionTakenOver)
	}
}

// drainWillDelay is how long a node that stops lets its clients find another one
// before their wills are sent.
const drainWillDelay = 5 * time.Second

// leave tells the shard of c's session that its connection ended. The gate is held.
func (b *Broker) leave(c *conn) {
	if c.left || c.ref.Epoch == 0 {
		return
	}
	c.left = true
	delay, wire := time.Duration(0), uint64(0)
	if b.draining.Load() {
		delay = drainWillDelay
	}
	switch s := c.session; {
	case s != nil:
		wire = s.end(b)
		b.sessions.remove(s)
	case c.resumed != nil:
		wire = c.resumed.Sent
	}
	b.cluster.Disconnect(c.ref, !c.goodbye, delay, min(c.expiry, b.cfg.SessionExpiryMax), wire)
}

// durable reports whether the session of c is kept in its shard.
func (c *conn) durable() bool { return !c.clean || c.version == 5 && c.expiry > 0 }

func (b *Broker) unsubscribed(c *conn, filters []string) error {
	if len(filters) == 0 || !c.session.durable {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), announceMax)
	defer cancel()
	return b.cluster.Change(ctx, c.ref, nil, slices.Clone(filters))
}
