package parquet

import (
	"encoding/binary"
	"math"

	"github.com/zeebo/xxh3"

	"github.com/sluice-iot/sluice/telemetry"
)

// digestVersion is the first byte of the canonical form; another form is another
// digest for the same batch, so it changes only with the cluster's feature level.
const digestVersion = 1

// Digest is the xxh3-128 of the batch's canonical form (FORMAT.md): ranges,
// counts, dictionaries, rows, device updates and anomalies, but not the term,
// which differs between a replay and the original. Two replicas that flushed the
// same range of the same log have the same digest whatever wrote their files.
func Digest(b *telemetry.Batch) [16]byte {
	d := digester{buf: make([]byte, 0, digestBufBytes)}
	d.byte(digestVersion)
	d.u32(b.Namespace)
	d.u32(uint32(b.Shard))
	d.u64(b.From)
	d.u64(b.To)
	d.u64(b.Messages)
	d.texts(b.Devices)
	d.texts(b.Sensors)
	d.rows(b.Rows)
	d.u64(uint64(len(b.Updates)))
	for i := range b.Updates {
		d.update(&b.Updates[i])
	}
	d.u64(uint64(len(b.Anomalies)))
	for i := range b.Anomalies {
		d.anomaly(&b.Anomalies[i])
	}
	d.flush()
	return d.h.Sum128().Bytes()
}

// digestBufBytes is what is gathered before the hash sees it: small enough for
// the first-level cache, large enough that calls do not count.
const digestBufBytes = 16 << 10

// rowBytes is the canonical form of one row.
const rowBytes = 8 + 8 + 8 + 4 + 4 + 4 + 1

type digester struct {
	h   xxh3.Hasher
	buf []byte
}

func (d *digester) flush() {
	_, _ = d.h.Write(d.buf) // never fails
	d.buf = d.buf[:0]
}

func (d *digester) room(n int) {
	if len(d.buf)+n > digestBufBytes {
		d.flush()
	}
}

func (d *digester) byte(v byte) { d.room(1); d.buf = append(d.buf, v) }
func (d *digester) u32(v uint32) {
	d.room(4)
	d.buf = binary.LittleEndian.AppendUint32(d.buf, v)
}

func (d *digester) u64(v uint64) {
	d.room(8)
	d.buf = binary.LittleEndian.AppendUint64(d.buf, v)
}

// f64 hashes the bits, with one NaN for all: the archive keeps anomalies as
// text, which does not know NaN's payloads.
func (d *digester) f64(v float64) {
	if v != v {
		v = math.NaN()
	}
	d.u64(math.Float64bits(v))
}

func (d *digester) text(s string) {
	d.u32(uint32(len(s)))
	d.room(len(s))
	d.buf = append(d.buf, s...)
}

func (d *digester) texts(list []string) {
	d.u64(uint64(len(list)))
	for _, s := range list {
		d.text(s)
	}
}

func (d *digester) rows(rows []telemetry.Row) {
	d.u64(uint64(len(rows)))
	for i := range rows {
		r := &rows[i]
		d.room(rowBytes)
		n := len(d.buf)
		p := d.buf[n : n+rowBytes]
		binary.LittleEndian.PutUint64(p[0:], uint64(r.Time))
		binary.LittleEndian.PutUint64(p[8:], uint64(r.Received))
		binary.LittleEndian.PutUint64(p[16:], math.Float64bits(r.Value))
		binary.LittleEndian.PutUint32(p[24:], r.Device)
		binary.LittleEndian.PutUint32(p[28:], r.Sensor)
		binary.LittleEndian.PutUint32(p[32:], math.Float32bits(r.Score))
		p[36] = byte(r.Quality)
		d.buf = d.buf[:n+rowBytes]
	}
}

func (d *digester) update(u *telemetry.DeviceUpdate) {
	d.text(u.Device)
	d.u64(uint64(u.FirstSeen))
	d.u64(uint64(u.LastSeen))
	d.u64(uint64(len(u.Attributes)))
	for _, a := range u.Attributes {
		d.text(a.Key)
		d.text(a.Value)
	}
}

func (d *digester) anomaly(a *telemetry.Anomaly) {
	d.text(a.ID)
	d.text(a.Device)
	d.text(a.Sensor)
	d.u64(uint64(a.Opened))
	d.u64(uint64(a.Closed))
	d.f64(a.Severity)
	d.text(a.Cause)
	d.f64(a.Value)
	d.f64(a.Expected)
	d.f64(a.Low)
	d.f64(a.High)
}
