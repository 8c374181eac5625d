package archive

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// sensorsMax is how many readings one message may have (telemetry/PAYLOAD.md).
const sensorsMax = 1024

// messageWriter makes of the rows of a flush the messages that they came in, one a
// line: what a device measured at one time and what was received together.
type messageWriter struct {
	w     *bufio.Writer
	b     *telemetry.Batch
	told  []bool // devices whose attributes are written
	order []int32
	buf   bytes.Buffer
	text  *json.Encoder // into buf
	count Restored
}

// Restored counts what was written.
type Restored struct{ Rows, Messages int64 }

func newMessageWriter(w io.Writer) *messageWriter {
	m := &messageWriter{w: bufio.NewWriterSize(w, 1<<16)}
	m.text = json.NewEncoder(&m.buf)
	m.text.SetEscapeHTML(false)
	return m
}

func (m *messageWriter) flush() error { return m.w.Flush() }

// batch writes the messages of a flush in the order in which they were received.
func (m *messageWriter) batch(b *telemetry.Batch) error {
	m.b, m.told, m.order = b, make([]bool, len(b.Devices)), m.order[:0]
	for i := range b.Rows {
		m.order = append(m.order, int32(i))
	}
	slices.SortFunc(m.order, func(i, j int32) int {
		x, y := &b.Rows[i], &b.Rows[j]
		return cmp.Or(cmp.Compare(x.Received, y.Received), cmp.Compare(x.Device, y.Device), cmp.Compare(x.Time, y.Time), cmp.Compare(i, j))
	})
	for lo := 0; lo < len(m.order); {
		hi := m.together(lo)
		if err := m.message(m.order[lo:hi]); err != nil {
			return err
		}
		lo = hi
	}
	m.count.Rows += int64(len(b.Rows))
	return m.attributesAlone()
}

// together is the end of the message that begins at a place of the order. A sensor
// that comes again came in another message.
func (m *messageWriter) together(lo int) int {
	first := &m.b.Rows[m.order[lo]]
	hi := lo + 1
	for hi < len(m.order) && hi-lo < sensorsMax {
		r, before := &m.b.Rows[m.order[hi]], &m.b.Rows[m.order[hi-1]]
		if r.Received != first.Received || r.Device != first.Device || r.Time != first.Time || r.Sensor == before.Sensor {
			break
		}
		hi++
	}
	return hi
}

func (m *messageWriter) message(rows []int32) error {
	first := &m.b.Rows[rows[0]]
	device := m.b.Devices[first.Device]
	var attributes []telemetry.Attribute
	if !m.told[first.Device] {
		m.told[first.Device] = true
		if at, ok := m.update(device); ok {
			attributes = m.b.Updates[at].Attributes
		}
	}
	m.begin(device, first.Time, attributes)
	for i, n := range rows {
		r := &m.b.Rows[n]
		m.buf.WriteString([]string{`,"sensors":{`, `,`}[min(i, 1)])
		m.quote(m.b.Sensors[r.Sensor])
		m.buf.WriteByte(':')
		if r.Quality&telemetry.QualityBool != 0 {
			m.buf.WriteString(strconv.FormatBool(r.Value != 0))
		} else {
			m.buf.Write(strconv.AppendFloat(m.buf.AvailableBuffer(), r.Value, 'g', -1, 64))
		}
	}
	m.buf.WriteString("}}\n")
	return m.end()
}

// attributesAlone tells the attributes of devices that brought no rows.
func (m *messageWriter) attributesAlone() error {
	for i := range m.b.Updates {
		u := &m.b.Updates[i]
		if at, ok := slices.BinarySearch(m.b.Devices, u.Device); ok && m.told[at] || len(u.Attributes) == 0 {
			continue
		}
		m.begin(u.Device, u.LastSeen, u.Attributes)
		m.buf.WriteString("}\n")
		if err := m.end(); err != nil {
			return err
		}
	}
	return nil
}

func (m *messageWriter) update(device string) (int, bool) {
	return slices.BinarySearchFunc(m.b.Updates, device, func(u telemetry.DeviceUpdate, d string) int { return strings.Compare(u.Device, d) })
}

func (m *messageWriter) begin(device string, at int64, attributes []telemetry.Attribute) {
	m.buf.Reset()
	m.buf.WriteString(`{"device_id":`)
	m.quote(device)
	m.buf.WriteString(`,"timestamp":"`)
	m.buf.Write(time.UnixMicro(at).UTC().AppendFormat(m.buf.AvailableBuffer(), time.RFC3339Nano))
	m.buf.WriteByte('"')
	for i, a := range attributes {
		m.buf.WriteString([]string{`,"metadata":{`, `,`}[min(i, 1)])
		m.quote(a.Key)
		m.buf.WriteByte(':')
		m.quote(a.Value)
	}
	if len(attributes) > 0 {
		m.buf.WriteByte('}')
	}
}

// quote writes a text as JSON.
func (m *messageWriter) quote(s string) {
	_ = m.text.Encode(s)            // a string into a buffer: it cannot fail
	m.buf.Truncate(m.buf.Len() - 1) // the encoder's line break
}

func (m *messageWriter) end() error {
	if _, err := m.w.Write(m.buf.Bytes()); err != nil {
		return fmt.Errorf("write messages: %w", err)
	}
	m.count.Messages++
	return nil
}
