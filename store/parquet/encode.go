package parquet

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"

	"github.com/sluice-iot/sluice/telemetry"
)

// encoder turns batches into files in memory, one at a time; its buffers are
// reused. A file is smaller than the batch it is made of, so the batch bounds
// the memory.
type encoder struct {
	fast, strong *zstd.Encoder
	base         int64  // bytes of the file that were handed on already
	out          []byte // the file from base on

	plain, packed []byte // the page at hand, encoded and compressed
	ints          []int64
	small         []int32
	numbered      []int32 // a column of a row group as numbers of its dictionary
	numbers       numberDict
	choice        [columns]choice

	groups  []format.RowGroup
	indexes [][columns]format.ColumnIndex
	offsets [][columns]format.OffsetIndex
}

// choice remembers which way of packing a page did best.
type choice struct {
	way  int
	left int // pages until all are tried again
}

// choicePages: trying every way on one page in eight costs little and follows
// data that changes its shape within a file.
const choicePages = 8

func newEncoder() (*encoder, error) {
	// SpeedFastest is the rule: slower levels save 5 to 10 % of the bytes and cost
	// two to three times the time. Pages carry their own checksum; single segments
	// carry their size, which the decoder insists on.
	level := func(l zstd.EncoderLevel) (*zstd.Encoder, error) {
		return zstd.NewWriter(nil, zstd.WithEncoderLevel(l), zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	}
	fast, err1 := level(zstd.SpeedFastest)
	strong, err2 := level(zstd.SpeedDefault)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("make zstd encoders: %w", err)
	}
	return &encoder{fast: fast, strong: strong}, nil
}

// encode returns the bytes of the batch's file, valid until the next call. meta
// is what the footer says about it.
func (e *encoder) encode(b *telemetry.Batch, meta *metadata) ([]byte, error) {
	e.begin(rowGuessBytes * len(b.Rows))
	for lo := 0; lo < len(b.Rows); {
		hi := groupEnd(b.Rows, lo)
		if err := e.group(b, b.Rows[lo:hi]); err != nil {
			return nil, fmt.Errorf("encode rows %d to %d: %w", lo, hi, err)
		}
		lo = hi
	}
	if err := e.pageIndex(); err != nil {
		return nil, err
	}
	raw, err := marshalExtra(b)
	if err != nil {
		return nil, err
	}
	if len(raw) > 0 {
		meta.ExtraOffset = e.at()
		e.out = e.fast.EncodeAll(raw, e.out)
		meta.ExtraBytes, meta.ExtraRawBytes = e.at()-meta.ExtraOffset, int64(len(raw))
	}
	var sums blockSums
	sums.add(e.out)
	meta.Body, meta.Blocks = e.at(), sums.end()
	e.out, err = appendFooter(e.out, meta, e.groups)
	return e.out, err
}

// begin starts a file.
func (e *encoder) begin(guessBytes int) {
	e.base = 0
	e.out = append(slices.Grow(e.out[:0], guessBytes), magic...)
	e.groups, e.indexes, e.offsets = e.groups[:0], e.indexes[:0], e.offsets[:0]
	e.choice = [columns]choice{} // the same batch gives the same file
}

// at is the offset in the file of what comes next.
func (e *encoder) at() int64 { return e.base + int64(len(e.out)) }

// groupEnd is where the row group that begins at lo ends.
func groupEnd(rows []telemetry.Row, lo int) int {
	hi := min(len(rows), lo+groupRows)
	first := rows[lo].Device
	if rows[hi-1].Device-first < groupDevices {
		return hi
	}
	n, _ := slices.BinarySearchFunc(rows[lo:hi], first+groupDevices, func(r telemetry.Row, device uint32) int {
		return int(int64(r.Device) - int64(device))
	})
	return lo + n
}

func (e *encoder) group(b *telemetry.Batch, rows []telemetry.Row) error {
	g := format.RowGroup{
		Columns: make(thrift.Slice[format.ColumnChunk], columns), NumRows: int64(len(rows)),
		SortingColumns: sortingColumns(), FileOffset: e.at(), Ordinal: int16(len(e.groups)),
	}
	e.indexes = append(e.indexes, [columns]format.ColumnIndex{})
	e.offsets = append(e.offsets, [columns]format.OffsetIndex{})
	first, last := rows[0].Device, rows[len(rows)-1].Device
	for c := range columns {
		w := chunkWriter{
			encoder: e, col: c, rows: rows,
			index: &e.indexes[len(e.indexes)-1][c], offset: &e.offsets[len(e.offsets)-1][c],
		}
		w.meta = format.ColumnMetaData{
			Type: physicalTypes()[c], PathInSchema: thrift.Slice[string]{columnNames()[c]},
			Codec: format.Zstd, NumValues: int64(len(rows)),
		}
		var err error
		switch c {
		case colTime, colReceived:
			err = w.timestamps()
		case colDevice:
			err = w.strings(b.Devices[first:last+1], func(r *telemetry.Row) uint32 { return r.Device - first })
		case colSensor:
			err = w.strings(b.Sensors, func(r *telemetry.Row) uint32 { return r.Sensor })
		case colValue:
			err = w.reals(8, func(r *telemetry.Row) uint64 { return math.Float64bits(r.Value) })
		case colScore:
			err = w.reals(4, func(r *telemetry.Row) uint64 { return uint64(math.Float32bits(r.Score)) })
		case colQuality:
			err = w.quality()
		}
		if err != nil {
			return fmt.Errorf("column %s: %w", columnNames()[c], err)
		}
		w.finish()
		g.Columns[c] = format.ColumnChunk{MetaData: w.meta}
		g.TotalByteSize += w.meta.TotalUncompressedSize
		g.TotalCompressedSize += w.meta.TotalCompressedSize
	}
	e.groups = append(e.groups, g)
	return nil
}

// pageIndex writes column and offset indexes behind the row groups.
func (e *encoder) pageIndex() error {
	for i := range e.groups {
		for c := range columns {
			if len(e.indexes[i][c].MinValues) == 0 {
				continue
			}
			raw, err := thrift.Marshal(new(thrift.CompactProtocol), &e.indexes[i][c])
			if err != nil {
				return fmt.Errorf("encode column index: %w", err)
			}
			chunk := &e.groups[i].Columns[c]
			chunk.ColumnIndexOffset, chunk.ColumnIndexLength = e.at(), int32(len(raw))
			e.out = append(e.out, raw...)
		}
	}
	for i := range e.groups {
		for c := range columns {
			raw, err := thrift.Marshal(new(thrift.CompactProtocol), &e.offsets[i][c])
			if err != nil {
				return fmt.Errorf("encode offset index: %w", err)
			}
			chunk := &e.groups[i].Columns[c]
			chunk.OffsetIndexOffset, chunk.OffsetIndexLength = e.at(), int32(len(raw))
			e.out = append(e.out, raw...)
		}
	}
	return nil
}

// release drops buffers that a rare large batch has left behind.
func (e *encoder) release() {
	if cap(e.out) > encoderKeepBytes {
		e.out = nil
	}
}

// encoderKeepBytes is what an idle encoder may hold; a flush of 100 k rows needs
// less than 1 MiB.
const encoderKeepBytes = 8 << 20

// rowGuessBytes is what a row needs at most when its numbers are no noise.
const rowGuessBytes = 8

// bytesOf is the memory of s, little endian on every platform we build for.
func bytesOf[T int32 | int64 | float32 | float64](s []T) []byte {
	if len(s) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), len(s)*int(unsafe.Sizeof(s[0])))
}

// numberDict numbers distinct bit patterns in order of appearance: an
// open-addressed table whose slots hold number + 1.
type numberDict struct {
	slots []uint32
	bits  []uint64
}

func (d *numberDict) reset() {
	if len(d.slots) == 0 {
		d.slots = make([]uint32, 1<<10)
	}
	clear(d.slots)
	d.bits = d.bits[:0]
}

func (d *numberDict) number(bits uint64) int32 {
	mask := uint64(len(d.slots) - 1)
	for i := mix(bits) & mask; ; i = (i + 1) & mask {
		switch n := d.slots[i]; {
		case n == 0:
			return d.insert(bits, i)
		case d.bits[n-1] == bits:
			return int32(n - 1)
		}
	}
}

func (d *numberDict) insert(bits, slot uint64) int32 {
	d.bits = append(d.bits, bits)
	n := int32(len(d.bits) - 1)
	d.slots[slot] = uint32(n) + 1
	if 2*len(d.bits) > len(d.slots) {
		d.slots = make([]uint32, 2*len(d.slots))
		mask := uint64(len(d.slots) - 1)
		for k, v := range d.bits {
			i := mix(v) & mask
			for d.slots[i] != 0 {
				i = (i + 1) & mask
			}
			d.slots[i] = uint32(k) + 1
		}
	}
	return n
}

// mix spreads the low bits, which are alike in the float64s of decimals: the
// first half of splitmix64's finalizer (Stafford's variant 13) and one shift.
func mix(v uint64) uint64 {
	v ^= v >> 30
	v *= 0xbf58476d1ce4e5b9
	return v ^ v>>27
}
