package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
)

// Sizes of the format; FORMAT.md has the drawing.
const (
	// headerBytes is where records start: a page of its own, so that no write of
	// a record ever rewrites the sector that holds the header.
	headerBytes = 4096
	// headerUsed is the part of the header that means something; one sector.
	headerUsed = 512

	// A record's header has numbers of variable length, since blocks of one or two
	// messages are hardly longer than a header of fixed fields: 18 to 27 bytes
	// instead of 44.
	recordFixedBytes  = 14 // key, check, length, kind, raft's type
	recordHeaderMin   = recordFixedBytes + 4
	recordHeaderMax   = recordFixedBytes + binary.MaxVarintLen32 + 3*binary.MaxVarintLen64
	recordLengthStart = 8 // from here on a record is covered by its checksum
	recordKindStart   = 12

	// recordAlign is where a record may start; it makes the search for records
	// behind a damaged one four times cheaper.
	recordAlign = 4

	formatVersion = 2

	// headerWrapped is where the wrapped data key starts in the header.
	headerWrapped = 320

	// identityBytesMax bounds the node and cluster names in a segment header.
	identityBytesMax = 128
)

var magic = [8]byte{'S', 'L', 'U', 'I', 'C', 'W', 'A', 'L'}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordType says what a record does to its group.
type recordType uint8

// The record types; the numbers are on disk.
const (
	typeEntry      recordType = 1  // a raft entry, last index + 1
	typeRelocated  recordType = 2  // a copy of an entry, which replaces nothing but its place
	typeTruncate   recordType = 3  // entries with index >= Index are void (conflict)
	typePrefix     recordType = 4  // raft needs nothing <= Index, body: floor
	typeDetach     recordType = 5  // raft forgot every entry, body: floor
	typeStable     recordType = 6  // a key of the StableStore
	typeCheckpoint recordType = 7  // state of all groups; first record of a segment
	typeMarker     recordType = 8  // proves that the commit before it was synced
	typeSeal       recordType = 9  // last record of a full segment
	typeRemove     recordType = 10 // the group is gone
)

// Flags of a record, in the upper half of its kind; 4 is not used.
const (
	flagLast        = 1 << 0 // last record of its group commit
	flagCommitIndex = 1 << 1 // body begins with the raft commit index
	flagExtensions  = 1 << 3 // then raft's Extensions with their length

	kindTypes = 0x0f // the lower half is the type
	kindFlags = 4    // bits before the flags
)

// record is one record in memory. Its body is borrowed from whatever buffer it
// was decoded from.
type record struct {
	group   uint32
	commit  uint64 // number of the group commit
	index   uint64
	term    uint64
	typ     recordType
	flags   uint8
	logType uint8
	body    []byte
	size    int // of the record in the clear, without padding, once it was read
}

// headerSize is how many bytes the record has before its body.
func (r *record) headerSize() int {
	return recordFixedBytes + uvarintSize(uint64(r.group)) + uvarintSize(r.commit) + uvarintSize(r.index) + uvarintSize(r.term)
}

func uvarintSize(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// segmentKey binds records to their log and segment: seed starts every checksum
// in the segment, so that bytes of its earlier life never verify, and is also
// written in front of each record as a cheap filter.
type segmentKey uint32

func newSegmentKey(logID [16]byte, seq uint64) segmentKey {
	var b [24]byte
	copy(b[:], logID[:])
	binary.LittleEndian.PutUint64(b[16:], seq)
	k := segmentKey(crc32.Checksum(b[:], castagnoli))
	if k == 0 {
		k = 1 // a zeroed sector must not look like the start of a record
	}
	return k
}

func align(n int) int { return (n + recordAlign - 1) &^ (recordAlign - 1) }

// appendRecord encodes r behind dst, padded to the next record's start.
func appendRecord(dst []byte, key segmentKey, r *record) []byte {
	start := len(dst)
	dst = appendHeader(dst, key, r, len(r.body))
	dst = append(dst, r.body...)
	return sealRecord(dst, start, key)
}

// appendHeader encodes the header of a record whose body has size bytes. The
// checksum is still to come.
func appendHeader(dst []byte, key segmentKey, r *record, size int) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(key))
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(r.headerSize()+size))
	dst = append(dst, byte(r.typ)|r.flags<<kindFlags, r.logType)
	dst = binary.AppendUvarint(dst, uint64(r.group))
	dst = binary.AppendUvarint(dst, r.commit)
	dst = binary.AppendUvarint(dst, r.index)
	return binary.AppendUvarint(dst, r.term)
}

// sealRecord puts the checksum into the record that starts at start and reaches
// to the end of dst, and pads dst.
func sealRecord(dst []byte, start int, key segmentKey) []byte {
	binary.LittleEndian.PutUint32(dst[start+4:], checksum(key, dst[start:]))
	for len(dst)%recordAlign != start%recordAlign {
		dst = append(dst, 0)
	}
	return dst
}

func checksum(key segmentKey, rec []byte) uint32 {
	return crc32.Update(uint32(key), castagnoli, rec[recordLengthStart:])
}

// Reasons why bytes are no record.
var (
	errNoRecord    = errors.New("no record here")
	errBadLength   = errors.New("record length is impossible")
	errBadChecksum = errors.New("checksum mismatch")
)

// recordSize reads the length of the record at the start of b, which holds at
// least the smallest record header. limit is the room left in the segment.
func recordSize(b []byte, key segmentKey, limit int64) (int, error) {
	if binary.LittleEndian.Uint32(b) != uint32(key) {
		return 0, errNoRecord
	}
	n := int64(binary.LittleEndian.Uint32(b[recordLengthStart:]))
	if n < recordHeaderMin || n > limit {
		return 0, errBadLength
	}
	return int(n), nil
}

// decodeRecord reads the record that fills b exactly.
func decodeRecord(b []byte, key segmentKey) (record, error) {
	if len(b) < recordHeaderMin {
		return record{}, errBadLength
	}
	if n, err := recordSize(b, key, int64(len(b))); err != nil {
		return record{}, err
	} else if n != len(b) {
		return record{}, errBadLength
	}
	if checksum(key, b) != binary.LittleEndian.Uint32(b[4:]) {
		return record{}, errBadChecksum
	}
	r, n := readHeader(b)
	if n == 0 {
		return record{}, errBadLength
	}
	return r, nil
}

// parseRecord reads the fields of a record that was decoded before.
func parseRecord(b []byte) record {
	r, _ := readHeader(b)
	return r
}

// readHeader reads a record of at least recordHeaderMin bytes; n is where its body
// begins, 0 when its numbers are not as appendHeader writes them.
func readHeader(b []byte) (r record, n int) {
	r.typ, r.flags, r.logType = recordType(b[recordKindStart]&kindTypes), b[recordKindStart]>>kindFlags, b[recordKindStart+1]
	n = recordFixedBytes
	var group uint64
	for _, v := range []*uint64{&group, &r.commit, &r.index, &r.term} {
		size := 0
		if *v, size = binary.Uvarint(b[n:]); size <= 0 || size != uvarintSize(*v) {
			return record{}, 0
		}
		n += size
	}
	if group > math.MaxUint32 {
		return record{}, 0
	}
	r.group, r.size, r.body = uint32(group), len(b), b[n:len(b):len(b)]
	return r, n
}

// errVersion is a segment of another version of the format: no damage.
var errVersion = errors.New("start the program that wrote it, or give the node an empty data directory so that its peers rebuild it")

// segmentHeader is the first page of a segment file.
type segmentHeader struct {
	seq       uint64
	bytes     int64 // size of the file
	created   int64 // microseconds since the epoch, for people only
	namespace uint32
	logID     [16]byte
	node      string
	cluster   string
	wrapped   wrappedKey // of an encrypted segment
}

func (h *segmentHeader) encode() []byte {
	b := make([]byte, 0, headerUsed)
	b = append(b, magic[:]...)
	b = append(b, formatVersion, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, h.namespace)
	b = binary.LittleEndian.AppendUint64(b, h.seq)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.bytes))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.created))
	b = append(b, h.logID[:]...)
	b = append(append(b, byte(len(h.node))), h.node...)
	b = append(append(b, byte(len(h.cluster))), h.cluster...)
	b = b[:headerUsed]
	w := b[:headerWrapped]
	w = append(w, h.wrapped.algorithm, 0, 0, 0, 0, 0, 0, 0)
	w = append(append(append(w, h.wrapped.keyID[:]...), h.wrapped.nonce[:]...), h.wrapped.data[:]...)
	clear(w[len(w):headerUsed])
	binary.LittleEndian.PutUint32(b[headerUsed-4:], crc32.Checksum(b[:headerUsed-4], castagnoli))
	return b
}

// decodeHeader reads a segment header from at least headerUsed bytes.
func decodeHeader(b []byte) (segmentHeader, error) {
	if len(b) < headerUsed {
		return segmentHeader{}, errors.New("header is cut short")
	}
	b = b[:headerUsed]
	if [8]byte(b) != magic {
		return segmentHeader{}, errors.New("no log segment: wrong magic bytes")
	}
	if crc32.Checksum(b[:headerUsed-4], castagnoli) != binary.LittleEndian.Uint32(b[headerUsed-4:]) {
		return segmentHeader{}, errors.New("header: checksum mismatch")
	}
	if b[8] != formatVersion {
		return segmentHeader{}, fmt.Errorf("format version %d, this program reads %d: %w", b[8], formatVersion, errVersion)
	}
	h := segmentHeader{
		namespace: binary.LittleEndian.Uint32(b[12:]),
		seq:       binary.LittleEndian.Uint64(b[16:]),
		created:   int64(binary.LittleEndian.Uint64(b[32:])),
		logID:     [16]byte(b[40:]),
	}
	size := binary.LittleEndian.Uint64(b[24:])
	if size < headerBytes || size > math.MaxUint32 {
		return segmentHeader{}, fmt.Errorf("header: segment size %d is impossible", size)
	}
	h.bytes = int64(size)
	w := b[headerWrapped:]
	h.wrapped.algorithm = w[0]
	copy(h.wrapped.keyID[:], w[8:])
	copy(h.wrapped.nonce[:], w[8+keyIDBytes:])
	copy(h.wrapped.data[:], w[8+keyIDBytes+nonceBytes:])
	rest := b[56:headerWrapped]
	var err error
	if h.node, rest, err = takeName(rest); err != nil {
		return segmentHeader{}, err
	}
	if h.cluster, _, err = takeName(rest); err != nil {
		return segmentHeader{}, err
	}
	return h, nil
}

func takeName(b []byte) (string, []byte, error) {
	n := int(b[0])
	if n > identityBytesMax || 1+n >= len(b) {
		return "", nil, errors.New("header: name is too long")
	}
	return string(b[1 : 1+n]), b[1+n:], nil
}

// segmentName is the file name of a segment.
func segmentName(seq uint64) string { return fmt.Sprintf("%016x.wal", seq) }

// parseSegmentName is the inverse of segmentName.
func parseSegmentName(name string) (uint64, bool) {
	var seq uint64
	if len(name) != 20 || name[16:] != ".wal" {
		return 0, false
	}
	for _, c := range []byte(name[:16]) {
		switch {
		case c >= '0' && c <= '9':
			seq = seq<<4 | uint64(c-'0')
		case c >= 'a' && c <= 'f':
			seq = seq<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return seq, true
}
