package telemetry

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"unicode/utf8"
)

// slowPath decides with encoding/json about every payload that the fast path
// leaves alone, and is the meaning of both: FuzzParseAgrees holds the fast path
// to it. It is the only place that makes reasons.
type slowPath struct{}

// bad is the reason why an object is quarantined.
type bad string

func (b bad) Error() string { return string(b) }

const (
	badEmpty     bad = "payload is empty"
	badShape     bad = "payload is neither an object nor an array of objects"
	badArray     bad = "array is empty"
	badElement   bad = "array element is not an object"
	badUTF8      bad = "not valid UTF-8"
	badNothing   bad = "object has neither sensors nor metadata"
	badNoDevice  bad = "device_id is missing"
	badDevice    bad = "device_id is not an acceptable device id"
	badOther     bad = "device_id differs from the device of the topic"
	badTime      bad = "timestamp is neither RFC 3339 nor an epoch number in the years 1970 to 2262"
	badSensors   bad = "sensors is not an object"
	badMetadata  bad = "metadata is not an object"
	badMany      bad = "more than 1024 sensors"
	badManyAttrs bad = "more than 256 attributes"
	badLongAttrs bad = "attributes are over 16384 bytes"
)

func (s *slowPath) payload(device string, payload []byte, received int64, dst []Message) ([]Message, error) {
	elements, reason := split(payload)
	if reason != "" {
		dst = next(dst, device, received)
		quarantine(&dst[len(dst)-1], device, received, payload, string(reason))
		return dst, nil
	}
	if len(elements) > MessagesMax {
		return dst, ErrTooManyMessages
	}
	for _, element := range elements {
		dst = s.element(device, element, received, dst)
	}
	return dst, nil
}

// element appends the message of one object, whose syntax is known to be good.
func (s *slowPath) element(device string, element []byte, received int64, dst []Message) []Message {
	dst = next(dst, device, received)
	m := &dst[len(dst)-1]
	if reason := s.object(element, m); reason != "" {
		home := device
		if home == "" {
			home = homeOf(element)
		}
		quarantine(m, home, received, element, string(reason))
	}
	return dst
}

// homeOf finds a valid device_id in an object that is going to quarantine.
func homeOf(element []byte) string {
	element = replaceNaN(element)
	if !isObject(element) {
		return ""
	}
	for _, m := range members(element) {
		if m.key == "device_id" && isString(m.value) {
			if id := unquote(m.value); ValidDeviceID(id) {
				return id
			}
		}
	}
	return ""
}

func (s *slowPath) object(element []byte, m *Message) bad {
	if !utf8.Valid(element) {
		return badUTF8
	}
	element = replaceNaN(element)
	if !isObject(element) {
		return badElement
	}
	var device, timestamp, sensors, metadata json.RawMessage
	for _, f := range members(element) {
		switch f.key {
		case "device_id":
			device = f.value
		case "timestamp":
			timestamp = f.value
		case "sensors":
			sensors = f.value
		case "metadata":
			metadata = f.value
		}
	}
	if reason := s.device(device, m); reason != "" {
		return reason
	}
	if reason := s.time(timestamp, m); reason != "" {
		return reason
	}
	if isNull(sensors) && isNull(metadata) {
		return badNothing
	}
	if reason := s.sensors(sensors, m); reason != "" {
		return reason
	}
	return s.metadata(metadata, m)
}

func (s *slowPath) device(raw json.RawMessage, m *Message) bad {
	if isNull(raw) {
		if m.Device == "" {
			return badNoDevice
		}
		return ""
	}
	id := ""
	if isString(raw) {
		id = unquote(raw)
	}
	switch {
	case !ValidDeviceID(id):
		return badDevice
	case m.Device != "" && m.Device != id:
		return badOther
	}
	m.Device = id
	return ""
}

func (s *slowPath) time(raw json.RawMessage, m *Message) bad {
	ok := false
	switch {
	case isNull(raw):
		m.Time, m.NoTime, ok = m.Received, true, true
	case isString(raw):
		m.Time, ok = parseTime([]byte(unquote(raw)))
	case isNumber(raw):
		m.Time, ok = parseEpoch(raw)
	}
	if !ok {
		return badTime
	}
	return ""
}

// leaf is a value under sensors or metadata with its flattened name.
type leaf = member

// flatten appends the leaves of an object; an object more than NestingMax names
// deep is a leaf of its own.
func flatten(leaves []leaf, prefix string, object []byte, depth int) ([]leaf, bad) {
	for _, m := range members(object) {
		if m.key == "" {
			return leaves, bad("empty name under " + quoteName(prefix))
		}
		name := prefix + m.key
		if len(name) > NameBytesMax {
			return leaves, bad("name " + quoteName(name) + " is over 128 bytes")
		}
		if !validName([]byte(name)) {
			return leaves, bad("name " + quoteName(name) + " holds control characters")
		}
		if isObject(m.value) && depth < NestingMax {
			var reason bad
			if leaves, reason = flatten(leaves, name+".", m.value, depth+1); reason != "" {
				return leaves, reason
			}
			continue
		}
		leaves = append(leaves, leaf{key: name, value: m.value})
	}
	return leaves, ""
}

func (s *slowPath) sensors(raw json.RawMessage, m *Message) bad {
	if isNull(raw) {
		return ""
	}
	if !isObject(raw) {
		return badSensors
	}
	leaves, reason := flatten(nil, "", raw, 1)
	if reason != "" {
		return "sensors: " + reason
	}
	leaves = lastOfEach(leaves)
	if len(leaves) > SensorsMax {
		return badMany
	}
	for _, l := range leaves {
		if reason := s.sensor(l, m); reason != "" {
			return "sensor " + bad(quoteName(l.key)) + ": " + reason
		}
	}
	return ""
}

func (s *slowPath) sensor(l leaf, m *Message) bad {
	switch raw := l.value; {
	case isNull(raw):
		m.Nulls++
	case raw[0] == 't':
		m.Readings = append(m.Readings, Reading{l.key, Value{Kind: KindBool, Mantissa: 1}})
	case raw[0] == 'f':
		m.Readings = append(m.Readings, Reading{l.key, Value{Kind: KindBool}})
	case isNumber(raw):
		v, ok := parseNumber(raw)
		if !ok {
			return "number is out of range"
		}
		m.Readings = append(m.Readings, Reading{l.key, v})
	case isString(raw):
		text := unquote(raw)
		if isNaN(text) {
			m.Nulls++
			return ""
		}
		if strings.IndexByte(text, 0) >= 0 {
			return "text holds U+0000"
		}
		m.Attributes = append(m.Attributes, Attribute{l.key, text})
	case isArray(raw):
		return "arrays are not readings"
	default:
		return "nested more than 4 deep"
	}
	return ""
}

// isNaN says whether a string is the spelling of a number that JSON has no
// number for; it counts as null.
func isNaN(text string) bool {
	return text == "NaN" || text == "Infinity" || text == "-Infinity"
}

// metadata appends the attributes, behind the strings among the sensors, over
// which they win, and sorts all of them.
func (s *slowPath) metadata(raw json.RawMessage, m *Message) bad {
	var leaves []leaf
	if !isNull(raw) {
		if !isObject(raw) {
			return badMetadata
		}
		var reason bad
		if leaves, reason = flatten(nil, "", raw, 1); reason != "" {
			return "metadata: " + reason
		}
	}
	if leaves = lastOfEach(leaves); len(leaves) > AttributesMax {
		return badManyAttrs
	}
	for _, l := range leaves {
		text := spelling(l.value)
		if strings.IndexByte(text, 0) >= 0 {
			return "metadata " + bad(quoteName(l.key)) + ": text holds U+0000"
		}
		m.Attributes = slices.DeleteFunc(m.Attributes, func(a Attribute) bool { return a.Key == l.key })
		m.Attributes = append(m.Attributes, Attribute{l.key, text})
	}
	size := 0
	for _, a := range m.Attributes {
		size += len(a.Key) + len(a.Value)
	}
	switch {
	case len(m.Attributes) > AttributesMax:
		return badManyAttrs
	case size > AttributeBytesMax:
		return badLongAttrs
	}
	slices.SortFunc(m.Attributes, func(a, b Attribute) int { return strings.Compare(a.Key, b.Key) })
	return ""
}

// spelling is a metadata value as text: strings without quotes and escapes,
// everything else as it was written, without white space.
func spelling(raw json.RawMessage) string {
	switch {
	case isString(raw):
		return unquote(raw)
	case isArray(raw) || isObject(raw):
		var b bytes.Buffer
		if json.Compact(&b, raw) != nil {
			return string(raw)
		}
		return b.String()
	}
	return string(raw)
}
