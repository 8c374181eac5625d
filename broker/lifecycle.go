package broker

import (
	"errors"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/internal/clock"
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

func (c *conn) unlockGate() {
	if c.gated {
		c.gated = false
		c.b.sessions.gate(c.client).Unlock()
	}
}

// errNotDurable says that a will did not become durable and is to be sent again.
var errNotDurable = errors.New("the will is not durable yet")

// Will implements pubsub.Local: a will that was allowed at CONNECT is published, on
// a telemetry topic through the ingest path like any publish.
func (b *Broker) Will(client string, m *session.Message, done func(error)) {
	topic := telemetry.ParseTopic(m.Topic)
	if topic.Kind == telemetry.TopicOther || m.Retain && len(m.Payload) == 0 {
		b.cluster.Publish(m, session.Key{}, done)
		return
	}
	pub := &telemetry.Publish{Client: client, Topic: m.Topic, Payload: m.Payload, Received: clock.Micros(time.Now()), QoS: m.QoS}
	if topic.Kind == telemetry.TopicDevice {
		pub.Device = topic.ID
	}
	size := int64(len(m.Payload)) + publishOverhead
	b.budget.used.Add(size) // not bounded by the budget, but by one will per session
	b.inFlight.Add(1)
	b.ingest.Publish(pub, func(r telemetry.Result) {
		b.inFlight.Add(-1)
		b.budget.give(size, false)
		what, _, outcome := judge(&r)
		b.metrics.publishes[m.QoS][outcome].Inc()
		switch what {
		case answerSuccess:
			b.cluster.Publish(m, session.Key{}, done)
		case answerNever:
			done(errNotDurable)
		default:
			done(nil) // refused for good
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

// Recheck implements pubsub.Local.
func (b *Broker) Recheck(id telemetry.ShardID) {
	for _, s := range b.sessions.all() {
		if ref := s.reference(); ref.Epoch > 0 && b.cluster.ShardOf(s.id) == id {
			b.cluster.Attach(ref)
		}
	}
}

// connectCode is the answer to a CONNECT that the shard did not take.
func (b *Broker) connectCode(c *conn, err error) packets.Code {
	switch {
	case errors.Is(err, session.ErrIdentity):
		return packets.ErrNotAuthorized
	case errors.Is(err, session.ErrFull):
		return packets.ErrQuotaExceeded
	case errors.Is(err, session.ErrElsewhere):
		return codeElsewhere
	case errors.Is(err, session.ErrFenced) && c.early:
		return packets.ErrSessionTakenOver
	case errors.Is(err, session.ErrFenced):
		return codeOvertaken
	default:
		b.log.Debug("session not taken in time", "client", c.client, "err", err)
		return codeNoLeader
	}
}
