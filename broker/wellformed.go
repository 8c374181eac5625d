package broker

import (
	"bytes"
	"encoding/binary"
	"slices"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"
)

// What the decoder lets pass and the standard calls malformed or a protocol error:
// bytes that belong to nothing, bits that are reserved, a property that is there
// twice, and values that mean nothing (MQTT 5.0, sections 2.2.2.2, 3.1, 3.8.3.1 and
// those of the properties).

var (
	codeSurplus      = packets.Code{Code: packets.ErrMalformedPacket.Code, Reason: "bytes behind the end of the packet's content"}
	codeBeyond       = packets.Code{Code: packets.ErrMalformedPacket.Code, Reason: "a property is longer than the properties"}
	codeReserved     = packets.Code{Code: packets.ErrMalformedPacket.Code, Reason: "reserved bits of the subscription options are set"}
	codeWillQoS      = packets.Code{Code: packets.ErrMalformedPacket.Code, Reason: "the will has quality of service 3"}
	codeUserName     = packets.Code{Code: packets.ErrMalformedPacket.Code, Reason: "the user name is no UTF-8"}
	codeTwice        = packets.Code{Code: packets.ErrProtocolViolation.Code, Reason: "a property is there twice"}
	codeValue        = packets.Code{Code: packets.ErrProtocolViolation.Code, Reason: "a property has a value that it cannot have"}
	codeReplyTopic   = packets.Code{Code: packets.ErrProtocolViolation.Code, Reason: "the response topic is empty or has wildcards"}
	codeRetain3      = packets.Code{Code: packets.ErrProtocolViolation.Code, Reason: "retain handling is 3"}
	codeNoLocalShare = packets.Code{Code: packets.ErrProtocolViolation.Code, Reason: "no local on a shared subscription"}
)

// scan walks through the body of a packet that the decoder has accepted.
type scan struct{ rest []byte }

func (s *scan) skip(n int) { s.rest = s.rest[min(n, len(s.rest)):] }

// field takes bytes that have their length in front of them.
func (s *scan) field() []byte {
	if len(s.rest) < 2 {
		s.rest = nil
		return nil
	}
	n := min(int(binary.BigEndian.Uint16(s.rest)), len(s.rest)-2)
	f := s.rest[2 : 2+n]
	s.rest = s.rest[2+n:]
	return f
}

// properties takes the properties, without their length.
func (s *scan) properties() []byte {
	n, size := binary.Uvarint(s.rest)
	if size <= 0 || n > uint64(len(s.rest)-size) {
		s.rest = nil
		return nil
	}
	p := s.rest[size : size+int(n)]
	s.rest = s.rest[size+int(n):]
	return p
}

// packetFault finds what is wrong with a packet of a connected client beyond what the
// decoder has looked at.
func packetFault(version, first byte, body []byte) packets.Code {
	s := scan{body}
	switch kind := first >> 4; kind {
	case packets.Publish:
		if version < 5 {
			return packets.CodeSuccess
		}
		if s.field(); first>>1&3 > 0 {
			s.skip(2)
		}
		return propertyFault(s.properties())
	case packets.Subscribe, packets.Unsubscribe:
		s.skip(2)
		if version == 5 {
			if code := propertyFault(s.properties()); code != packets.CodeSuccess {
				return code
			}
		}
		if kind == packets.Subscribe {
			return s.optionsFault()
		}
		return packets.CodeSuccess
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		s.skip(2)
		return s.tailFault(version)
	case packets.Disconnect:
		return s.tailFault(version)
	case packets.Pingreq:
		return s.surplus()
	}
	return packets.CodeSuccess
}

// surplus wants nothing to be left.
func (s *scan) surplus() packets.Code {
	if len(s.rest) > 0 {
		return codeSurplus
	}
	return packets.CodeSuccess
}

// tailFault looks at a reason code and properties, which both may be absent, and
// which MQTT 3.1.1 does not have.
func (s *scan) tailFault(version byte) packets.Code {
	if version < 5 || len(s.rest) < 2 {
		if version == 5 {
			s.skip(1)
		}
		return s.surplus()
	}
	s.skip(1)
	if code := propertyFault(s.properties()); code != packets.CodeSuccess {
		return code
	}
	return s.surplus()
}

// optionsFault looks at the options of every filter of a SUBSCRIBE.
func (s *scan) optionsFault() packets.Code {
	for len(s.rest) > 0 {
		filter := s.field()
		if len(s.rest) == 0 {
			return packets.ErrMalformedPacket
		}
		options := s.rest[0]
		s.skip(1)
		switch {
		case options&0xc0 != 0:
			return codeReserved // of MQTT 3.1.1, more of them, by the decoder
		case options>>4&3 == 3:
			return codeRetain3
		case options&4 != 0 && bytes.HasPrefix(filter, []byte(sharePrefix)):
			return codeNoLocalShare
		}
	}
	return packets.CodeSuccess
}

// connectFault does the same for a CONNECT.
func connectFault(pk *packets.Packet, body []byte) packets.Code {
	s, p := scan{body}, &pk.Connect
	s.field()
	s.skip(4) // version, flags, keep alive
	if pk.ProtocolVersion == 5 {
		if code := propertyFault(s.properties()); code != packets.CodeSuccess {
			return code
		}
	}
	s.field() // client id
	if p.WillFlag {
		if pk.ProtocolVersion == 5 {
			if code := propertyFault(s.properties()); code != packets.CodeSuccess {
				return code
			}
		}
		s.field()
		s.field()
	}
	if p.UsernameFlag {
		s.field()
	}
	if p.PasswordFlag {
		s.field()
	}
	switch {
	case p.WillFlag && p.WillQos > 2:
		return codeWillQoS
	case p.UsernameFlag && (!utf8.Valid(p.Username) || bytes.IndexByte(p.Username, 0) >= 0):
		return codeUserName
	}
	return s.surplus() // a user name or password without its flag, above all
}

// propertyFault finds the first fault of properties that the decoder knows.
func propertyFault(p []byte) packets.Code {
	var seen uint64
	for len(p) > 0 {
		id, s := p[0], scan{p[1:]}
		v, ok := s.value(id)
		switch {
		case !ok:
			return codeBeyond
		case id != packets.PropUser && seen&(1<<id) != 0:
			return codeTwice
		}
		if code := valueFault(id, v); code != packets.CodeSuccess {
			return code
		}
		seen |= 1 << id
		p = s.rest
	}
	return packets.CodeSuccess
}

// value takes the value of a property; false when it does not end where the
// properties do.
func (s *scan) value(id byte) (v []byte, ok bool) {
	size := 0
	switch id {
	case packets.PropPayloadFormat, packets.PropRequestProblemInfo, packets.PropRequestResponseInfo:
		size = 1
	case packets.PropReceiveMaximum, packets.PropTopicAliasMaximum, packets.PropTopicAlias:
		size = 2
	case packets.PropMessageExpiryInterval, packets.PropSessionExpiryInterval, packets.PropWillDelayInterval, packets.PropMaximumPacketSize:
		size = 4
	case packets.PropSubscriptionIdentifier:
		if _, size = binary.Uvarint(s.rest); size <= 0 || size > 4 {
			return nil, false
		}
	case packets.PropUser:
		if _, ok := s.text(); !ok {
			return nil, false
		}
		return s.text()
	default:
		return s.text()
	}
	if size > len(s.rest) {
		return nil, false
	}
	v = s.rest[:size]
	s.skip(size)
	return v, true
}

// text is field for one that may be cut short.
func (s *scan) text() ([]byte, bool) {
	if len(s.rest) < 2 || int(binary.BigEndian.Uint16(s.rest)) > len(s.rest)-2 {
		return nil, false
	}
	return s.field(), true
}

// valueFault says whether a property may have a value. That of a topic alias is judged
// with the topic, and has a reason code of its own.
func valueFault(id byte, v []byte) packets.Code {
	switch id {
	case packets.PropPayloadFormat, packets.PropRequestProblemInfo, packets.PropRequestResponseInfo:
		if v[0] > 1 {
			return codeValue
		}
	case packets.PropReceiveMaximum, packets.PropMaximumPacketSize:
		if !slices.ContainsFunc(v, func(b byte) bool { return b > 0 }) {
			return codeValue
		}
	case packets.PropSubscriptionIdentifier:
		if n, _ := binary.Uvarint(v); n == 0 {
			return codeValue
		}
	case packets.PropResponseTopic:
		if len(v) == 0 || bytes.ContainsAny(v, "+#") {
			return codeReplyTopic
		}
	}
	return packets.CodeSuccess
}
