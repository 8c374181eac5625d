package broker

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/session"
)

// live is what the node keeps of a client id: who owns it, what is on its way to
// it, and which of its QoS 2 publishes wait for their release. It outlives the
// connection when the client asked for that.
//
// mu may be held while a conn's mu is taken, never the other way round.
type live struct {
	id       string
	identity Identity

	// Guarded by the client id's gate.
	owner  *conn            // the connection that the session belongs to; nil while the client is away
	timer  *time.Timer      // the next of willAt and endAt
	timers uint64           // generation of timer: one of an earlier generation is void
	will   *session.Message // delayed
	willAt time.Time
	endAt  time.Time
	clean3 bool // begun by a clean session of MQTT 3: it is never continued

	mu     sync.Mutex
	subs   map[string]*subscriber
	conn   *conn       // the owner once it has its CONNACK: messages may be written
	gone   bool        // ended; nothing is queued any more
	qos2   []uint16    // the client's QoS 2 ids that wait for PUBREL, while it is away
	unsent []*outgoing // QoS 1 and 2 messages waiting for the window or the client
	sent   map[uint16]*outgoing
	bytes  int // payload bytes in unsent and sent
	nextID uint16
	seq    uint64
}

// deliver queues or sends m; a message that does not fit is dropped and counted,
// the publisher never waits for a subscriber.
func (s *live) deliver(b *Broker, m *session.Message, sub *session.Subscription, ids []uint32, retained bool, now time.Time) {
	o := &outgoing{m: m, ids: ids, qos: min(m.QoS, sub.QoS), retain: m.Retain && (retained || sub.RetainAsPublished)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return
	}
	c := s.conn
	if o.qos == 0 {
		if c == nil {
			return // QoS 0 is for those who are there
		}
		s.write(b, c, o, now)
		return
	}
	if len(s.unsent)+len(s.sent) >= b.cfg.QueueMax || s.bytes+len(m.Payload) > b.cfg.QueueBytesMax {
		b.metrics.dropped.WithLabelValues("queue_full").Inc()
		return
	}
	s.seq++
	o.seq = s.seq
	s.bytes += len(m.Payload)
	s.unsent = append(s.unsent, o)
	s.advance(b, now)
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
		s.forget(o)
		fallthrough
	case o.qos == 0:
		b.metrics.dropped.WithLabelValues(why).Inc()
	}
}

// advance sends what the client's window allows. s.mu is held.
func (s *live) advance(b *Broker, now time.Time) {
	c := s.conn
	for c != nil && len(s.unsent) > 0 && len(s.sent) < c.sendWindow {
		o := s.unsent[0]
		s.unsent[0] = nil
		s.unsent = s.unsent[1:]
		if o.m.Expired(now.UnixMicro()) {
			s.bytes -= len(o.m.Payload)
			b.metrics.dropped.WithLabelValues("expired").Inc()
			continue
		}
		o.id = s.freeID()
		if s.sent == nil {
			s.sent = map[uint16]*outgoing{}
		}
		s.sent[o.id] = o
		s.write(b, c, o, now)
	}
	if len(s.unsent) == 0 {
		s.unsent = nil
	}
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

func (s *live) forget(o *outgoing) {
	if _, ok := s.sent[o.id]; ok {
		delete(s.sent, o.id)
		s.bytes -= len(o.m.Payload)
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
	s.forget(o)
	s.advance(b, time.Now())
}

// refused handles a PUBREC with an error: the exchange is over.
func (s *live) refused(b *Broker, id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.sent[id]; o != nil && o.qos == 2 && !o.released {
		s.forget(o)
		s.advance(b, time.Now())
	}
}

// receivedBy handles PUBREC: the message is the client's, its id is released. An
// unknown id is answered all the same, so that the client can forget it.
func (s *live) receivedBy(c *conn, id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	code := packets.CodeSuccess
	if o := s.sent[id]; o != nil && o.qos == 2 {
		o.released = true
	} else {
		code = packets.Code{Code: packets.ErrPacketIdentifierNotFound.Code}
	}
	_ = c.send(c.appendAck(nil, packets.Pubrel, id, code)) // fails when the connection ends; resume repeats it
}

// resume makes c, which has its CONNACK now, the way to the client: it sends again
// what was on its way when the last connection ended, in the order of the first
// time, and then what was queued.
func (s *live) resume(b *Broker, c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return
	}
	s.conn = c
	now := time.Now()
	again := make([]*outgoing, 0, len(s.sent))
	for _, o := range s.sent {
		again = append(again, o)
	}
	slices.SortFunc(again, func(x, y *outgoing) int { return cmp.Compare(x.seq, y.seq) })
	for _, o := range again {
		if o.released {
			_ = c.send(c.appendAck(nil, packets.Pubrel, o.id, packets.CodeSuccess)) // a dead connection: the next one repeats it
			continue
		}
		o.dup = true
		s.write(b, c, o, now)
	}
	s.advance(b, now)
}

// take moves the session to c, before its CONNACK: messages queue meanwhile. The
// QoS 2 ids that wait for their release move too.
func (s *live) take(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.keepLocked(s.conn)
		s.conn = nil
	}
	s.owner = c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = s
	if len(s.qos2) > 0 {
		c.qos2 = make(map[uint16]bool, len(s.qos2))
		for _, id := range s.qos2 {
			c.qos2[id] = true
		}
		c.received = len(s.qos2)
	}
	s.qos2 = nil
}

// release takes c away from the session and keeps what the next connection must
// know.
func (s *live) release(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keepLocked(c)
	s.owner, s.conn = nil, nil
}

// keepLocked remembers the QoS 2 ids of c that were answered and not released.
func (s *live) keepLocked(c *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.qos2 = s.qos2[:0]
	for id, answered := range c.qos2 {
		if answered {
			s.qos2 = append(s.qos2, id)
		}
	}
}

// connected reports whether messages can be written right now.
func (s *live) connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil
}

// subscribe puts a subscription into the session and the node's index and announces
// it; fresh says that the session had none with this filter, ok is false when it has
// too many. announced, where it is not nil, waits until all nodes know.
func (s *live) subscribe(b *Broker, sub session.Subscription) (fresh, ok bool, announced func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.subs[sub.Filter]
	if s.gone || old == nil && len(s.subs) >= b.cfg.SubscriptionsMax {
		return false, false, nil
	}
	if s.subs == nil {
		s.subs = map[string]*subscriber{}
	}
	v := &subscriber{s, sub}
	s.subs[sub.Filter] = v
	b.subs.put(v, old)
	if old == nil {
		announced = b.cluster.Subscribe(sub.Filter)
	}
	return old == nil, true, announced
}

// unsubscribe reports whether there was a subscription with the filter.
func (s *live) unsubscribe(b *Broker, filter string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.subs[filter]
	if v == nil {
		return false
	}
	delete(s.subs, filter)
	b.subs.remove(v)
	b.cluster.Unsubscribe(filter)
	return true
}

// end drops everything the session holds.
func (s *live) end(b *Broker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for filter, v := range s.subs {
		b.subs.remove(v)
		b.cluster.Unsubscribe(filter)
	}
	s.subs = nil
	s.gone = true
	s.owner, s.conn = nil, nil
	s.unsent, s.sent, s.qos2, s.bytes = nil, nil, nil, 0
}

// sessions is the node's table of sessions. The gates serialise what happens to one
// client id, taking over and ending included; without them an old connection's end
// could remove what a new one has just built.
type sessions struct {
	mu    sync.RWMutex
	byID  map[string]*live
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
