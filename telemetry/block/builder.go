package block

import (
	"github.com/klauspost/compress/zstd"

	"github.com/sluice-iot/sluice/telemetry"
)

// Flags of a message in the format.
const (
	flagNoTime      = 1 << 0 // Message.NoTime
	flagRetry       = 1 << 1 // Message.Retry
	flagDup         = 1 << 2 // a Dup key is stored
	flagNulls       = 1 << 3 // Nulls is stored
	flagQuarantined = 1 << 4 // reason, topic and payload are stored
	flagTime        = 1 << 5 // Time is stored; else it is Received, or 0 in quarantine
	messageFlags    = 1<<6 - 1
)

// Builder collects the messages of one block, column by column.
type Builder struct {
	devices dict
	device  []int64 // per message, as all slices up to received
	flags   []int64
	receive []int64
	time    []int64 // per message with flagTime
	nulls   []int64 // per message with flagNulls
	dups    []byte  // 16 per message with flagDup

	readings   series
	attributes series
	values     dict // texts of attributes that are not numbers
	recent     [recentTexts]recentText

	notes   dict    // reasons and topics
	note    []int64 // reason and topic per quarantined message
	lengths []int64 // payload bytes per quarantined message
	payload []byte

	size    int
	scratch scratch
	encoder *zstd.Encoder
}

const recentTexts = 16

// NewBuilder returns an empty Builder.
func NewBuilder() *Builder {
	return &Builder{devices: newDict(), readings: newSeries(), attributes: newSeries(), values: newDict(), notes: newDict()}
}

// Len is the number of messages added since the last Reset.
func (b *Builder) Len() int { return len(b.device) }

// Size estimates from above the bytes that Append would write without
// compressing anything. It costs nothing.
func (b *Builder) Size() int { return b.size }

// Costs in Size: a message's own columns and a dictionary entry's bookkeeping.
const (
	messageBytes = 24
	valueBytes   = 9
	nameBytes    = 8
)

// Add puts a message behind the others and returns its position in the block.
// It copies what it keeps. A value of a kind that is only reserved is stored as
// null; no Scanner produces one.
func (b *Builder) Add(m *telemetry.Message) int {
	position := len(b.device)
	known := b.devices.len()
	id := b.devices.id(m.Device)
	if b.devices.len() > known {
		b.size += len(m.Device) + nameBytes
	}
	b.device = append(b.device, int64(id))
	b.receive = append(b.receive, m.Received)
	b.size += messageBytes

	flags := 0
	if m.NoTime {
		flags |= flagNoTime
	}
	if m.Retry {
		flags |= flagRetry
	}
	if m.Dup != (telemetry.DupKey{}) {
		flags |= flagDup
		b.dups = append(b.dups, m.Dup[:]...)
		b.size += len(m.Dup)
	}
	if m.Nulls != 0 {
		flags |= flagNulls
		b.nulls = append(b.nulls, int64(m.Nulls))
	}
	implied := m.Received
	if m.Reason != "" {
		flags |= flagQuarantined
		implied = 0
		b.quarantine(m)
	}
	if !(m.Time == implied && (m.NoTime || m.Reason != "")) {
		flags |= flagTime
		b.time = append(b.time, m.Time)
	}
	b.flags = append(b.flags, int64(flags))
	b.addReadings(m.Readings)
	b.addAttributes(m.Attributes)
	return position
}

func (b *Builder) quarantine(m *telemetry.Message) {
	before := len(b.notes.text)
	b.note = append(b.note, int64(b.notes.id(m.Reason)), int64(b.notes.id(m.Topic)))
	b.lengths = append(b.lengths, int64(len(m.Payload)))
	b.payload = append(b.payload, m.Payload...)
	b.size += len(b.notes.text) - before + 2*nameBytes + len(m.Payload)
}

func (b *Builder) addReadings(readings []telemetry.Reading) {
	s := &b.readings
	s.begin()
	for i := b.addExpected(readings); i < len(readings); i++ {
		r := &readings[i]
		kind := columnKind(&r.Value)
		s.column(r.Sensor, kind).put(kind, &r.Value)
	}
	b.size += s.end() + valueBytes*len(readings)
}

// addExpected adds readings as long as they are those of the message before, by
// name and kind, and returns how many.
func (b *Builder) addExpected(readings []telemetry.Reading) int {
	s := &b.readings
	n := min(len(readings), len(s.guess))
	guess := s.guess[:n]
	for i, g := range guess {
		r, c := &readings[i], &s.columns[g]
		kind := columnKind(&r.Value)
		first, last := words(r.Sensor)
		if !c.is(r.Sensor, first, last, kind) {
			s.at = i
			return i
		}
		c.put(kind, &r.Value)
	}
	s.at = n
	return n
}

// columnKind is the type of column that a value goes to: integers and decimals
// share one, because devices drop trailing zeros.
func columnKind(v *telemetry.Value) kind {
	switch v.Kind {
	case telemetry.KindBool:
		return kindBool
	case telemetry.KindInt64:
		return kindDecimal
	case telemetry.KindDecimal:
		if v.Scale <= 18 {
			return kindDecimal
		}
	case telemetry.KindFloat64:
		return kindFloat
	}
	return kindNull
}

func (b *Builder) addAttributes(attributes []telemetry.Attribute) {
	s := &b.attributes
	s.begin()
	before := len(b.values.text)
	for i := range attributes {
		a := &attributes[i]
		if b.addExpectedAttribute(a) {
			continue
		}
		if mantissa, scale, ok := parseDecimal(a.Value); ok {
			s.column(a.Key, kindDecimal).decimal(mantissa, scale)
			continue
		}
		c := s.column(a.Key, kindText)
		c.mantissas = append(c.mantissas, int64(b.values.id(a.Value)))
	}
	b.size += s.end() + len(b.values.text) - before + valueBytes*len(attributes)
}

// addExpectedAttribute adds an attribute that has the name and kind of the
// message before at this place, and a text only if it is known.
func (b *Builder) addExpectedAttribute(a *telemetry.Attribute) bool {
	s := &b.attributes
	if s.at >= len(s.guess) {
		return false
	}
	c := &s.columns[s.guess[s.at]]
	first, last := words(a.Key)
	if !c.is(a.Key, first, last, c.kind) {
		return false
	}
	if c.kind == kindDecimal {
		mantissa, scale, ok := parseDecimal(a.Value)
		if !ok {
			return false
		}
		s.take()
		c.decimal(mantissa, scale)
		return true
	}
	// A text that is in the dictionary is not spelled like a decimal.
	id, ok := b.knownText(a.Value)
	if !ok {
		return false
	}
	s.take()
	c.mantissas = append(c.mantissas, int64(id))
	return true
}

// recentText is a text in values.
type recentText struct {
	first, last uint64
	size        int // + 1; 0 is none
	id          uint32
}

// knownText finds a text in values: first among the recent ones, of which there
// is one per last character, because firmware versions and states are few and
// differ there.
func (b *Builder) knownText(text string) (id uint32, ok bool) {
	n := len(text)
	if n == 0 || n > wordsMax {
		return b.values.find(text)
	}
	first, last := words(text)
	r := &b.recent[text[n-1]%recentTexts]
	if r.first == first && r.last == last && r.size == n+1 {
		return r.id, true
	}
	if id, ok = b.values.find(text); ok {
		*r = recentText{first, last, n + 1, id}
	}
	return id, ok
}

// Reset empties the Builder and keeps its memory.
func (b *Builder) Reset() {
	b.devices.reset()
	b.device, b.flags, b.receive = b.device[:0], b.flags[:0], b.receive[:0]
	b.time, b.nulls, b.dups = b.time[:0], b.nulls[:0], b.dups[:0]
	b.readings.reset()
	b.attributes.reset()
	b.values.reset()
	clear(b.recent[:])
	b.notes.reset()
	b.note, b.lengths = b.note[:0], b.lengths[:0]
	if cap(b.payload) > dictTextKept {
		b.payload = nil
	}
	b.payload = b.payload[:0]
	if cap(b.scratch.text) > dictTextKept {
		b.scratch = scratch{}
	}
	b.size = 0
}
