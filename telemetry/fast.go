package telemetry

import "strings"

// fastPath reads payloads of the common form in one pass: no key twice, no array
// of interest, no bare NaN. Whatever else comes makes it step back and leave the
// object to slowPath, so it never has to say why something is wrong; it must
// only be right when it accepts.
//
// Devices of one model write the same keys in the same order, so it expects the
// keys of the object before, and compares key, quotes and colon at once.
type fastPath struct {
	names   intern // flattened
	tokens  intern // of keys as they are written
	texts   intern
	devices intern
	escapes []escapedText

	sensors  []expectedKey
	metadata []expectedKey
	seen     int    // keys of the list at hand
	stamp    uint64 // of the list at hand, see distinct
	stamped  int    // how many of its names have it
	name     []byte // scratch for flattened names

	minute     [minuteBytes]byte // date, hour and minute of the last timestamp
	minuteTime int64             // what parseMinute gave for it
}

func newFastPath() fastPath {
	f := fastPath{names: newIntern(internNames), tokens: newIntern(internNames), texts: newIntern(internTexts)}
	copy(f.minute[:], "1970-01-01T00:00:") // is minuteTime 0
	return f
}

// payload appends the messages of a payload or reports false: then the whole of
// it is left to the slow path. In an array it hands single elements to it.
func (f *fastPath) payload(device string, p []byte, received int64, dst []Message, slow *slowPath) ([]Message, bool) {
	i := space(p, 0)
	if i == len(p) || p[i] != '[' {
		dst = next(dst, device, received)
		i, ok := f.object(p, i, &dst[len(dst)-1])
		return dst, ok && space(p, i) == len(p)
	}
	for n := 0; n < MessagesMax; n++ {
		i = space(p, i+1) // behind the bracket or comma
		dst = next(dst, device, received)
		end, ok := f.object(p, i, &dst[len(dst)-1])
		if !ok {
			// Only syntax decides what the array as a whole is; if this element
			// can be stepped over, its content concerns nobody else.
			if end, ok = skip(p, i, 0); !ok {
				return dst, false
			}
			dst = slow.element(device, p[i:end], received, dst[:len(dst)-1])
		}
		if i = space(p, end); i == len(p) {
			return dst, false
		}
		if p[i] == ']' {
			return dst, space(p, i+1) == len(p)
		}
		if p[i] != ',' {
			return dst, false
		}
	}
	return dst, false
}

// Top-level keys seen in an object.
const (
	sawDevice = 1 << iota
	sawTime
	sawSensors
	sawMetadata
)

func (f *fastPath) object(p []byte, i int, m *Message) (int, bool) {
	if i >= len(p) || p[i] != '{' {
		return 0, false
	}
	saw := 0
	for {
		i = space(p, i+1) // behind the brace or comma
		if i >= len(p) || p[i] != '"' {
			return 0, false // the empty object too
		}
		var bit int
		var ok bool
		if bit, i, ok = topKey(p, i); !ok {
			return 0, false
		}
		switch bit {
		case sawDevice:
			i, ok = f.device(p, i, m)
		case sawTime:
			i, ok = f.time(p, i, m)
		case sawSensors:
			i, ok = f.list(p, i, m, &f.sensors)
		case sawMetadata:
			i, ok = f.list(p, i, m, &f.metadata)
		default:
			i, ok = skip(p, i, 0)
		}
		if !ok || saw&bit != 0 {
			return 0, false
		}
		saw |= bit
		if i < len(p) && p[i] <= ' ' {
			i = space(p, i)
		}
		if i >= len(p) || p[i] != ',' {
			break
		}
	}
	if i >= len(p) || p[i] != '}' || saw&(sawSensors|sawMetadata) == 0 || m.Device == "" {
		return 0, false
	}
	if saw&sawTime == 0 {
		m.Time, m.NoTime = m.Received, true
	}
	return i + 1, sortAttributes(m)
}

// topKey reads a top-level key with its colon and says which it is, 0 for any
// other. The common spelling is compared as a few machine words.
func topKey(p []byte, i int) (saw, next int, ok bool) {
	const device, timestamp, sensors, metadata = `"device_id":`, `"timestamp":`, `"sensors":`, `"metadata":`
	if i+len(device) < len(p) {
		switch {
		case string(p[i:i+len(device)]) == device:
			saw, next = sawDevice, i+len(device)
		case string(p[i:i+len(timestamp)]) == timestamp:
			saw, next = sawTime, i+len(timestamp)
		case string(p[i:i+len(sensors)]) == sensors:
			saw, next = sawSensors, i+len(sensors)
		case string(p[i:i+len(metadata)]) == metadata:
			saw, next = sawMetadata, i+len(metadata)
		}
		if saw != 0 && p[next] > ' ' {
			return saw, next, true
		}
	}
	from := i + 1
	end, ok := text(p, from)
	if !ok {
		return 0, 0, false
	}
	switch string(p[from:end]) {
	case "device_id":
		saw = sawDevice
	case "timestamp":
		saw = sawTime
	case "sensors":
		saw = sawSensors
	case "metadata":
		saw = sawMetadata
	}
	next, ok = colon(p, end+1)
	return saw, next, ok
}

// device accepts the device of the topic, or any valid one where there is none.
func (f *fastPath) device(p []byte, i int, m *Message) (int, bool) {
	if p[i] != '"' {
		return 0, false
	}
	i++
	if n := len(m.Device); n > 0 {
		// The grammar of ids leaves nothing to escape.
		return i + n + 1, i+n < len(p) && string(p[i:i+n]) == m.Device && p[i+n] == '"'
	}
	end, ok := text(p, i)
	if !ok {
		return 0, false
	}
	if f.devices.slots == nil {
		f.devices = newIntern(internDevices)
	}
	m.Device = f.devices.string(p[i:end])
	return end + 1, ValidDeviceID(m.Device)
}

func (f *fastPath) time(p []byte, i int, m *Message) (int, bool) {
	if p[i] != '"' {
		end, ok := number(p, i)
		if !ok {
			return 0, false
		}
		m.Time, ok = parseEpoch(p[i:end])
		return end, ok
	}
	i++
	if len(p) < i+minuteBytes {
		return 0, false
	}
	if [minuteBytes]byte(p[i:]) != f.minute {
		minute, ok := parseMinute(p[i:])
		if !ok {
			return 0, false
		}
		f.minute = [minuteBytes]byte(p[i:])
		f.minuteTime = minute
	}
	i += minuteBytes
	end := i
	for end < len(p) && p[end] != '"' {
		end++
	}
	t, ok := parseSeconds(f.minuteTime, p[i:end])
	m.Time = t
	return end + 1, ok && end < len(p)
}

// list reads the object under sensors or metadata, flattening what is nested.
func (f *fastPath) list(p []byte, i int, m *Message, keys *[]expectedKey) (int, bool) {
	f.stamp, f.stamped, f.seen = f.stamp+1, 0, 0
	return f.members(p, i, m, keys, -1, 1)
}

// members reads one object of a list; parent is the position of its key.
func (f *fastPath) members(p []byte, i int, m *Message, keys *[]expectedKey, parent, depth int) (int, bool) {
	i, empty, ok := open(p, i)
	if empty || !ok {
		return i, ok
	}
	for f.seen < SensorsMax {
		n := f.seen
		f.seen++
		if n < len(*keys) && (*keys)[n].parent == parent && hasToken(p, i, (*keys)[n].token) {
			if i += len((*keys)[n].token); p[i] <= ' ' {
				i = space(p, i)
			}
		} else if i, ok = f.strayKey(keys, n, parent, p, i); !ok {
			return 0, false
		}
		if i >= len(p) {
			return 0, false
		}
		key := &(*keys)[n]
		switch c := p[i]; {
		case c == '{':
			if depth == NestingMax {
				return 0, false
			}
			i, ok = f.members(p, i, m, keys, n, depth+1)
		case keys == &f.metadata:
			i, ok = f.attribute(p, i, key, m)
		case c == '-' || c-'0' <= 9:
			var v Value
			if v, i, ok = value(p, i); ok {
				m.Readings = append(m.Readings, Reading{key.name, v})
			}
		default:
			i, ok = f.sensor(p, i, key, m)
		}
		if !ok {
			return 0, false
		}
		var done bool
		if i, done, ok = more(p, i); done || !ok {
			return i, ok
		}
	}
	return 0, false
}

// sensor reads a value under sensors that is not a number.
func (f *fastPath) sensor(p []byte, i int, key *expectedKey, m *Message) (int, bool) {
	switch p[i] {
	case '"':
		end, ok := f.text(p, i, key, m)
		if last := len(m.Attributes) - 1; ok && isNaN(m.Attributes[last].Value) {
			m.Attributes = m.Attributes[:last]
			m.Nulls++
		}
		return end, ok
	case 't':
		m.Readings = append(m.Readings, Reading{key.name, Value{Kind: KindBool, Mantissa: 1}})
		return word(p, i, "true")
	case 'f':
		m.Readings = append(m.Readings, Reading{key.name, Value{Kind: KindBool}})
		return word(p, i, "false")
	case 'n':
		m.Nulls++
		return word(p, i, "null")
	}
	return 0, false
}

// attribute reads a value under metadata.
func (f *fastPath) attribute(p []byte, i int, key *expectedKey, m *Message) (int, bool) {
	var end int
	var ok bool
	switch p[i] {
	case '"':
		return f.text(p, i, key, m)
	case 't':
		end, ok = word(p, i, "true")
	case 'f':
		end, ok = word(p, i, "false")
	case 'n':
		end, ok = word(p, i, "null")
	default:
		end, ok = number(p, i)
	}
	if ok {
		f.keep(p[i:end], key, m)
	}
	return end, ok
}

// text reads a string that becomes an attribute.
func (f *fastPath) text(p []byte, i int, key *expectedKey, m *Message) (int, bool) {
	if end, ok := text(p, i+1); ok {
		f.keep(p[i+1:end], key, m)
		return end + 1, true
	}
	text, end, ok := f.escaped(p, i)
	if !ok || strings.IndexByte(text, 0) >= 0 {
		return 0, false
	}
	m.Attributes = append(m.Attributes, Attribute{key.name, text})
	return end + 1, true
}

// keep appends an attribute, whose text is often that of the object before.
func (f *fastPath) keep(text []byte, key *expectedKey, m *Message) {
	value := key.value
	if value != string(text) {
		value = f.texts.string(text)
		if len(value) <= internBytesMax {
			key.value = value
		}
	}
	m.Attributes = append(m.Attributes, Attribute{key.name, value})
}
