package parquet

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
)

// The ways of packing a page of times.
const (
	wayPlain = iota
	wayDelta
	wayStrong // plain, compressed at the slower level
)

// packTimes fills plain and packed in the way that did best when all were tried
// last.
func (w *chunkWriter) packTimes(v []int64) (format.Encoding, error) {
	c := &w.choice[w.col]
	if c.left == 0 {
		c.left = choicePages
		if err := w.chooseWay(c, v); err != nil {
			return 0, err
		}
	}
	c.left--
	if err := w.packTimesAs(c.way, v); err != nil {
		return 0, err
	}
	if c.way == wayDelta {
		return format.DeltaBinaryPacked, nil
	}
	return format.Plain, nil
}

// chooseWay tries what may be best. The slower level must save a tenth to be
// worth its time, and cannot where the fast one leaves less than an eighth.
func (w *chunkWriter) chooseWay(c *choice, v []int64) error {
	if err := w.packTimesAs(wayDelta, v); err != nil {
		return err
	}
	delta := len(w.packed)
	if err := w.packTimesAs(wayPlain, v); err != nil {
		return err
	}
	plain := len(w.packed)
	if c.way = wayPlain; delta < plain {
		c.way = wayDelta
	}
	if 8*plain < len(w.plain) {
		return nil
	}
	if err := w.packTimesAs(wayStrong, v); err != nil {
		return err
	}
	if 11*len(w.packed) < 10*min(plain, delta) {
		c.way = wayStrong
	}
	return nil
}

func (w *chunkWriter) packTimesAs(way int, v []int64) error {
	z := w.fast
	switch way {
	case wayDelta:
		var err error
		if w.plain, err = w.delta.EncodeInt64(w.plain[:0], v); err != nil {
			return fmt.Errorf("encode page: %w", err)
		}
	case wayStrong:
		z = w.strong
		fallthrough
	default:
		w.plain = append(w.plain[:0], bytesOf(v)...)
	}
	w.packed = z.EncodeAll(w.plain, w.packed[:0])
	return nil
}

// pageOfNumbers writes a page of dictionary numbers.
func (w *chunkWriter) pageOfNumbers(lo int, v []int32, least, most []byte) error {
	var err error
	if w.plain, err = w.dict.EncodeInt32(w.plain[:0], v); err != nil {
		return fmt.Errorf("encode page: %w", err)
	}
	w.packed = w.fast.EncodeAll(w.plain, w.packed[:0])
	return w.page(lo, len(v), format.RLEDictionary, least, most)
}

// dictionary writes plain as the chunk's dictionary page.
func (w *chunkWriter) dictionary(entries int, sorted bool) error {
	w.packed = w.fast.EncodeAll(w.plain, w.packed[:0])
	w.meta.DictionaryPageOffset = w.at()
	h := format.PageHeader{Type: format.DictionaryPage}
	h.DictionaryPageHeader.Set(format.DictionaryPageHeader{NumValues: int32(entries), Encoding: format.Plain, IsSorted: sorted})
	_, err := w.write(&h)
	w.note(format.DictionaryPage, format.Plain)
	return err
}

// page writes packed as a data page; without bounds none is said about it.
func (w *chunkWriter) page(lo, rows int, enc format.Encoding, least, most []byte) error {
	if w.meta.DataPageOffset == 0 {
		w.meta.DataPageOffset = w.at()
	}
	h := format.PageHeader{Type: format.DataPage}
	h.DataPageHeader.Set(format.DataPageHeader{
		NumValues: int32(rows), Encoding: enc, DefinitionLevelEncoding: format.RLE, RepetitionLevelEncoding: format.RLE,
	})
	at := w.at()
	size, err := w.write(&h)
	if err != nil {
		return err
	}
	w.offset.PageLocations = append(w.offset.PageLocations, format.PageLocation{Offset: at, CompressedPageSize: int32(size), FirstRowIndex: int64(lo)})
	w.index.NullPages = append(w.index.NullPages, false)
	w.index.NullCounts = append(w.index.NullCounts, 0)
	w.index.MinValues = append(w.index.MinValues, least)
	w.index.MaxValues = append(w.index.MaxValues, most)
	w.note(format.DataPage, enc)
	return nil
}

// write appends the page in plain and packed and returns its size with
// header.
func (w *chunkWriter) write(h *format.PageHeader) (int, error) {
	h.UncompressedPageSize, h.CompressedPageSize = int32(len(w.plain)), int32(len(w.packed))
	h.CRC = int32(crc32.ChecksumIEEE(w.packed))
	header, err := thrift.Marshal(new(thrift.CompactProtocol), h)
	if err != nil {
		return 0, fmt.Errorf("encode page header: %w", err)
	}
	w.out = append(append(w.out, header...), w.packed...)
	w.meta.TotalUncompressedSize += int64(len(header) + len(w.plain))
	w.meta.TotalCompressedSize += int64(len(header) + len(w.packed))
	return len(header) + len(w.packed), nil
}

// note counts a page for the chunk's metadata.
func (w *chunkWriter) note(t format.PageType, enc format.Encoding) {
	for i := range w.meta.EncodingStats {
		if s := &w.meta.EncodingStats[i]; s.PageType == t && s.Encoding == enc {
			s.Count++
			return
		}
	}
	w.meta.EncodingStats = append(w.meta.EncodingStats, format.PageEncodingStats{PageType: t, Encoding: enc, Count: 1})
}

// finish completes the chunk's metadata from its pages.
func (w *chunkWriter) finish() {
	w.meta.Encoding = append(w.meta.Encoding, format.RLE) // of the absent levels, as other writers say
	for _, s := range w.meta.EncodingStats {
		seen := false
		for _, e := range w.meta.Encoding {
			seen = seen || e == s.Encoding
		}
		if !seen {
			w.meta.Encoding = append(w.meta.Encoding, s.Encoding)
		}
	}
	compare := comparer(w.col)
	least, most := w.index.MinValues[0], w.index.MaxValues[0]
	ascending := true
	for i := range w.index.MinValues {
		if w.index.MinValues[i] == nil { // a page without bounds: an index needs all
			*w.index = format.ColumnIndex{}
			return
		}
		if i > 0 {
			ascending = ascending && compare(w.index.MinValues[i-1], w.index.MinValues[i]) <= 0 &&
				compare(w.index.MaxValues[i-1], w.index.MaxValues[i]) <= 0
		}
		if compare(w.index.MinValues[i], least) < 0 {
			least = w.index.MinValues[i]
		}
		if compare(w.index.MaxValues[i], most) > 0 {
			most = w.index.MaxValues[i]
		}
	}
	if ascending {
		w.index.BoundaryOrder = format.Ascending
	}
	w.meta.Statistics = format.Statistics{MinValue: least, MaxValue: most}
}

// comparer orders bounds of a column by the type's order.
func comparer(c column) func(a, b []byte) int {
	switch physicalTypes()[c] {
	case format.Int64:
		return func(a, b []byte) int {
			return cmp.Compare(int64(binary.LittleEndian.Uint64(a)), int64(binary.LittleEndian.Uint64(b)))
		}
	case format.Int32:
		return func(a, b []byte) int {
			return cmp.Compare(int32(binary.LittleEndian.Uint32(a)), int32(binary.LittleEndian.Uint32(b)))
		}
	case format.Double:
		return func(a, b []byte) int {
			return cmp.Compare(math.Float64frombits(binary.LittleEndian.Uint64(a)), math.Float64frombits(binary.LittleEndian.Uint64(b)))
		}
	case format.Float:
		return func(a, b []byte) int {
			return cmp.Compare(math.Float32frombits(binary.LittleEndian.Uint32(a)), math.Float32frombits(binary.LittleEndian.Uint32(b)))
		}
	default:
		return bytes.Compare
	}
}
