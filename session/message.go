package session

import (
	"encoding/binary"
	"strings"

	"github.com/sluice-iot/sluice/internal/wire"
)

// Message is an application message on its way to subscribers. It is shared by
// all of them and never written to once it has been handed on.
type Message struct {
	Topic   string
	Payload []byte
	Origin  string // client id of the publisher, for "no local"
	QoS     byte
	Retain  bool
	Expires int64  // microseconds of the epoch; 0 is never
	Props   []byte // MQTT 5 properties that travel with it, encoded as they go on the wire
}

// Expired reports whether the message may no longer be delivered at now, in
// microseconds.
func (m *Message) Expired(now int64) bool { return m.Expires != 0 && now >= m.Expires }

// Bytes is what the message counts for in every bound.
func (m *Message) Bytes() int {
	return len(m.Topic) + len(m.Payload) + len(m.Props) + len(m.Origin) + messageOverhead
}

// messageOverhead is the struct, its headers and its place in a queue.
const messageOverhead = 160

const (
	qosMask    = 3
	retainFlag = 4
)

// Append encodes m.
func (m *Message) Append(dst []byte) []byte {
	flags := m.QoS & qosMask
	if m.Retain {
		flags |= retainFlag
	}
	dst = wire.AppendString(dst, m.Topic)
	dst = wire.AppendString(dst, m.Payload)
	dst = wire.AppendString(dst, m.Origin)
	dst = append(dst, flags)
	dst = wire.AppendInt(dst, m.Expires)
	return wire.AppendString(dst, m.Props)
}

// DecodeMessage reads what Append wrote. Nothing of it aliases the input.
func DecodeMessage(r *wire.Reader) *Message {
	m := &Message{Topic: r.String(), Payload: clone(r.Blob()), Origin: r.String()}
	flags := r.Byte()
	m.QoS, m.Retain = min(flags&qosMask, 2), flags&retainFlag != 0
	m.Expires = r.Int()
	m.Props = clone(r.Blob())
	return m
}

// packed is an encoded message: one object for the collector, where a message is four.
// It is for messages of which there are many and most never sent.
type packed string

func pack(m *Message) packed {
	if m == nil {
		return ""
	}
	return packed(m.Append(nil))
}

func (p packed) unpack() *Message { return DecodeMessage(wire.NewReader([]byte(p))) }

func clone(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return append(make([]byte, 0, len(b)), b...)
}

// Subscription is one filter of a session with its options. Its zero ID is none.
type Subscription struct {
	Filter            string // with $share/group/ in front where it is shared
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
	ID                uint32
}

const (
	noLocalFlag   = 4
	publishedFlag = 8
	handlingShift = 4
)

// Append encodes s.
func (s *Subscription) Append(dst []byte) []byte {
	flags := s.QoS&qosMask | s.RetainHandling<<handlingShift
	if s.NoLocal {
		flags |= noLocalFlag
	}
	if s.RetainAsPublished {
		flags |= publishedFlag
	}
	dst = wire.AppendString(dst, s.Filter)
	return wire.AppendUint(append(dst, flags), uint64(s.ID))
}

// DecodeSubscription reads what Append wrote.
func DecodeSubscription(r *wire.Reader) Subscription {
	s := Subscription{Filter: r.String()}
	flags := r.Byte()
	s.QoS, s.NoLocal, s.RetainAsPublished = min(flags&qosMask, 2), flags&noLocalFlag != 0, flags&publishedFlag != 0
	s.RetainHandling = flags >> handlingShift
	s.ID = uint32(r.Uint())
	return s
}

// sharePrefix begins the filter of a shared subscription: $share/group/filter.
const sharePrefix = "$share/"

// SplitShared returns the filter that topics are matched with, and whether it is
// a shared subscription's.
func SplitShared(filter string) (plain string, shared bool) {
	rest, ok := strings.CutPrefix(filter, sharePrefix)
	if !ok {
		return filter, false
	}
	_, plain, ok = strings.Cut(rest, "/")
	return plain, ok
}

// HomeOf is the key whose shard a topic or filter lives in: the device of
// devices/{id}/..., otherwise the topic itself. It is "" for a filter whose
// topics live in more than one shard.
func HomeOf(filter string) string {
	if rest, ok := strings.CutPrefix(filter, "devices/"); ok {
		id, _, more := strings.Cut(rest, "/")
		if more && id != "" && id != "+" && id != "#" {
			return id
		}
	}
	if strings.ContainsAny(filter, "+#") {
		return ""
	}
	return filter
}

// AppendExpiry is the message expiry interval that is left at now, as an MQTT 5
// property; nothing for a message that never expires. Whole seconds that it has
// waited are taken off, so that what goes out at once keeps its interval.
func (m *Message) AppendExpiry(dst []byte, now int64) []byte {
	if m.Expires == 0 {
		return dst
	}
	left := max(1, (m.Expires-now+999_999)/1_000_000)
	return binary.BigEndian.AppendUint32(append(dst, propMessageExpiry), uint32(min(left, 1<<32-1)))
}

const propMessageExpiry = 2
