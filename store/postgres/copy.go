package postgres

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/sluice-iot/sluice/telemetry"
)

// copyTelemetry is the statement that takes what rowReader writes.
const copyTelemetry = "copy telemetry (time, device_id, sensor, value, score, received, quality) from stdin binary"

const (
	// epoch is 2000-01-01, from which PostgreSQL counts, in microseconds since
	// 1970.
	epoch = 946_684_800_000_000
	// copyHeader: signature, no flags, no extension ("Binary Format" in the
	// documentation of COPY).
	copyHeader = "PGCOPY\n\377\r\n\000\000\000\000\000\000\000\000\000"
	// rowFixed is a row without its two texts: field count, seven lengths, four
	// numbers of 8 bytes less the texts, one of 4, one of 2.
	rowFixed = 2 + 7*4 + 8 + 8 + 4 + 8 + 2
)

// rowReader is rows of some batches in the binary format of COPY, made while it
// is read. pgx may go on reading for a moment after its CopyFrom has returned
// with an error, so each COPY has a reader of its own, which only reads the
// batches.
type rowReader struct {
	parts []rowRange
	began bool
	ended bool
}

// rowRange is a range of a batch's rows.
type rowRange struct {
	batch     *telemetry.Batch
	next, end int
}

// Read implements io.Reader with whole rows only; p must have room for one.
func (r *rowReader) Read(p []byte) (int, error) {
	if r.ended {
		return 0, io.EOF
	}
	out := p[:0]
	if !r.began {
		if len(p) < len(copyHeader) {
			return 0, io.ErrShortBuffer
		}
		out, r.began = append(out, copyHeader...), true
	}
	for len(r.parts) > 0 {
		part := &r.parts[0]
		b := part.batch
		for ; part.next < part.end; part.next++ {
			row := &b.Rows[part.next]
			if int(row.Device) >= len(b.Devices) || int(row.Sensor) >= len(b.Sensors) {
				return 0, fmt.Errorf("row %d of the batch names no device or sensor of its dictionaries", part.next)
			}
			device, sensor := b.Devices[row.Device], b.Sensors[row.Sensor]
			if len(out)+rowFixed+len(device)+len(sensor) > len(p) {
				return r.filled(out)
			}
			out = appendRow(out, row, device, sensor)
		}
		r.parts = r.parts[1:]
	}
	if len(out)+2 > len(p) {
		return r.filled(out)
	}
	r.ended = true
	return len(binary.BigEndian.AppendUint16(out, 0xffff)), nil // -1 fields: the end
}

func (r *rowReader) filled(out []byte) (int, error) {
	if len(out) == 0 {
		return 0, io.ErrShortBuffer
	}
	return len(out), nil
}

func appendRow(b []byte, row *telemetry.Row, device, sensor string) []byte {
	be := binary.BigEndian
	b = be.AppendUint16(b, 7)
	b = appendTime(b, row.Time)
	b = append(be.AppendUint32(b, uint32(len(device))), device...)
	b = append(be.AppendUint32(b, uint32(len(sensor))), sensor...)
	b = be.AppendUint64(be.AppendUint32(b, 8), math.Float64bits(row.Value))
	b = be.AppendUint32(be.AppendUint32(b, 4), math.Float32bits(row.Score))
	b = appendTime(b, row.Received)
	return be.AppendUint16(be.AppendUint32(b, 2), uint16(row.Quality))
}

func appendTime(b []byte, t int64) []byte {
	if t < math.MinInt64+epoch {
		t = math.MinInt64 + epoch // the server refuses it, as it should
	}
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, 8), uint64(t-epoch))
}
