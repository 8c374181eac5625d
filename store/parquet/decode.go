package parquet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go/encoding/delta"
	"github.com/parquet-go/parquet-go/encoding/rle"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"

	"github.com/sluice-iot/sluice/telemetry"
)

func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// decoder reads pages of segment files into typed arrays, which are valid until
// the same method is called again. It is for one goroutine.
type decoder struct {
	delta delta.BinaryPackedEncoding
	dict  rle.DictionaryEncoding
	zstd  *zstd.Decoder // shared

	raw   []byte // as in the file
	plain []byte // decompressed

	times, received []int64
	devices         []int32
	sensors         []int32
	numbers         []int32
	values          []float64
	scores          []float32
	qualities       []telemetry.Quality
}

// plainBytesMax bounds what one page or one list of device updates may
// decompress to: 100,000 devices with 2 KiB of attributes each.
const plainBytesMax = 256 << 20

func newZstdDecoder() (*zstd.Decoder, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(plainBytesMax))
	if err != nil {
		return nil, fmt.Errorf("make zstd decoder: %w", err)
	}
	return z, nil
}

// guard turns a panic of a decoding library on hostile input into an error.
// Damage cannot get that far (checksums), a forged file could.
func guard(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("decode: %v", p)
	}
}

// page reads and decompresses one page; the result is d.plain.
func (d *decoder) page(s *segmentFile, at pagePlace) (*format.PageHeader, error) {
	b, err := s.read(at.at, int64(at.size), &d.raw)
	if err != nil {
		return nil, err
	}
	r := new(thrift.CompactProtocol).NewReaderFromBytes(b)
	h := new(format.PageHeader)
	if err := thrift.NewDecoder(r).Decode(h); err != nil {
		return nil, fmt.Errorf("decode page header: %w", err)
	}
	b = b[r.BytesRead():]
	if int(h.CompressedPageSize) != len(b) {
		return nil, fmt.Errorf("page header says %d bytes, the index %d", h.CompressedPageSize, len(b))
	}
	if err := d.decompress(b, int64(h.UncompressedPageSize)); err != nil {
		return nil, err
	}
	return h, nil
}

// decompress fills d.plain with n bytes; the frame must say the same figure, so
// that nothing takes more memory than its header admits.
func (d *decoder) decompress(b []byte, n int64) error {
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	if n < 0 || n > plainBytesMax || !h.HasFCS || h.FrameContentSize != uint64(n) {
		return fmt.Errorf("decompress: frame of %d bytes, expected %d", h.FrameContentSize, n)
	}
	var err error
	if d.plain, err = d.zstd.DecodeAll(b, slices.Grow(d.plain[:0], int(n))); err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	if int64(len(d.plain)) != n {
		return fmt.Errorf("decompress: %d bytes, expected %d", len(d.plain), n)
	}
	return nil
}

// data reads a data page of a column and returns its encoding.
func (d *decoder) data(s *segmentFile, g *rowGroup, c column, page int) (format.Encoding, error) {
	h, err := d.page(s, g.offsets[c][page])
	if err != nil {
		return 0, err
	}
	if h.Type != format.DataPage || !h.DataPageHeader.Valid || h.DataPageHeader.V.NumValues != g.pages[page].rows {
		return 0, fmt.Errorf("page type %v with %d values", h.Type, h.DataPageHeader.V.NumValues)
	}
	return h.DataPageHeader.V.Encoding, nil
}

// timestamps reads a page of time or received into dst.
func (d *decoder) timestamps(s *segmentFile, g *rowGroup, c column, page int, dst []int64) (_ []int64, err error) {
	defer guard(&err)
	enc, err := d.data(s, g, c, page)
	if err != nil {
		return dst, err
	}
	n := int(g.pages[page].rows)
	switch enc {
	case format.Plain:
		return copyPlain(dst, d.plain, n)
	case format.DeltaBinaryPacked:
		if have, ok := deltaCount(d.plain); !ok || have != uint64(n) {
			return dst, fmt.Errorf("page of %d deltas, expected %d", have, n)
		}
		return d.delta.DecodeInt64(dst, d.plain)
	default:
		return dst, fmt.Errorf("encoding %v of timestamps", enc)
	}
}

// deltaCount is the number of values that a DELTA_BINARY_PACKED page announces.
func deltaCount(b []byte) (uint64, bool) {
	var v uint64
	for range 3 { // block size, miniblocks, count
		var n int
		if v, n = binary.Uvarint(b); n <= 0 {
			return 0, false
		}
		b = b[n:]
	}
	return v, true
}

func copyPlain[T int32 | int64 | float32 | float64](dst []T, b []byte, n int) ([]T, error) {
	var one T
	if len(b) != n*int(unsafe.Sizeof(one)) {
		return dst, fmt.Errorf("plain page of %d bytes for %d values", len(b), n)
	}
	dst = slices.Grow(dst[:0], n)[:n]
	copy(bytesOf(dst), b)
	return dst, nil
}

// dictNumbers reads a page of dictionary numbers, all below limit.
func (d *decoder) dictNumbers(s *segmentFile, g *rowGroup, c column, page int, limit int, dst []int32) (_ []int32, err error) {
	defer guard(&err)
	enc, err := d.data(s, g, c, page)
	if err != nil {
		return dst, err
	}
	if enc != format.RLEDictionary {
		return dst, fmt.Errorf("encoding %v of dictionary numbers", enc)
	}
	return d.unpackNumbers(dst, int(g.pages[page].rows), limit)
}

func (d *decoder) unpackNumbers(dst []int32, n, limit int) ([]int32, error) {
	if have := runTotal(d.plain); have < n || have >= n+8 {
		return dst, fmt.Errorf("page of %d numbers, expected %d", have, n)
	}
	dst, err := d.dict.DecodeInt32(dst[:0], d.plain)
	if err != nil {
		return dst, err
	}
	if len(dst) < n {
		return dst, fmt.Errorf("page of %d numbers, expected %d", len(dst), n)
	}
	dst = dst[:n] // groups of eight are padded
	for _, v := range dst {
		if uint32(v) >= uint32(limit) {
			return dst, fmt.Errorf("number %d in a dictionary of %d", v, limit)
		}
	}
	return dst, nil
}

// runTotal counts the numbers of an RLE_DICTIONARY page from its run headers, -1
// when they do not fit: the library would take memory for whatever they announce.
func runTotal(b []byte) int {
	if len(b) == 0 || b[0] > 32 {
		return -1
	}
	width := uint64(b[0])
	total := uint64(0)
	for b = b[1:]; len(b) > 0; {
		head, n := binary.Uvarint(b)
		if n <= 0 || head > 2*pageRowsMax {
			return -1
		}
		count, size := head>>1, (width+7)/8
		if head&1 == 1 { // bit-packed groups of eight
			count, size = 8*(head>>1), width*(head>>1)
		}
		if size > uint64(len(b)-n) {
			return -1
		}
		total, b = total+count, b[n+int(size):]
	}
	return int(total)
}

// dictionary reads the dictionary page of a column into d.plain.
func (d *decoder) dictionary(s *segmentFile, g *rowGroup, c column) (entries int, err error) {
	h, err := d.page(s, g.dict[c])
	if err != nil {
		return 0, err
	}
	if h.Type != format.DictionaryPage || !h.DictionaryPageHeader.Valid || h.DictionaryPageHeader.V.NumValues < 0 {
		return 0, fmt.Errorf("page type %v is no dictionary", h.Type)
	}
	return int(h.DictionaryPageHeader.V.NumValues), nil
}

// strings reads a dictionary of strings.
func (d *decoder) strings(s *segmentFile, g *rowGroup, c column) (_ []string, err error) {
	defer guard(&err)
	n, err := d.dictionary(s, g, c)
	if err != nil {
		return nil, err
	}
	all := string(d.plain) // one allocation, the entries share it
	var list []string
	for at := 0; at < len(all); {
		if at+4 > len(all) {
			return nil, errors.New("dictionary ends inside of an entry")
		}
		size := int(binary.LittleEndian.Uint32(d.plain[at:]))
		at += 4
		if size < 0 || size > len(all)-at {
			return nil, errors.New("dictionary ends inside of an entry")
		}
		list = append(list, all[at:at+size])
		at += size
	}
	if len(list) != n {
		return nil, fmt.Errorf("dictionary of %d entries, its header says %d", len(list), n)
	}
	return list, nil
}

// reals reads a page of values or scores into dst. dict is the group's
// dictionary when the column has one.
func reals[T float32 | float64](d *decoder, s *segmentFile, g *rowGroup, c column, page int, dict, dst []T) (_ []T, err error) {
	defer guard(&err)
	enc, err := d.data(s, g, c, page)
	if err != nil {
		return dst, err
	}
	n := int(g.pages[page].rows)
	switch enc {
	case format.Plain:
		return copyPlain(dst, d.plain, n)
	case format.RLEDictionary:
		if d.numbers, err = d.unpackNumbers(d.numbers, n, len(dict)); err != nil {
			return dst, err
		}
		dst = slices.Grow(dst[:0], n)[:n]
		for i, k := range d.numbers {
			dst[i] = dict[k]
		}
		return dst, nil
	default:
		return dst, fmt.Errorf("encoding %v of numbers", enc)
	}
}

// realDictionary reads the dictionary of values or scores, nil without one.
func realDictionary[T float32 | float64](d *decoder, s *segmentFile, g *rowGroup, c column) (_ []T, err error) {
	defer guard(&err)
	if g.dict[c].size == 0 {
		return nil, nil
	}
	n, err := d.dictionary(s, g, c)
	if err != nil {
		return nil, err
	}
	return copyPlain[T](nil, d.plain, n)
}

// qualityDictionary reads the dictionary of the quality column.
func (d *decoder) qualityDictionary(s *segmentFile, g *rowGroup) (_ []telemetry.Quality, err error) {
	defer guard(&err)
	n, err := d.dictionary(s, g, colQuality)
	if err != nil {
		return nil, err
	}
	list, err := copyPlain[int32](nil, d.plain, n)
	if err != nil {
		return nil, err
	}
	dict := make([]telemetry.Quality, n)
	for i, q := range list {
		if q < 0 || q > 255 {
			return nil, fmt.Errorf("quality %d", q)
		}
		dict[i] = telemetry.Quality(q)
	}
	return dict, nil
}

func (d *decoder) quality(s *segmentFile, g *rowGroup, page int, dict []telemetry.Quality) ([]telemetry.Quality, error) {
	var err error
	if d.numbers, err = d.dictNumbers(s, g, colQuality, page, len(dict), d.numbers); err != nil {
		return nil, err
	}
	d.qualities = slices.Grow(d.qualities[:0], len(d.numbers))[:len(d.numbers)]
	for i, k := range d.numbers {
		d.qualities[i] = dict[k]
	}
	return d.qualities, nil
}
