package broker

import (
	"context"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/session"
)

// earlyAfter is how long a CONNECT that needs nothing of its shard waits for it: longer
// than an election takes.
const earlyAfter = time.Second

// codeNoLeader refuses a CONNECT whose session cannot be had.
var codeNoLeader = packets.Code{Code: packets.ErrServerUnavailable.Code, Reason: "the shard of this session has no leader, try again in a few seconds"}

// codeOvertaken refuses a CONNECT whose client has connected elsewhere while it waited.
var codeOvertaken = packets.Code{Code: packets.ErrServerUnavailable.Code, Reason: "the client has connected through another node since"}

// mayBeEarly reports whether c can be served before the shard of its session has
// answered: it takes nothing along and leaves nothing behind.
func (c *conn) mayBeEarly() bool { return !c.durable() && c.will == nil }

// connectEarly lets c in without its shard, which has no leader; its session gets its
// epoch when there is one again. ctx is that of the broker: at its end nobody is let in.
func (b *Broker) connectEarly(ctx context.Context, c *conn) packets.Code {
	c.lockGate()
	switch {
	case c.resumed != nil || c.left: // settle was faster than the gate
	case ctx.Err() != nil:
		b.sessions.arrived(c.client)
		c.left = true
	default:
		c.early, c.resumed = true, &session.Connected{First: 1}
		c.ref = session.Ref{Client: c.client}
		b.metrics.early.Inc()
	}
	if c.left {
		return codeNoLeader
	}
	return packets.CodeSuccess
}

// settle takes the answer of the shard to the CONNECT of a connection that did not wait
// for it, and which may have ended since, or may not even have noticed.
func (c *conn) settle(got session.Connected, err error) {
	b, gate := c.b, c.b.sessions.gate(c.client)
	gate.Lock()
	defer gate.Unlock()
	switch {
	case c.left && err == nil:
		b.cluster.Disconnect(session.Ref{Client: c.client, Epoch: got.Epoch}, false, 0, 0, 0)
	case c.left:
	case err != nil && !c.early:
		b.sessions.arrived(c.client)
		c.left = true
	case err != nil:
		c.fail(b.connectCode(c, err))
	case !c.early:
		c.resume(&got)
	default:
		c.ref.Epoch = got.Epoch
		if b.sessions.settle(c.session, got.Epoch) {
			c.fail(packets.ErrSessionTakenOver)
		}
	}
}

// settle gives the session of an early connection its epoch, and reports whether it has
// a later owner already.
func (t *sessions) settle(s *live, epoch uint64) (fenced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	s.ref.Epoch = epoch
	s.fenced = s.fenced || s.below >= epoch
	return s.fenced
}

// fence notes that a session up to an epoch has a later owner, and returns the connection
// that has to end. Which one an early connection is, its shard has still to say.
func (s *live) fence(epoch uint64) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ref.Epoch == 0:
		s.below = max(s.below, epoch)
		return nil
	case s.ref.Epoch > epoch:
		return nil
	}
	s.fenced = true
	return s.conn
}

// reference is the session's ref, without an epoch while its connection is early.
func (s *live) reference() session.Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ref
}
