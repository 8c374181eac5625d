package telemetry

import (
	"bytes"
	"errors"
	"fmt"
)

// Limits of one payload. What is over one of the first five is quarantined with
// a reason; over one of the last two Parse returns an error.
const (
	SensorsMax        = 1024      // values under sensors in one object, after flattening
	NameBytesMax      = 128       // of a sensor name or attribute key, after flattening
	NestingMax        = 4         // names that are joined by '.' when objects are flattened
	AttributesMax     = 256       // attributes of one object
	AttributeBytesMax = 16 << 10  // keys and values of one object's attributes together; they are kept per device
	PayloadBytesMax   = 4 << 20   // of one payload; far above any sensible MQTT limit, keeps a raft entry transportable
	MessagesMax       = 16 * 1024 // objects in one array: bounds what two-byte elements can make of a payload
)

// Errors of Parse: the payload must be refused, there is nothing to quarantine.
var (
	ErrPayloadTooLarge = fmt.Errorf("payload is over %d bytes: send it in parts", PayloadBytesMax)
	ErrTooManyMessages = fmt.Errorf("array holds more than %d objects: send it in parts", MessagesMax)
	ErrDeviceID        = errors.New("device id does not match [A-Za-z0-9][A-Za-z0-9._:@=~-]{0,127}")
)

// Scanner turns payloads into messages. The zero value is not usable, see
// NewScanner. It may be used for any number of payloads of any devices, by one
// goroutine at a time; it keeps bounded caches of strings (about 1 MiB at most)
// and no part of a payload.
type Scanner struct {
	fast fastPath
	slow slowPath
}

// NewScanner returns a Scanner with empty caches.
func NewScanner() *Scanner {
	return &Scanner{fast: newFastPath()}
}

// Parse appends the messages of one payload to dst and returns it. The payload
// is one JSON object or an array of objects:
//
//	{"device_id": text, "timestamp": text or number, "sensors": {...}, "metadata": {...}}
//
// device is the device of the topic; "" on a gateway's topic and over HTTP, where
// each object must carry its own device_id. received is when the payload was
// read, in microseconds since the epoch.
//
// An object that is not acceptable becomes a message in quarantine: Reason,
// Device, Received and Payload (a copy of its bytes) are set, and the others go
// on. Its Device is the topic's, else its own valid device_id, else "": then it
// has no home by device and the caller places it by topic. A payload that is
// not JSON as a whole, or an empty array, gives one message in quarantine, so
// that without an error at least one message is appended. Topic, Retry and Dup
// are left zero; they are known to the caller only.
//
// The elements of dst between its length and capacity are overwritten, and
// their Readings and Attributes reused: with dst = msgs[:0] Parse allocates
// nothing once its caches know the strings. The result shares no memory with
// payload. An error (ErrPayloadTooLarge, ErrTooManyMessages, ErrDeviceID) means
// that nothing was appended.
func (s *Scanner) Parse(device string, payload []byte, received int64, dst []Message) ([]Message, error) {
	if len(payload) > PayloadBytesMax {
		return dst, ErrPayloadTooLarge
	}
	if device != "" && !ValidDeviceID(device) {
		return dst, ErrDeviceID
	}
	from := len(dst)
	out, ok := s.fast.payload(device, payload, received, dst, &s.slow)
	if ok {
		return out, nil
	}
	out, err := s.slow.payload(device, payload, received, out[:from])
	if err != nil {
		return out[:from], err
	}
	return out, nil
}

// next extends dst by one cleared message that keeps the slices of the spare
// element it takes over.
func next(dst []Message, device string, received int64) []Message {
	n := len(dst)
	if n == cap(dst) {
		dst = append(dst, Message{})
	} else {
		dst = dst[:n+1]
	}
	m := &dst[n]
	*m = Message{Device: device, Received: received, Readings: m.Readings[:0], Attributes: m.Attributes[:0]}
	return dst
}

// quarantine turns the last message of dst into one with a reason.
func quarantine(m *Message, device string, received int64, payload []byte, reason string) {
	*m = Message{Device: device, Received: received, Readings: m.Readings[:0], Attributes: m.Attributes[:0], Reason: reason, Payload: bytes.Clone(payload)}
}
