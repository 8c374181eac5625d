package broker

import (
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

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
