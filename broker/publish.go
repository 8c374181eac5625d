package broker

import (
	"errors"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// publish is one PUBLISH of a client from its receipt to its answer.
type publish struct {
	telemetry.Publish // what the ingest path gets; the payload is its until it reports

	conn     *conn
	next     *publish
	at       time.Time        // of receipt; Received is the same instant for the cluster
	special  *session.Message // what local subscribers get, when it has more to it than topic and payload
	result   telemetry.Result
	bytes    int64
	state    publishState
	refusal  packets.Code // set on a publish that the broker itself refuses
	local    bool         // nothing to commit: refused, or answered before
	plain    bool         // not telemetry: for subscribers only
	again    bool         // a QoS 2 publish that was answered before: answer only
	orphaned bool         // the connection gave it up; its result is only counted
}

type publishState uint8

const (
	publishWaiting publishState = iota
	publishSubmitted
	publishDone    // its result is known
	publishRouting // on its way to subscribers
	publishRouted  // may be answered
)

// publishList is a first-in first-out list of publishes.
type publishList struct {
	first, last *publish
	n           int
}

func (l *publishList) push(p *publish) {
	if l.last == nil {
		l.first = p
	} else {
		l.last.next = p
	}
	l.last = p
	l.n++
}

func (l *publishList) pop() *publish {
	p := l.first
	if l.first = p.next; l.first == nil {
		l.last = nil
	}
	p.next = nil
	l.n--
	return p
}

// handlePublish takes one PUBLISH. It validates, resolves the topic alias, and puts
// the publish into the connection's order of answers. It blocks only when the
// connection has more waiting than its allowance.
func (c *conn) handlePublish(pk *packets.Packet) verdict {
	if code := pk.PublishValidate(c.b.cfg.TopicAliasMax); code != packets.CodeSuccess {
		return c.reject(code)
	}
	if code := c.resolveAlias(pk); code != packets.CodeSuccess {
		return c.reject(code)
	}
	now := time.Now()
	p := &publish{conn: c, at: now, bytes: int64(len(pk.Payload)) + publishOverhead}
	p.Publish = telemetry.Publish{Client: c.client, Topic: pk.TopicName, Payload: pk.Payload, Received: clock.Micros(now),
		PacketID: pk.PacketID, QoS: pk.FixedHeader.Qos, Dup: pk.FixedHeader.Dup}
	if pk.FixedHeader.Retain || c.version == 5 && carries(&pk.Properties) {
		p.special = p.message()
		p.special.Retain = pk.FixedHeader.Retain
		p.special.Expires, p.special.Props = expiryOf(&pk.Properties, now), propsOf(&pk.Properties)
	}
	p.Token = p.QoS > 0 && c.problemInfo && wantsToken(pk)
	c.classify(p)
	if p.refusal.Code == 0 {
		c.throttle(p)
	}
	return c.enqueue(p)
}

// message is what subscribers get of p. Most publishes have none, so it is not part
// of every publish in flight.
func (p *publish) message() *session.Message {
	if p.special != nil {
		return p.special
	}
	return &session.Message{Topic: p.Topic, Payload: p.Payload, QoS: p.QoS, Origin: p.Client}
}

// urgent reports whether p passes before bulk; telemetry, which is nearly everything,
// is told without a look at its topic.
func (p *publish) urgent() bool { return p.plain && session.Urgent(p.Topic) }

func (p *publish) retain() bool { return p.special != nil && p.special.Retain }

const publishOverhead = telemetry.PublishOverhead

func (c *conn) resolveAlias(pk *packets.Packet) packets.Code {
	alias := pk.Properties.TopicAlias
	if alias == 0 {
		return packets.CodeSuccess
	}
	if pk.TopicName == "" {
		if int(alias) >= len(c.aliases) || c.aliases[alias] == "" {
			return packets.ErrProtocolViolationNoTopic
		}
		pk.TopicName = c.aliases[alias]
		return packets.CodeSuccess
	}
	if c.aliases == nil {
		c.aliases = make([]string, int(c.b.cfg.TopicAliasMax)+1)
	}
	c.aliases[alias] = string([]byte(pk.TopicName)) // a copy: the packet's string pins its payload
	return packets.CodeSuccess
}

// classify decides what a publish is: telemetry for the ingest path, a local
// message, or one that is refused.
func (c *conn) classify(p *publish) {
	topic := telemetry.ParseTopic(p.Topic)
	switch {
	case topic.Kind == telemetry.TopicInvalid:
		p.refuse(codeBadDevice)
	case !validTopic(p.Topic):
		p.refuse(packets.ErrTopicNameInvalid)
	case !c.b.allow(c, ActionPublish, p.Topic):
		p.refuse(packets.ErrNotAuthorized)
	case len(p.Payload) > c.b.cfg.PayloadBytesMax:
		p.refuse(codeTooLarge) // 0x95 is not among the codes of an ack
	case topic.Kind == telemetry.TopicOther, p.retain() && len(p.Payload) == 0: // an empty retained message clears, it is no telemetry
		p.plain = true
	case topic.Kind == telemetry.TopicDevice:
		p.Device = topic.ID
	}
}

var (
	codeBadDevice    = packets.Code{Code: packets.ErrTopicNameInvalid.Code, Reason: "device id must match [A-Za-z0-9][A-Za-z0-9._:@=~-]{0,127}"}
	codeTooLarge     = packets.Code{Code: packets.ErrQuotaExceeded.Code, Reason: "payload over the limit"}
	codeRetainedFull = packets.Code{Code: packets.ErrQuotaExceeded.Code, Reason: "too many retained messages"}
)

// refuse makes p a publish that will be answered with code in its turn and goes
// nowhere.
func (p *publish) refuse(code packets.Code) {
	p.refusal = code
	p.local = true
}

// enqueue puts p behind the connection's earlier publishes and hands it over when
// nothing is in the way.
func (c *conn) enqueue(p *publish) verdict {
	c.mu.Lock()
	if p.QoS > 0 {
		if drop, code := c.admitIDLocked(p); code != packets.CodeSuccess {
			c.mu.Unlock()
			return c.reject(code)
		} else if drop {
			c.mu.Unlock()
			return handled
		}
		c.quota++
	}
	c.armLocked(p.at)
	if c.waiting.n == 0 && !c.submitting && !c.b.draining.Load() && c.roomLocked(p) {
		c.admitLocked(p)
		c.mu.Unlock()
		if !p.local {
			c.b.submit(p)
		}
		return handled
	}
	c.waiting.push(p)
	c.waitBytes += p.bytes
	total := c.b.waitBytes.Add(p.bytes)
	for !c.closing && c.waiting.n > 0 && (c.b.draining.Load() || c.waitBytes > c.b.cfg.WaitBytesMax || total > c.b.cfg.WaitBytesTotal) {
		c.changed.Wait()
		total = c.b.waitBytes.Load()
	}
	closing := c.closing
	c.mu.Unlock()
	if closing {
		return refuse
	}
	return handled
}

// admitIDLocked applies the rules of packet ids: a QoS 2 id that is already being
// committed is the same message (drop it, its answer is under way), one that was
// answered is answered again, and an MQTT 5 client keeps to the receive maximum.
func (c *conn) admitIDLocked(p *publish) (drop bool, code packets.Code) {
	if p.QoS == 2 {
		switch answered, known := c.qos2[p.PacketID]; {
		case answered:
			p.again, p.local = true, true
			return false, packets.CodeSuccess
		case known:
			return true, packets.CodeSuccess
		}
	}
	if c.version == 5 && c.quota+c.received >= c.b.cfg.Window {
		return false, packets.ErrReceiveMaximum
	}
	if p.QoS == 2 {
		if c.qos2 == nil {
			c.qos2 = map[uint16]bool{}
		}
		c.qos2[p.PacketID] = false
	}
	return false, packets.CodeSuccess
}

// roomLocked reports whether the window and the byte budget of the node allow p,
// and takes its share. What needs no commit needs no budget.
func (c *conn) roomLocked(p *publish) bool {
	if c.fifo.n >= c.b.cfg.Window || p.QoS == 2 && !p.again && c.received >= c.b.cfg.Window {
		return false
	}
	return p.local || c.b.budget.take(c, p)
}

// admitLocked puts p into the FIFO of answers; what needs no commit is done.
func (c *conn) admitLocked(p *publish) {
	p.state = publishSubmitted
	c.fifo.push(p)
	if c.unrouted == nil {
		c.unrouted = p
	}
	c.b.unanswered.Add(1)
	if p.local {
		p.state = publishDone
		c.kickLocked()
	}
}

// popLocked takes the head of the FIFO.
func (c *conn) popLocked() *publish {
	p := c.fifo.first
	if c.unrouted == p {
		c.unrouted = p.next
	}
	return c.fifo.pop()
}

// submit hands p to the ingest path, or to those who have subscribed.
func (b *Broker) submit(p *publish) {
	b.inFlight.Add(1)
	if !p.plain {
		b.accepted.Add(1)
		b.ingest.Publish(&p.Publish, p.done)
		return
	}
	c := p.conn
	if p.QoS < 2 || !c.session.durable {
		b.cluster.Publish(p.message(), session.Key{}, p.published)
		return
	}
	c.session.numbered(p.PacketID)
	b.cluster.PublishOnce(c.ref, p.PacketID, p.message(), p.published)
}

// published takes the outcome of a publish that is no telemetry.
func (p *publish) published(err error) {
	switch {
	case err == nil:
		p.done(telemetry.Result{Applied: 1})
	case errors.Is(err, session.ErrFull):
		p.done(telemetry.Result{Refused: 1, Reason: codeRetainedFull.Reason})
	default:
		p.done(telemetry.Result{Unknown: 1, Reason: err.Error()})
	}
}

// done takes the result of a publish, from any goroutine, and never blocks.
func (p *publish) done(r telemetry.Result) {
	c := p.conn
	c.mu.Lock()
	if p.state != publishSubmitted {
		c.mu.Unlock()
		c.b.log.Error("a publish was reported twice", "client", c.client, "topic", p.Topic)
		return
	}
	p.state = publishDone
	p.result = r
	if !p.orphaned && c.unrouted == p {
		c.kickLocked()
	}
	c.mu.Unlock()
	c.b.inFlight.Add(-1)
	c.b.budget.give(p.bytes, !p.plain)
}

// wanted reports whether subscribers are owed p, whose result is known.
func (p *publish) wanted() bool {
	if p.local || p.plain || !p.retain() && !p.conn.b.cluster.Wanted() {
		return false
	}
	what, _, _ := judge(&p.result)
	return what == answerSuccess
}

// route gives committed telemetry to its subscribers: of QoS 2 once, wherever the
// client of a durable session sends it again.
func (b *Broker) route(p *publish) {
	c := p.conn
	if p.QoS < 2 || !c.session.durable {
		b.cluster.Publish(p.message(), session.Key{}, p.routed)
		return
	}
	c.session.numbered(p.PacketID)
	b.cluster.PublishOnce(c.ref, p.PacketID, p.message(), p.routed)
}

// routed takes the outcome of giving committed telemetry to its subscribers.
func (p *publish) routed(err error) {
	c := p.conn
	if err != nil { // what was retained or queued is not certain: the client sends it again
		c.b.log.Debug("telemetry not given to all its subscribers", "client", c.client, "topic", p.Topic, "err", err)
		c.b.metrics.dropped.WithLabelValues("not_routed").Inc()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p.state = publishRouted
	if err != nil && !errors.Is(err, session.ErrFull) {
		p.result = telemetry.Result{Unknown: 1, Reason: err.Error()}
	}
	if !p.orphaned && c.fifo.first == p {
		c.kickLocked()
	}
}
