package block

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// Columns of the format. Reserved ones are not written yet; Decode skips every
// id that it does not know.
const (
	columnText       = 1
	columnDevices    = 2
	columnMessages   = 3
	columnReadings   = 4
	columnAttributes = 5
	columnExtras     = 6
	columnQuarantine = 7
	columnTemplate   = 8 // reserved: template and rest from which a payload is rebuilt, or the payload
	columnProperties = 9 // reserved: MQTT properties that a subscriber is owed
)

// Ways to write the decimals of a column.
const (
	scaleFixed     = 0 // one scale for all
	scaleShortest  = 1 // mantissas at one scale; each was written without trailing zeros
	scaleShortest1 = 2 // the same, but with one decimal at least ("21.0")
	scaleEach      = 3 // scales in a column of their own
)

// Units of device times, by their number in the format, in microseconds.
var timeUnits = [...]int64{1, 1_000, 1_000_000}

// scratch is memory for Append alone.
type scratch struct {
	ints     []int64
	more     []int64
	column   []byte
	text     []byte
	prefixes dict
	numbers  []int64
	classes  []int64
	key      []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append encodes the block and appends it to dst; the Builder is not changed.
// The bytes depend on h and the messages added, on nothing else. It fails with
// ErrTooLarge if a limit is exceeded.
func (b *Builder) Append(dst []byte, h Header) ([]byte, error) {
	if err := b.check(&h); err != nil {
		return dst, err
	}
	from := len(dst)
	h.Messages = uint32(b.Len())
	dst = h.append(dst)
	s := &b.scratch
	numbered := b.splitDevices()
	if err := b.gatherText(numbered); err != nil {
		return dst[:from], err
	}
	var err error
	if s.column, err = appendText(s.column[:0], s.text, &b.encoder); err != nil {
		return dst[:from], err
	}
	dst = appendColumn(dst, columnText, s.column)
	s.column = b.devicesColumn(s.column[:0], numbered)
	dst = appendColumn(dst, columnDevices, s.column)
	s.column = b.messagesColumn(s.column[:0])
	dst = appendColumn(dst, columnMessages, s.column)
	if b.readings.total > 0 {
		s.column = b.seriesColumn(s.column[:0], &b.readings, nil)
		dst = appendColumn(dst, columnReadings, s.column)
	}
	if b.attributes.total > 0 {
		s.column = b.seriesColumn(s.column[:0], &b.attributes, &b.values)
		dst = appendColumn(dst, columnAttributes, s.column)
	}
	if len(b.nulls)+len(b.dups) > 0 {
		s.column = append(b.ints(s.column[:0], b.nulls), b.dups...)
		dst = appendColumn(dst, columnExtras, s.column)
	}
	if len(b.lengths) > 0 {
		s.column = b.quarantineColumn(s.column[:0])
		dst = appendColumn(dst, columnQuarantine, s.column)
	}
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[from:], castagnoli)), nil
}

func (b *Builder) check(h *Header) error {
	switch {
	case len(h.Origin) > OriginBytesMax:
		return fmt.Errorf("%w: origin has %d bytes, at most %d", ErrTooLarge, len(h.Origin), OriginBytesMax)
	case b.Len() > MessagesMax:
		return fmt.Errorf("%w: %d messages, at most %d", ErrTooLarge, b.Len(), MessagesMax)
	case b.readings.total > ReadingsMax:
		return fmt.Errorf("%w: %d readings, at most %d", ErrTooLarge, b.readings.total, ReadingsMax)
	case b.attributes.total > AttributesMax:
		return fmt.Errorf("%w: %d attributes, at most %d", ErrTooLarge, b.attributes.total, AttributesMax)
	}
	return nil
}

func appendColumn(dst []byte, id byte, body []byte) []byte {
	dst = append(dst, id)
	dst = binary.AppendUvarint(dst, uint64(len(body)))
	return append(dst, body...)
}

func (b *Builder) ints(dst []byte, values []int64) []byte {
	return appendInts(dst, values, &b.scratch.more)
}

// gatherText joins all texts in the order in which Decode takes them out again.
func (b *Builder) gatherText(numbered bool) error {
	s := &b.scratch
	t := s.text[:0]
	if numbered {
		for i := range s.prefixes.len() {
			p := s.prefixes.at(uint32(i))
			t = append(t, p[:len(p)-1]...)
		}
	} else {
		t = append(t, b.devices.text...)
	}
	t = append(t, b.readings.names.text...)
	t = append(t, b.attributes.names.text...)
	t = append(t, b.values.text...)
	t = append(t, b.notes.text...)
	t = append(t, b.payload...)
	s.text = t
	if len(t) > TextBytesMax {
		return fmt.Errorf("%w: %d bytes of text, at most %d", ErrTooLarge, len(t), TextBytesMax)
	}
	return nil
}

// messagesColumn writes flags, receive times, and device times as lag behind the
// receive time in the largest unit of which all device times are multiples.
func (b *Builder) messagesColumn(dst []byte) []byte {
	dst = b.ints(dst, b.flags)
	dst = b.ints(dst, b.receive)
	unit := len(timeUnits) - 1
	for _, t := range b.time {
		for t%timeUnits[unit] != 0 {
			unit--
		}
		if unit == 0 {
			break
		}
	}
	dst = append(dst, byte(unit))
	lags, at, micros := b.scratch.ints[:0], 0, timeUnits[unit]
	for i, f := range b.flags {
		if f&flagTime == 0 {
			continue
		}
		if micros == 1 {
			lags = append(lags, b.receive[i]-b.time[at])
		} else {
			lags = append(lags, b.receive[i]/micros-b.time[at]/micros)
		}
		at++
	}
	b.scratch.ints = lags
	return b.ints(dst, lags)
}

// seriesColumn writes names, columns, shapes and values; texts is the dictionary
// of text columns.
func (b *Builder) seriesColumn(dst []byte, s *series, texts *dict) []byte {
	x := &b.scratch
	dst = appendLengths(dst, &s.names, x)
	if texts != nil {
		dst = appendLengths(dst, texts, x)
	}
	dst = binary.AppendUvarint(dst, uint64(len(s.columns)))
	x.ints = x.ints[:0]
	for i := range s.columns {
		dst = append(dst, byte(s.columns[i].kind))
		x.ints = append(x.ints, int64(s.columns[i].nameID))
	}
	dst = b.ints(dst, x.ints)

	dst = binary.AppendUvarint(dst, uint64(s.shapes.len()))
	x.ints = s.shapes.lengths(x.ints[:0])
	for i := range x.ints {
		x.ints[i] /= 4
	}
	dst = b.ints(dst, x.ints)
	x.ints = x.ints[:0]
	for t := s.shapes.text; len(t) > 0; t = t[4:] {
		x.ints = append(x.ints, int64(binary.LittleEndian.Uint32(t)))
	}
	dst = b.ints(dst, x.ints)
	dst = b.ints(dst, s.shape)
	for i := range s.columns {
		dst = b.valueColumn(dst, &s.columns[i])
	}
	return dst
}

func appendLengths(dst []byte, d *dict, x *scratch) []byte {
	dst = binary.AppendUvarint(dst, uint64(d.len()))
	x.ints = d.lengths(x.ints[:0])
	return appendInts(dst, x.ints, &x.more)
}

func (b *Builder) valueColumn(dst []byte, c *column) []byte {
	switch c.kind {
	case kindNull:
		return dst
	case kindDecimal:
		return b.decimalColumn(dst, c)
	case kindFloat:
		return b.floatColumn(dst, c)
	}
	return b.ints(dst, c.mantissas)
}

// floatColumn drops the zero bits that all values end with: a float32 printed as
// float64 has 29 of them.
func (b *Builder) floatColumn(dst []byte, c *column) []byte {
	all := uint64(0)
	for _, v := range c.mantissas {
		all |= uint64(v)
	}
	shift := byte(0)
	for all != 0 && all&1 == 0 {
		all >>= 1
		shift++
	}
	x := &b.scratch
	x.ints = x.ints[:0]
	for _, v := range c.mantissas {
		x.ints = append(x.ints, int64(uint64(v)>>shift))
	}
	return b.ints(append(dst, shift), x.ints)
}

func (b *Builder) decimalColumn(dst []byte, c *column) []byte {
	if !c.mixed {
		return b.ints(append(dst, scaleFixed, c.scale), c.mantissas)
	}
	low, high := uint8(math.MaxUint8), uint8(0)
	for _, s := range c.scales {
		low, high = min(low, s), max(high, s)
	}
	x := &b.scratch
	mode, floor := byte(scaleShortest), uint8(0)
	if low >= 1 {
		mode, floor = scaleShortest1, 1
	}
	if rescale(x, c, floor, high) {
		return b.ints(append(dst, mode, high), x.ints)
	}
	x.ints = x.ints[:0]
	for _, s := range c.scales {
		x.ints = append(x.ints, int64(s))
	}
	return b.ints(b.ints(append(dst, scaleEach), x.ints), c.mantissas)
}

var pow10 = [...]int64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18}

// rescale brings all mantissas to one scale, into x.ints. It reports false if a
// value has trailing zeros behind the floor (they would be lost) or a mantissa
// becomes too large.
func rescale(x *scratch, c *column, floor, scale uint8) bool {
	x.ints = x.ints[:0]
	for i, m := range c.mantissas {
		s := c.scales[i]
		if s > floor && m%10 == 0 {
			return false
		}
		p := pow10[scale-s]
		v := m * p
		if p != 1 && v/p != m {
			return false
		}
		x.ints = append(x.ints, v)
	}
	return true
}

func (b *Builder) quarantineColumn(dst []byte) []byte {
	dst = appendLengths(dst, &b.notes, &b.scratch)
	dst = b.ints(dst, b.note)
	return b.ints(dst, b.lengths)
}
