package broker

import (
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/internal/precedence"
	"github.com/sluice-iot/sluice/session"
)

// live is the session of a connected client, as far as its node needs it: its
// subscriptions and what is on its way to it. It lives as long as the connection.
// What a durable session must keep is in its shard; messages of QoS 1 and 2 for it
// come from there, numbered, and stay there until they are acknowledged.
//
// mu may be held while a conn's mu is taken, never the other way round.
type live struct {
	ref      session.Ref // without an epoch while its connection is early; then under mu
	id       string
	identity Identity
	durable  bool

	mu     sync.Mutex
	subs   session.Filters[*subscriber]
	conn   *conn                       // once it has its CONNACK: messages may be written
	gone   bool                        // ended; nothing is queued any more
	fenced bool                        // a later owner has the session
	below  uint64                      // early: up to this epoch sessions of the client have a later owner
	unsent precedence.Queue[*outgoing] // QoS 1 and 2 messages waiting for the window
	flight []*outgoing                 // sent, in order; the first is not acknowledged
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
	if s.unsent.Len()+len(s.sent) >= b.cfg.QueueMax || s.bytes+len(m.Payload) > b.cfg.QueueBytesMax {
		b.metrics.dropped.WithLabelValues("queue_full").Inc()
		if s.conn != nil {
			s.conn.fail(codeSlow)
		}
		return
	}
	s.add(o)
	s.advance(b, now)
}

// add lets a message wait for the window. Those of a durable session are in the order
// of their numbers, from which their packet ids follow; otherwise urgent ones pass.
func (s *live) add(o *outgoing) {
	s.bytes += len(o.m.Payload)
	s.unsent.Put(o, 0, !s.durable && o.m.Urgent())
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
	for c != nil && s.unsent.Len() > 0 && len(s.sent) < int(c.sendWindow) && len(s.flight) < spanMax {
		o := s.unsent.Pop()
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

// end drops everything the session holds here and returns the number of the last
// queued message that was written.
func (s *live) end(b *Broker) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.subs {
		s.forget(b, v)
	}
	s.gone, s.conn = true, nil
	s.subs, s.flight, s.sent, s.bytes = nil, nil, nil, 0
	s.unsent = precedence.Queue[*outgoing]{}
	return max(s.wire, s.again)
}

// connected reports whether messages can be written right now.
func (s *live) connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil
}
