package parquet

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"

	"github.com/parquet-go/parquet-go/encoding/delta"
	"github.com/parquet-go/parquet-go/encoding/rle"
	"github.com/parquet-go/parquet-go/format"

	"github.com/sluice-iot/sluice/telemetry"
)

// chunkWriter appends one column of one row group to the encoder's file.
type chunkWriter struct {
	*encoder
	delta  delta.BinaryPackedEncoding
	dict   rle.DictionaryEncoding
	col    column
	rows   []telemetry.Row
	meta   format.ColumnMetaData
	index  *format.ColumnIndex
	offset *format.OffsetIndex
}

// eachPage calls write for every page of rows.
func (w *chunkWriter) eachPage(write func(lo int, rows []telemetry.Row) error) error {
	for lo := 0; lo < len(w.rows); {
		hi := pageEnd(w.rows, lo)
		if err := write(lo, w.rows[lo:hi]); err != nil {
			return err
		}
		lo = hi
	}
	return nil
}

// pageEnd is where the page that begins at lo ends: with the device in its row
// lo + pageRows, unless that one has too many rows.
func pageEnd(rows []telemetry.Row, lo int) int {
	hi := lo + pageRows
	if hi >= len(rows) {
		return len(rows)
	}
	device := rows[hi-1].Device
	more, _ := slices.BinarySearchFunc(rows[hi:min(len(rows), lo+pageRowsMax+1)], device+1, func(r telemetry.Row, d uint32) int {
		return cmp.Compare(r.Device, d)
	})
	if hi+more > lo+pageRowsMax {
		return hi
	}
	return hi + more
}

// timestamps are plain while series are short: zstd then finds the times of one
// message again under its next sensor, for longer ones at a stronger level. Long
// series do better as packed deltas.
func (w *chunkWriter) timestamps() error {
	return w.eachPage(func(lo int, rows []telemetry.Row) error {
		v := w.ints[:0]
		if w.col == colTime {
			for i := range rows {
				v = append(v, rows[i].Time)
			}
		} else {
			for i := range rows {
				v = append(v, rows[i].Received)
			}
		}
		w.ints = v
		least, most := v[0], v[0]
		for _, t := range v {
			least, most = min(least, t), max(most, t)
		}
		enc, err := w.packTimes(v)
		if err != nil {
			return err
		}
		return w.page(lo, len(rows), enc, i64bytes(least), i64bytes(most))
	})
}

// strings is a dictionary column; dict is sorted, so are bounds of numbers.
func (w *chunkWriter) strings(dict []string, number func(*telemetry.Row) uint32) error {
	raw := w.plain[:0]
	for _, s := range dict {
		raw = binary.LittleEndian.AppendUint32(raw, uint32(len(s)))
		raw = append(raw, s...)
	}
	w.plain = raw
	if err := w.dictionary(len(dict), true); err != nil {
		return err
	}
	return w.eachPage(func(lo int, rows []telemetry.Row) error {
		v := w.small[:0]
		least, most := uint32(math.MaxUint32), uint32(0)
		for i := range rows {
			n := number(&rows[i])
			least, most = min(least, n), max(most, n)
			v = append(v, int32(n))
		}
		w.small = v
		return w.pageOfNumbers(lo, v, []byte(dict[least]), []byte(dict[most]))
	})
}

// reals are a dictionary while numbers repeat: devices send decimals of few
// digits. Otherwise they are plain. bits are the low width bytes of the result.
func (w *chunkWriter) reals(width int, bits func(*telemetry.Row) uint64) error {
	if !w.repeats(bits) {
		return w.eachPage(func(lo int, rows []telemetry.Row) error {
			w.plain = w.plain[:0]
			for i := range rows {
				w.plain = appendBits(w.plain, width, bits(&rows[i]))
			}
			least, most := realBounds(width, rows, bits)
			w.packed = w.fast.EncodeAll(w.plain, w.packed[:0])
			return w.page(lo, len(rows), format.Plain, least, most)
		})
	}
	w.plain = w.plain[:0]
	for _, v := range w.numbers.bits {
		w.plain = appendBits(w.plain, width, v)
	}
	if err := w.dictionary(len(w.numbers.bits), false); err != nil {
		return err
	}
	return w.eachPage(func(lo int, rows []telemetry.Row) error {
		least, most := realBounds(width, rows, bits)
		return w.pageOfNumbers(lo, w.numbered[lo:lo+len(rows)], least, most)
	})
}

// repeats fills the dictionary and the rows' numbers in it, and reports whether
// it is worth having.
func (w *chunkWriter) repeats(bits func(*telemetry.Row) uint64) bool {
	w.numbers.reset()
	w.numbered = w.numbered[:0]
	for i := range w.rows {
		w.numbered = append(w.numbered, w.numbers.number(bits(&w.rows[i])))
		if n := len(w.numbers.bits); n > numberDictMax || (i&(pageRows-1) == pageRows-1 && 4*n > 3*i) {
			return false
		}
	}
	return 2*len(w.numbers.bits) <= len(w.rows)
}

// realBounds are as Parquet wants them: none when a NaN is among the numbers, -0
// for a least zero, +0 for a greatest.
func realBounds(width int, rows []telemetry.Row, bits func(*telemetry.Row) uint64) (least, most []byte) {
	lo, hi := math.Inf(1), math.Inf(-1)
	for i := range rows {
		f := asFloat(width, bits(&rows[i]))
		lo, hi = min(lo, f), max(hi, f)
	}
	if lo != lo {
		return nil, nil
	}
	if lo == 0 {
		lo = math.Copysign(0, -1)
	}
	if hi == 0 {
		hi = 0 // of either sign before
	}
	if width == 4 {
		return i32bytes(int32(math.Float32bits(float32(lo)))), i32bytes(int32(math.Float32bits(float32(hi))))
	}
	return i64bytes(int64(math.Float64bits(lo))), i64bytes(int64(math.Float64bits(hi)))
}

func asFloat(width int, bits uint64) float64 {
	if width == 4 {
		return float64(math.Float32frombits(uint32(bits)))
	}
	return math.Float64frombits(bits)
}

func appendBits(dst []byte, width int, bits uint64) []byte {
	if width == 4 {
		return binary.LittleEndian.AppendUint32(dst, uint32(bits))
	}
	return binary.LittleEndian.AppendUint64(dst, bits)
}

func (w *chunkWriter) quality() error {
	raw := w.plain[:0]
	var number [256]int32 // of a quality, + 1
	n := int32(0)
	for i := range w.rows {
		if q := w.rows[i].Quality; number[q] == 0 {
			n++
			number[q] = n
			raw = binary.LittleEndian.AppendUint32(raw, uint32(q))
		}
	}
	w.plain = raw
	if err := w.dictionary(int(n), false); err != nil {
		return err
	}
	return w.eachPage(func(lo int, rows []telemetry.Row) error {
		v := w.small[:0]
		least, most := rows[0].Quality, rows[0].Quality
		for i := range rows {
			q := rows[i].Quality
			least, most = min(least, q), max(most, q)
			v = append(v, number[q]-1)
		}
		w.small = v
		return w.pageOfNumbers(lo, v, i32bytes(int32(least)), i32bytes(int32(most)))
	})
}

func i64bytes(v int64) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(v)) }
func i32bytes(v int32) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(v)) }
