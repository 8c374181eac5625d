package parquet

import (
	"encoding/binary"
	"math"

	"github.com/zeebo/xxh3"

	"github.com/sluice-iot/sluice/telemetry"
)

// digestVersion is the first byte of the canonical form; another form is another
// digest for the same batch, so it changes only with the cluster's feature level.
const digestVersion = 2

// Digest is the xxh3-128 of the batch's canonical form (FORMAT.md): range, rows
// with their names, counts, device updates and anomalies, but not the term, which
// differs between a replay and the original. Two replicas that flushed the same
// range of the same log have the same digest whatever wrote their files, and
// whatever compaction made of them since: the form can be taken while rows of
// many ranges stream by.
func Digest(b *telemetry.Batch) [16]byte {
	d := newDigester(b.Namespace, b.Shard, Range{From: b.From, To: b.To}, digestBufBytes)
	for i := range b.Rows {
		r := &b.Rows[i]
		d.row(b.Devices[r.Device], b.Sensors[r.Sensor], r)
	}
	return d.end(b.Messages, b.Updates, b.Anomalies)
}

// partsDigest is the digest of a segment of several parts.
func partsDigest(namespace uint32, shard telemetry.ShardID, list []part) [16]byte {
	first, last := &list[0], &list[len(list)-1]
	d := newDigester(namespace, shard, Range{From: first.From, To: last.To}, digestBufBytes)
	for i := range list {
		d.byte(tagPart)
		d.u64(list[i].From)
		d.u64(list[i].To)
		d.room(len(list[i].Digest))
		d.buf = append(d.buf, list[i].Digest[:]...)
	}
	d.flush()
	return d.h.Sum128().Bytes()
}

// What follows in the canonical form.
const (
	tagDevice = 1 // of the rows that follow
	tagSensor = 2 // of the rows that follow
	tagRow    = 3
	tagEnd    = 4
	tagPart   = 5
)

const (
	// digestBufBytes is what is gathered before the hash sees it: small enough for
	// the first-level cache, large enough that calls do not count.
	digestBufBytes = 16 << 10
	// digestPartBytes is the same where many digests are taken at a time.
	digestPartBytes = 512
)

// rowBytes is the canonical form of one row.
const rowBytes = 1 + 8 + 8 + 8 + 4 + 1

type digester struct {
	h              xxh3.Hasher
	buf            []byte
	device, sensor string // of the last row
	rows           uint64
}

func newDigester(namespace uint32, shard telemetry.ShardID, r Range, bufBytes int) *digester {
	d := &digester{buf: make([]byte, 0, bufBytes)}
	d.byte(digestVersion)
	d.u32(namespace)
	d.u32(uint32(shard))
	d.u64(r.From)
	d.u64(r.To)
	return d
}

// row takes the next row in the order of the batch.
func (d *digester) row(device, sensor string, r *telemetry.Row) {
	if device != d.device || d.rows == 0 {
		d.device, d.sensor = device, ""
		d.byte(tagDevice)
		d.text(device)
	}
	if sensor != d.sensor {
		d.sensor = sensor
		d.byte(tagSensor)
		d.text(sensor)
	}
	d.rows++
	d.room(rowBytes)
	n := len(d.buf)
	p := d.buf[n : n+rowBytes]
	p[0] = tagRow
	binary.LittleEndian.PutUint64(p[1:], uint64(r.Time))
	binary.LittleEndian.PutUint64(p[9:], uint64(r.Received))
	binary.LittleEndian.PutUint64(p[17:], math.Float64bits(r.Value))
	binary.LittleEndian.PutUint32(p[25:], math.Float32bits(r.Score))
	p[29] = byte(r.Quality)
	d.buf = d.buf[:n+rowBytes]
}

func (d *digester) end(messages uint64, updates []telemetry.DeviceUpdate, anomalies []telemetry.Anomaly) [16]byte {
	d.byte(tagEnd)
	d.u64(d.rows)
	d.u64(messages)
	d.u64(uint64(len(updates)))
	for i := range updates {
		d.update(&updates[i])
	}
	d.u64(uint64(len(anomalies)))
	for i := range anomalies {
		d.anomaly(&anomalies[i])
	}
	d.flush()
	return d.h.Sum128().Bytes()
}

func (d *digester) flush() {
	_, _ = d.h.Write(d.buf) // never fails
	d.buf = d.buf[:0]
}

func (d *digester) room(n int) {
	if len(d.buf)+n > cap(d.buf) {
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
