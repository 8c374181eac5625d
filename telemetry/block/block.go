package block

import (
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/sluice-iot/sluice/telemetry"
)

// Block is a decoded block. The zero value is ready for Decode. All strings and
// byte slices in it, except Origin, point into memory that the next Decode
// overwrites: use Clone or strings.Clone for what must live longer.
type Block struct {
	Header
	Devices    []string // distinct
	Sensors    []string // distinct; a few may have no reading
	Keys       []string // of attributes, distinct
	Values     []string // of attributes, not necessarily distinct
	Messages   []Entry
	Readings   []Reading
	Attributes []Attribute
	Quarantine []Quarantined

	text    []byte // what all strings point into
	format  []byte // and those that are made from numbers
	decoder *zstd.Decoder
	series  seriesDecoder

	// Scratch of Decode; the first three are per message.
	device, flags, receive []int64
	ints, more             []int64
	notes                  []string
}

// Entry is one message; its position in Messages is what Builder.Add returned.
type Entry struct {
	Time, Received int64            // microseconds since the epoch
	Readings       Range            // of Block.Readings, in the order of the message
	Attributes     Range            // of Block.Attributes
	Device         uint32           // in Devices
	Nulls          uint32           // values that gave no reading
	Quarantined    int32            // in Block.Quarantine, or -1
	NoTime, Retry  bool             // as in telemetry.Message
	Dup            telemetry.DupKey // zero if there is none
}

// Range is the half-open interval [From, To) of a slice.
type Range struct{ From, To uint32 }

// Reading is one value of one sensor.
type Reading struct {
	Value  telemetry.Value
	Sensor uint32 // in Sensors
}

// Attribute is one attribute of a message's device.
type Attribute struct {
	Key   uint32 // in Keys
	Value uint32 // in Values
}

// Quarantined is what a message in quarantine has instead of readings.
type Quarantined struct {
	Reason, Topic string
	Payload       []byte
}

// ReadingsOf returns the readings of an entry.
func (b *Block) ReadingsOf(e *Entry) []Reading { return b.Readings[e.Readings.From:e.Readings.To] }

// AttributesOf returns the attributes of an entry.
func (b *Block) AttributesOf(e *Entry) []Attribute {
	return b.Attributes[e.Attributes.From:e.Attributes.To]
}

// Message fills m with message i as it was given to Builder.Add, reusing the
// slices of m. Its strings and its payload live as long as the Block's.
func (b *Block) Message(i int, m *telemetry.Message) {
	e := &b.Messages[i]
	*m = telemetry.Message{
		Device: b.Devices[e.Device], Time: e.Time, Received: e.Received, Nulls: e.Nulls,
		NoTime: e.NoTime, Retry: e.Retry, Dup: e.Dup, Readings: m.Readings[:0], Attributes: m.Attributes[:0],
	}
	for _, r := range b.ReadingsOf(e) {
		m.Readings = append(m.Readings, telemetry.Reading{Sensor: b.Sensors[r.Sensor], Value: r.Value})
	}
	for _, a := range b.AttributesOf(e) {
		m.Attributes = append(m.Attributes, telemetry.Attribute{Key: b.Keys[a.Key], Value: b.Values[a.Value]})
	}
	if e.Quarantined >= 0 {
		q := &b.Quarantine[e.Quarantined]
		m.Reason, m.Topic, m.Payload = q.Reason, q.Topic, q.Payload
	}
}

// Clone returns a copy that shares no memory with b.
func (b *Block) Clone() *Block {
	c := &Block{
		Header: b.Header, Devices: cloneStrings(b.Devices), Sensors: cloneStrings(b.Sensors),
		Keys: cloneStrings(b.Keys), Values: cloneStrings(b.Values), Messages: slices.Clone(b.Messages),
		Readings: slices.Clone(b.Readings), Attributes: slices.Clone(b.Attributes),
	}
	for _, q := range b.Quarantine {
		c.Quarantine = append(c.Quarantine, Quarantined{strings.Clone(q.Reason), strings.Clone(q.Topic), slices.Clone(q.Payload)})
	}
	return c
}

func cloneStrings(list []string) []string {
	c := make([]string, len(list))
	for i, s := range list {
		c[i] = strings.Clone(s)
	}
	return c
}
