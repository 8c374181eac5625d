package block

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"unsafe"

	"github.com/sluice-iot/sluice/telemetry"
)

// Decode replaces the content of b by that of data, which it does not keep. On
// an error (ErrCorrupt, ErrVersion) the content is undefined.
func (b *Block) Decode(data []byte) error {
	r := reader{p: data}
	h, origin, err := r.header()
	if err != nil {
		return err
	}
	if len(r.p) < 4 {
		return fmt.Errorf("%w: truncated", ErrCorrupt)
	}
	body, sum := data[:len(data)-4], binary.LittleEndian.Uint32(data[len(data)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	if b.Origin != string(origin) {
		b.Origin = string(origin)
	}
	h.Origin = b.Origin
	b.Header = h
	r.p = r.p[:len(r.p)-4]
	var columns [columnQuarantine + 1][]byte
	if !r.directory(&columns) {
		return fmt.Errorf("%w: directory of columns", ErrCorrupt)
	}
	return b.columns(&columns)
}

// directory finds the known columns; ids ascend, so none comes twice.
func (r *reader) directory(columns *[columnQuarantine + 1][]byte) bool {
	last := byte(0)
	for len(r.p) > 0 {
		id := r.byte()
		size := r.uvarint(uint64(len(r.p)))
		body := r.take(int(size))
		if r.bad || id <= last {
			return false
		}
		last = id
		if int(id) < len(columns) {
			columns[id] = body
		}
	}
	return !r.bad
}

func (b *Block) columns(columns *[columnQuarantine + 1][]byte) error {
	n := int(b.Header.Messages)
	var err error
	if b.text, err = readText(columns[columnText], b.text, &b.decoder); err != nil {
		return err
	}
	text := reader{p: b.text}
	b.format = b.format[:0]
	b.Messages = resize(b.Messages, n)
	ok := b.readDevices(columns[columnDevices], &text) &&
		b.readMessages(columns[columnMessages]) &&
		b.readReadings(columns[columnReadings], &text) &&
		b.readAttributes(columns[columnAttributes], &text) &&
		b.readExtras(columns[columnExtras]) &&
		b.readQuarantine(columns[columnQuarantine], &text)
	if !ok || text.bad || len(text.p) > 0 {
		return fmt.Errorf("%w: column", ErrCorrupt)
	}
	return nil
}

// resize returns a slice of n elements with undefined content, reusing s.
func resize[T any](s []T, n int) []T {
	return slices.Grow(s[:0], n)[:n]
}

func (b *Block) intsOf(r *reader, n int) []int64 {
	b.ints = resize(b.ints, n)
	r.ints(b.ints)
	return b.ints
}

// count reads how many of something there are; each needs a thing to refer to it.
func (r *reader) count(limit int) int { return int(r.uvarint(uint64(limit))) }

// takeString cuts a string off the front of the text.
func (r *reader) takeString(n int64) string {
	if n < 0 || n > int64(len(r.p)) {
		r.fail()
		return ""
	}
	return stringOf(r.take(int(n)))
}

func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// strings reads a column of n lengths and takes the texts.
func (b *Block) strings(dst []string, n int, r, text *reader) []string {
	for _, size := range b.intsOf(r, n) {
		dst = append(dst, text.takeString(size))
		if text.bad {
			break
		}
	}
	return dst
}

func (b *Block) readDevices(body []byte, text *reader) bool {
	r := &reader{p: body}
	n := len(b.Messages)
	count := r.count(n)
	b.Devices = b.Devices[:0]
	switch r.byte() {
	case devicesPlain:
		b.Devices = b.strings(b.Devices, count, r, text)
	case devicesNumbered:
		b.numberedDevices(count, r, text)
	default:
		r.fail()
	}
	seen := int64(0)
	b.device = resize(b.device, n)
	r.ints(b.device)
	for i, back := range b.device {
		d := seen - back
		if back < 0 || d < 0 || d >= int64(len(b.Devices)) {
			return false
		}
		if back == 0 {
			seen++
		}
		b.device[i] = d
	}
	return !r.bad && !text.bad && len(r.p) == 0
}

// deviceTextMax bounds the ids that numbered devices are expanded to.
const deviceTextMax = TextBytesMax

func (b *Block) numberedDevices(count int, r, text *reader) {
	prefixes := r.count(count)
	b.notes = b.strings(b.notes[:0], prefixes, r, text)
	b.more = resize(b.more, prefixes+count)
	digits, classes := b.more[:prefixes], b.more[prefixes:]
	r.ints(digits)
	r.ints(classes)
	numbers := b.intsOf(r, count)
	if r.bad || text.bad {
		r.fail()
		return
	}
	total := 0
	for _, c := range classes {
		if c < 0 || c >= int64(prefixes) || digits[c] < 0 || digits[c] > 18 {
			r.fail()
			return
		}
		total += len(b.notes[c]) + int(digits[c])
	}
	if total > deviceTextMax {
		r.fail()
		return
	}
	b.format = slices.Grow(b.format, total)
	for i, c := range classes {
		if numbers[i] < 0 || numbers[i] >= pow10[digits[c]] {
			r.fail()
			return
		}
		from := len(b.format)
		b.format = append(b.format, b.notes[c]...)
		b.format = appendDigits(b.format, numbers[i], int(digits[c]))
		b.Devices = append(b.Devices, stringOf(b.format[from:]))
	}
}

// appendDigits appends number with exactly n digits.
func appendDigits(dst []byte, number int64, n int) []byte {
	from := len(dst)
	dst = append(dst, "000000000000000000"[:n]...)
	for i := from + n - 1; i >= from; i-- {
		dst[i] += byte(number % 10)
		number /= 10
	}
	return dst
}

func (b *Block) readMessages(body []byte) bool {
	r := &reader{p: body}
	n, times := len(b.Messages), 0
	b.flags, b.receive = resize(b.flags, n), resize(b.receive, n)
	r.ints(b.flags)
	r.ints(b.receive)
	for _, f := range b.flags {
		if f&^messageFlags != 0 {
			return false
		}
		times += int(f&flagTime) / flagTime
	}
	unit := int(r.byte())
	if r.bad || unit >= len(timeUnits) {
		return false
	}
	lags, micros := b.intsOf(r, times), timeUnits[unit]
	quarantined := int32(0)
	for i := range b.Messages {
		e, f := &b.Messages[i], b.flags[i]
		*e = Entry{Device: uint32(b.device[i]), Received: b.receive[i], Quarantined: -1, NoTime: f&flagNoTime != 0, Retry: f&flagRetry != 0}
		switch {
		case f&flagTime == 0:
			e.Time = e.Received
		case micros == 1:
			e.Time = e.Received - lags[0]
			lags = lags[1:]
		default:
			e.Time = (e.Received/micros - lags[0]) * micros
			lags = lags[1:]
		}
		if f&flagQuarantined != 0 {
			if f&flagTime == 0 {
				e.Time = 0
			}
			e.Quarantined = quarantined
			quarantined++
		}
	}
	b.Quarantine = resize(b.Quarantine, int(quarantined))
	return !r.bad && len(r.p) == 0
}

func (b *Block) readReadings(body []byte, text *reader) bool {
	b.Sensors, b.Readings = b.Sensors[:0], b.Readings[:0]
	if body == nil {
		return true
	}
	r := &reader{p: body}
	count := r.count(ReadingsMax)
	b.Sensors = b.strings(b.Sensors, count, r, text)
	s := &b.series
	if text.bad || !s.decode(r, len(b.Messages), count, ReadingsMax) {
		return false
	}
	b.Readings = resize(b.Readings, s.total)
	if s.uniform() {
		width := len(s.shapes)
		for i, c := range s.shapes {
			s.readValues(r, &s.columns[c], b.Readings[i:], width, 0)
		}
		for i := range b.Messages {
			b.Messages[i].Readings = Range{uint32(i * width), uint32((i + 1) * width)}
		}
		return !r.bad && len(r.p) == 0
	}
	if !s.readColumnsOfValues(r, 0) || len(r.p) > 0 {
		return false
	}
	at := 0
	for i, shape := range s.shapeOf {
		from := at
		for _, c := range s.shape(shape) {
			b.Readings[at] = s.next(&s.columns[c])
			at++
		}
		b.Messages[i].Readings = Range{uint32(from), uint32(at)}
	}
	return true
}

func (b *Block) readAttributes(body []byte, text *reader) bool {
	b.Keys, b.Values, b.Attributes = b.Keys[:0], b.Values[:0], b.Attributes[:0]
	if body == nil {
		return true
	}
	r := &reader{p: body}
	count := r.count(AttributesMax)
	b.Keys = b.strings(b.Keys, count, r, text)
	texts := r.count(AttributesMax)
	if text.bad || r.bad {
		return false
	}
	b.Values = b.strings(b.Values, texts, r, text)
	s := &b.series
	if text.bad || !s.decode(r, len(b.Messages), count, AttributesMax) || !s.readColumnsOfValues(r, texts) || len(r.p) > 0 {
		return false
	}
	for i := range s.columns {
		if k := s.columns[i].kind; k != kindText && k != kindDecimal {
			return false
		}
	}
	b.Attributes = resize(b.Attributes, s.total)
	at := 0
	for i, shape := range s.shapeOf {
		from := at
		for _, c := range s.shape(shape) {
			col := &s.columns[c]
			b.Attributes[at] = Attribute{Key: uint32(col.name), Value: b.attributeValue(s, col)}
			at++
		}
		b.Messages[i].Attributes = Range{uint32(from), uint32(at)}
	}
	return true
}

// attributeValue returns the number in Values of a column's next value.
func (b *Block) attributeValue(s *seriesDecoder, col *valueColumn) uint32 {
	v := s.next(col).Value
	if col.kind == kindText {
		return uint32(v.Mantissa)
	}
	if v != col.last || col.lastID == 0 {
		from := len(b.format)
		b.format = telemetry.AppendDecimal(b.format, v.Mantissa, v.Scale)
		b.Values = append(b.Values, stringOf(b.format[from:]))
		col.last, col.lastID = v, uint32(len(b.Values))
	}
	return col.lastID - 1
}

func (b *Block) readExtras(body []byte) bool {
	r := &reader{p: body}
	nulls, dups := 0, 0
	for _, f := range b.flags {
		nulls += int(f & flagNulls / flagNulls)
		dups += int(f & flagDup / flagDup)
	}
	if nulls+dups == 0 {
		return body == nil
	}
	counts := b.intsOf(r, nulls)
	keys := r.take(16 * dups)
	if r.bad || len(r.p) > 0 {
		return false
	}
	for i, f := range b.flags {
		if f&flagNulls != 0 {
			b.Messages[i].Nulls = uint32(counts[0])
			counts = counts[1:]
		}
		if f&flagDup != 0 {
			copy(b.Messages[i].Dup[:], keys)
			keys = keys[16:]
		}
	}
	return true
}

func (b *Block) readQuarantine(body []byte, text *reader) bool {
	r := &reader{p: body}
	n := len(b.Quarantine)
	if n == 0 {
		return body == nil
	}
	count := r.count(2 * n)
	b.notes = b.strings(b.notes[:0], count, r, text)
	for i, id := range b.intsOf(r, 2*n) {
		if id < 0 || id >= int64(len(b.notes)) {
			return false
		}
		if i%2 == 0 {
			b.Quarantine[i/2] = Quarantined{Reason: b.notes[id]}
		} else {
			b.Quarantine[i/2].Topic = b.notes[id]
		}
	}
	for i, size := range b.intsOf(r, n) {
		if size < 0 || size > int64(len(text.p)) {
			return false
		}
		b.Quarantine[i].Payload = text.take(int(size))
	}
	return !r.bad && !text.bad && len(r.p) == 0
}
