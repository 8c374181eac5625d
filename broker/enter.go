package broker

import (
	"context"
	"errors"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/session"
)

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
	wait := b.cfg.ConnectTimeout
	var late func(session.Connected, error)
	if c.mayBeEarly() {
		wait, late = min(earlyAfter, wait/2), c.settle
	}
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	b.sessions.expect(c.client)
	got, err := b.cluster.Connect(waiting, op, late)
	if late != nil && waiting.Err() != nil && errors.Is(err, waiting.Err()) { // settle will be called
		return b.connectEarly(ctx, c)
	}
	if err != nil {
		b.sessions.arrived(c.client)
		return b.connectCode(c, err)
	}
	c.lockGate()
	c.resume(&got)
	return packets.CodeSuccess
}

// resume notes what the shard says of the session of c.
func (c *conn) resume(got *session.Connected) {
	c.ref = session.Ref{Client: c.client, Epoch: got.Epoch}
	c.resumed = got
	c.will = nil // the shard's from now on
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
		if old.ref.Epoch > c.ref.Epoch && !c.early { // a later CONNECT was faster
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
	if s == nil {
		return
	}
	if c := s.fence(ref.Epoch); c != nil {
		c.fail(packets.ErrSessionTakenOver)
	}
}

// drainWillDelay is how long a node that stops lets its clients find another one
// before their wills are sent.
const drainWillDelay = 5 * time.Second

// leave tells the shard of c's session that its connection ended. The gate is held.
func (b *Broker) leave(c *conn) {
	if c.left || c.ref.Epoch == 0 && !c.early {
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
	if c.ref.Epoch == 0 {
		return // the shard has not answered yet; settle gives the session back
	}
	b.cluster.Disconnect(c.ref, !c.goodbye, delay, min(c.expiry, b.cfg.SessionExpiryMax), wire)
}

// durable reports whether the session of c is kept in its shard.
func (c *conn) durable() bool { return !c.clean || c.version == 5 && c.expiry > 0 }
