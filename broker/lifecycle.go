package broker

import (
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

func (t *sessions) gate(id string) *sync.Mutex {
	return &t.gates[xxhash.Sum64String(id)%uint64(len(t.gates))]
}

func (c *conn) lockGate() {
	if !c.gated {
		c.b.sessions.gate(c.client).Lock()
		c.gated = true
	}
}

// unlockGate also sends the wills that fell due behind the gate.
func (c *conn) unlockGate() {
	if !c.gated {
		return
	}
	c.gated = false
	wills := c.wills
	c.wills = nil
	c.b.sessions.gate(c.client).Unlock()
	for _, m := range wills {
		c.b.sendWill(c.client, m)
	}
}

// ephemeral reports whether the session ends with the connection.
func (c *conn) ephemeral() bool { return c.version == 5 && c.expiry == 0 || c.version < 5 && c.clean }

// enter gives c its session, a new one or the one its client id left behind, and
// reports whether it is the latter. A connection that had it is told and ends. The
// gate is held from before the identity was compared until CONNACK is under way.
func (b *Broker) enter(c *conn) (present bool) {
	s := b.sessions.get(c.client)
	continues := s != nil && !c.clean && !s.clean3
	if s != nil && s.owner != nil {
		s.owner.fail(packets.ErrSessionTakenOver)
	}
	if s != nil {
		b.disarm(s)
		if !continues {
			if s.will != nil {
				c.wills = append(c.wills, s.will) // the session it was delayed for ends here
			}
			s.end(b)
			b.sessions.remove(s)
		}
		s.will = nil
	}
	if !continues {
		s = &live{id: c.client, identity: c.identity}
		b.sessions.put(s)
	}
	s.clean3 = c.version < 5 && c.clean
	s.take(c)
	return continues
}

// leave tells the session of c that its connection ended; expire says that the
// session ends with it. The gate is held.
func (b *Broker) leave(c *conn, expire bool) {
	if c.left || c.session == nil {
		return
	}
	c.left = true
	s := c.session
	taken := s.owner != c
	will := c.will
	if c.goodbye || b.draining.Load() {
		will = nil // a node that stops defers wills, as the standard allows: its clients are on their way to another
	}
	if taken {
		if will != nil && (c.willDelay == 0 || b.sessions.get(c.client) != s) {
			c.wills = append(c.wills, will)
		}
		return
	}
	s.release(c)
	if expire {
		if will != nil {
			c.wills = append(c.wills, will)
		}
		s.end(b)
		b.sessions.remove(s)
		return
	}
	now := time.Now()
	s.endAt = now.Add(min(c.expiry, b.cfg.SessionExpiryMax))
	switch {
	case will != nil && c.willDelay == 0:
		c.wills = append(c.wills, will)
	case will != nil:
		s.will, s.willAt = will, now.Add(c.willDelay)
	}
	b.arm(s)
}

// arm starts the clock of a session whose client is away. The gate is held.
func (b *Broker) arm(s *live) {
	at := s.endAt
	if s.will != nil && s.willAt.Before(at) {
		at = s.willAt
	}
	s.timers++
	generation := s.timers
	s.timer = time.AfterFunc(time.Until(at), func() { b.ring(s, generation) })
}

func (b *Broker) disarm(s *live) {
	s.timers++
	if s.timer != nil {
		s.timer.Stop()
	}
}

// ring sends a delayed will and ends a session whose time is over.
func (b *Broker) ring(s *live, generation uint64) {
	if !b.track() {
		return
	}
	defer b.running.Done()
	if will := b.ringLocked(s, generation); will != nil {
		b.sendWill(s.id, will)
	}
}

func (b *Broker) ringLocked(s *live, generation uint64) (will *session.Message) {
	gate := b.sessions.gate(s.id)
	gate.Lock()
	defer gate.Unlock()
	if s.timers != generation || s.owner != nil {
		return nil
	}
	now := time.Now()
	over := !now.Before(s.endAt)
	if s.will != nil && (over || !now.Before(s.willAt)) {
		will, s.will = s.will, nil
	}
	if !over {
		b.arm(s)
		return will
	}
	s.end(b)
	b.sessions.remove(s)
	return will
}

// sendWill publishes a will that was allowed at CONNECT: on a telemetry topic
// through the ingest path like any publish, but nobody waits for an answer.
func (b *Broker) sendWill(client string, m *session.Message) {
	now := time.Now()
	if m.Expires > 0 { // the interval counts from the will's publication
		expiring := *m
		expiring.Expires += now.UnixMicro()
		m = &expiring
	}
	topic := telemetry.ParseTopic(m.Topic)
	if topic.Kind == telemetry.TopicOther {
		b.route(m)
		return
	}
	pub := &telemetry.Publish{Client: client, Topic: m.Topic, Payload: m.Payload, Received: now.UnixMicro(), QoS: m.QoS}
	if topic.Kind == telemetry.TopicDevice {
		pub.Device = topic.ID
	}
	size := int64(len(m.Payload)) + publishOverhead
	b.budget.used.Add(size) // not bounded by the budget, but by one will per session
	b.inFlight.Add(1)
	b.ingest.Publish(pub, func(r telemetry.Result) {
		b.inFlight.Add(-1)
		b.budget.give(size)
		what, _, outcome := judge(&r)
		b.metrics.publishes[m.QoS][outcome].Inc()
		if what == answerSuccess {
			b.route(m)
		}
	})
}

// willOf takes the will off a CONNECT, and says why it is not acceptable.
func (b *Broker) willOf(c *conn, pk *packets.Packet) packets.Code {
	p := &pk.Connect
	if !p.WillFlag {
		if p.WillQos != 0 || p.WillRetain {
			return packets.ErrProtocolViolation
		}
		return packets.CodeSuccess
	}
	switch {
	case p.WillQos > 2, p.WillTopic == "":
		return packets.ErrProtocolViolation
	case !validTopic(p.WillTopic), telemetry.ParseTopic(p.WillTopic).Kind == telemetry.TopicInvalid:
		return packets.ErrTopicNameInvalid
	case len(p.WillPayload) > b.cfg.PayloadBytesMax:
		return packets.ErrPacketTooLarge
	case !b.allow(c, ActionPublish, p.WillTopic):
		return packets.ErrNotAuthorized
	}
	c.will = &session.Message{Topic: p.WillTopic, Payload: p.WillPayload, Origin: c.client, QoS: p.WillQos, Retain: p.WillRetain,
		Expires: int64(p.WillProperties.MessageExpiryInterval) * 1_000_000, Props: propsOf(&p.WillProperties)} // expires so long after it is sent
	c.willDelay = time.Duration(p.WillProperties.WillDelayInterval) * time.Second
	return packets.CodeSuccess
}
