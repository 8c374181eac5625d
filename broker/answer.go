package broker

import (
	"encoding/binary"
	"time"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/telemetry"
)

// answer says what a result means for the publisher.
type answer uint8

const (
	answerSuccess answer = iota
	answerCode           // a negative ack with the code
	answerNever          // its fate is unknown: no answer, ever
)

// judge turns a result into an answer. Success claims that everything in the
// publish is durable; a negative code claims that nothing of it is; whatever is in
// between, or adds up to nothing, is not answered, so that the client sends it
// again and deduplication sorts it out.
func judge(r *telemetry.Result) (answer, packets.Code, int) {
	stored := r.Applied + r.Duplicate
	switch {
	case r.Unknown > 0 || r.Refused > 0 && stored+r.Quarantined > 0 || stored+r.Quarantined+r.Refused == 0:
		return answerNever, packets.CodeSuccess, outcomeUnknown
	case r.Refused > 0:
		return answerCode, refusalCode(r), outcomeRefused
	case stored == 0:
		return answerCode, packets.Code{Code: packets.ErrPayloadFormatInvalid.Code, Reason: r.Reason}, outcomeQuarantined
	case r.Quarantined > 0:
		return answerSuccess, packets.CodeSuccess, outcomeMixed
	case r.Applied > 0:
		return answerSuccess, packets.CodeSuccess, outcomeApplied
	default:
		return answerSuccess, packets.CodeSuccess, outcomeDuplicate
	}
}

func refusalCode(r *telemetry.Result) packets.Code {
	if r.Refusal == telemetry.RefusalTopic {
		return packets.Code{Code: packets.ErrTopicNameInvalid.Code, Reason: r.Reason}
	}
	return packets.Code{Code: packets.ErrQuotaExceeded.Code, Reason: r.Reason} // too large included: 0x95 is no ack code
}

// answerLocked answers the publish at the head of the FIFO; false means that it
// must stay there because nothing may be said about it.
//
// MQTT 3.1.1 has no negative ack: a quarantined payload is acknowledged, because it
// is stored, and a refused one ends the connection, because it is not.
func (c *conn) answerLocked(p *publish) bool {
	what, code, outcome := answerSuccess, packets.CodeSuccess, outcomeLocal
	switch {
	case p.refusal.Code != 0:
		what, code, outcome = answerCode, p.refusal, outcomeRefused
		c.b.refused.Add(1)
	case p.plain:
		if what, code, outcome = judge(&p.result); what == answerSuccess {
			outcome = outcomeLocal
		}
	case !p.local:
		what, code, outcome = judge(&p.result)
	}
	if what == answerNever && p.QoS > 0 && !c.silent && !c.dead {
		return false
	}
	c.b.metrics.publishes[p.QoS][outcome].Inc()
	if outcome == outcomeRefused {
		c.b.metrics.refused.WithLabelValues("publish", reasonLabel(code)).Inc()
	}
	if p.QoS == 0 || c.silent || c.dead {
		return true
	}
	c.quota--
	if what == answerCode && c.version < 5 {
		if outcome != outcomeQuarantined {
			c.failLocked(code)
			c.silent = true // nothing behind it may be answered: order
			return true
		}
		code = packets.CodeSuccess
	}
	kind := packets.Puback
	if p.QoS == 2 {
		kind = packets.Pubrec
		if code.Code >= packets.ErrUnspecifiedError.Code {
			delete(c.qos2, p.PacketID)
		} else if !p.again {
			c.qos2[p.PacketID] = true
			c.received++
		}
	}
	if code.Code == 0 && len(p.result.Writes) > 0 {
		c.out = c.appendTokenAck(c.out, kind, p.PacketID, p.result.Writes)
		return true
	}
	c.out = c.appendAck(c.out, kind, p.PacketID, code)
	return true
}

// appendAck encodes PUBACK, PUBREC, PUBREL or PUBCOMP.
func (c *conn) appendAck(dst []byte, kind byte, id uint16, code packets.Code) []byte {
	first := kind << 4
	if kind == packets.Pubrel {
		first |= 2
	}
	if c.version < 5 || code.Code == 0 {
		return append(dst, first, 2, byte(id>>8), byte(id))
	}
	reason := clip(code.Reason, reasonBytesMax)
	size := 3
	if c.problemInfo && reason != "" {
		size = 3 + sizeVarint(3+len(reason)) + 3 + len(reason)
	}
	if c.packetMax > 0 && 1+sizeVarint(size)+size > int(c.packetMax) {
		size = 3
	}
	dst = appendVarint(append(dst, first), size)
	dst = append(binary.BigEndian.AppendUint16(dst, id), code.Code)
	if size > 3 {
		dst = appendVarint(dst, 3+len(reason))
		dst = appendString(append(dst, packets.PropReasonString), reason)
	}
	return dst
}

// clip shortens s to at most n bytes without cutting a character, and keeps out
// what MQTT does not allow in a string.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
		for len(s) > 0 && !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	for i := 0; i < len(s); i++ {
		if s[i] == 0 {
			return s[:i]
		}
	}
	if !utf8.ValidString(s) {
		return ""
	}
	return s
}

func appendVarint(dst []byte, n int) []byte {
	for n > 127 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(dst, byte(n))
}

func sizeVarint(n int) int {
	size := 1
	for ; n > 127; n >>= 7 {
		size++
	}
	return size
}

func appendString(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

// reasonLabel names a reason code in metrics.
func reasonLabel(code packets.Code) string {
	switch code {
	case codeCommitDeadline:
		return "commit_deadline"
	case codeSlow:
		return "slow"
	case codeElsewhere:
		return "elsewhere"
	}
	switch code.Code {
	case packets.ErrTopicNameInvalid.Code:
		return "topic"
	case packets.ErrTopicFilterInvalid.Code:
		return "filter"
	case packets.ErrQuotaExceeded.Code:
		return "quota"
	case packets.ErrNotAuthorized.Code, packets.ErrBadUsernameOrPassword.Code, packets.ErrBanned.Code:
		return "not_authorized"
	case packets.ErrPayloadFormatInvalid.Code:
		return "payload"
	case packets.ErrServerBusy.Code, packets.ErrServerUnavailable.Code, packets.ErrUseAnotherServer.Code:
		return "busy"
	case packets.ErrClientIdentifierNotValid.Code:
		return "client_id"
	case packets.ErrMalformedPacket.Code:
		return "malformed"
	case packets.ErrProtocolViolation.Code, packets.ErrUnsupportedProtocolVersion.Code, packets.ErrBadAuthenticationMethod.Code:
		return "protocol"
	case packets.ErrReceiveMaximum.Code:
		return "receive_maximum"
	case packets.ErrTopicAliasInvalid.Code:
		return "topic_alias"
	case packets.ErrPacketTooLarge.Code:
		return "too_large"
	case packets.ErrSessionTakenOver.Code:
		return "taken_over"
	case packets.ErrServerShuttingDown.Code:
		return "shutdown"
	case packets.ErrKeepAliveTimeout.Code:
		return "keep_alive"
	default:
		return "other"
	}
}

// armLocked starts the clock of the commit deadline unless it runs. One timer per
// connection looks at the oldest publish only; it is not touched per publish.
func (c *conn) armLocked(oldest time.Time) {
	if c.armed {
		return
	}
	c.armed = true
	d := time.Until(oldest.Add(c.b.cfg.CommitDeadline))
	if c.timer == nil {
		c.timer = time.AfterFunc(d, c.onDeadline)
	} else {
		c.timer.Reset(d)
	}
}

var codeCommitDeadline = packets.Code{Code: packets.ErrServerBusy.Code, Reason: "publish not committed in time, send it again"}

// onDeadline ends a connection whose oldest publish has waited too long.
func (c *conn) onDeadline() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = false
	oldest := c.fifo.first
	if oldest == nil {
		oldest = c.waiting.first
	}
	if oldest == nil {
		return
	}
	if time.Since(oldest.at) < c.b.cfg.CommitDeadline {
		c.armLocked(oldest.at)
		return
	}
	c.failLocked(codeCommitDeadline)
	c.abandonLocked()
}

// abandonLocked gives up all publishes that have no answer yet. What was handed
// over still reports, and is then only counted.
func (c *conn) abandonLocked() {
	for c.fifo.n > 0 {
		p := c.popLocked()
		p.orphaned = true
		c.b.answered(1)
		c.b.metrics.publishes[p.QoS][outcomeUnknown].Inc()
	}
	c.dropWaitingLocked()
	c.changed.Broadcast()
}

// dropWaitingLocked forgets publishes that were read but never handed over.
func (c *conn) dropWaitingLocked() {
	for c.waiting.n > 0 {
		p := c.waiting.pop()
		c.b.waitBytes.Add(-p.bytes)
		c.waitBytes -= p.bytes
	}
}
