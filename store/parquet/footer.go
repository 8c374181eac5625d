package parquet

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
	"github.com/zeebo/xxh3"

	"github.com/sluice-iot/sluice/telemetry"
)

const (
	magic         = "PAR1"
	tailBytes     = 8 // footer length and magic
	formatVersion = 3
	// formatLeast is the earliest that is read: its pages are shorter.
	formatLeast = 2

	// blockBytes is the unit of the file's checksums: reading one page verifies
	// one to three blocks (1 us each), and 1 GiB of file needs 350 KiB of footer.
	blockBytes = 16 << 10

	// footerBytesMax refuses absurd lengths before memory is taken. 256 row
	// groups of 7 columns need about 400 KiB.
	footerBytesMax = 64 << 20
)

// The keys of the file's metadata; FORMAT.md says what they hold.
const (
	keyFormat    = "sluice.format"
	keyNamespace = "sluice.namespace"
	keyShard     = "sluice.shard"
	keyFrom      = "sluice.from"
	keyTo        = "sluice.to"
	keyMessages  = "sluice.messages"
	keyDigest    = "sluice.digest"
	keyMinTime   = "sluice.min_time"
	keyMaxTime   = "sluice.max_time"
	keyReceived  = "sluice.max_received"
	keyParts     = "sluice.parts"
	keyUnits     = "sluice.units"
	keyExtra     = "sluice.extra"
	keyBlocks    = "sluice.blocks"
	keySeal      = "sluice.seal"
)

const unitsText = "time, received: microseconds since 1970-01-01 UTC; value: as the device sent it; score: 0..1, 1 is the most unusual; quality: bit set, 0 is good"

// sealPattern is how the seal's entry begins in the compact protocol: the key,
// field 2 of type binary, length 16.
const (
	sealPattern = keySeal + "\x18\x10"
	sealDigits  = 16
)

// metadata is what the footer says in Sluice's own entries.
type metadata struct {
	Segment
	Namespace     uint32
	ExtraOffset   int64
	ExtraBytes    int64 // 0: the batch has neither updates nor anomalies
	ExtraRawBytes int64
	PartsOffset   int64 // of the table of parts, see Parts
	PartsBytes    int64
	PartsRawBytes int64
	Body          int64    // bytes before the footer
	Blocks        []uint32 // CRC-32C of each block of the body
}

func (m *metadata) entries() thrift.Slice[format.KeyValue] {
	blocks := make([]byte, 0, 4*len(m.Blocks))
	for _, sum := range m.Blocks {
		blocks = binary.LittleEndian.AppendUint32(blocks, sum)
	}
	u := func(v uint64) string { return strconv.FormatUint(v, 10) }
	i := func(v int64) string { return strconv.FormatInt(v, 10) }
	return thrift.Slice[format.KeyValue]{
		{Key: keyFormat, Value: u(formatVersion)},
		{Key: keyNamespace, Value: u(uint64(m.Namespace))},
		{Key: keyShard, Value: u(uint64(m.Shard))},
		{Key: keyFrom, Value: u(m.From)},
		{Key: keyTo, Value: u(m.To)},
		{Key: keyMessages, Value: u(m.Messages)},
		{Key: keyDigest, Value: hex.EncodeToString(m.Digest[:])},
		{Key: keyMinTime, Value: i(m.MinTime)},
		{Key: keyMaxTime, Value: i(m.MaxTime)},
		{Key: keyReceived, Value: i(m.MaxReceived)},
		{Key: keyUnits, Value: unitsText},
		{Key: keyParts, Value: strconv.Itoa(m.Parts) + " " + i(m.PartsOffset) + " " + i(m.PartsBytes) + " " + i(m.PartsRawBytes)},
		{Key: keyExtra, Value: i(m.ExtraOffset) + " " + i(m.ExtraBytes) + " " + i(m.ExtraRawBytes)},
		{Key: keyBlocks, Value: base64.StdEncoding.EncodeToString(blocks)},
		{Key: keySeal, Value: strings.Repeat("0", sealDigits)}, // last: sealAt searches backwards
	}
}

// appendFooter closes a file whose body is complete and described by m.
func appendFooter(file []byte, m *metadata, groups []format.RowGroup) ([]byte, error) {
	footer, err := thrift.Marshal(new(thrift.CompactProtocol), &format.FileMetaData{
		Version: 2, Schema: schemaElements(), NumRows: int64(m.Rows), RowGroups: groups,
		KeyValueMetadata: m.entries(), CreatedBy: "sluice", ColumnOrders: columnOrders(),
	})
	if err != nil {
		return nil, fmt.Errorf("encode footer: %w", err)
	}
	at, err := sealAt(footer)
	if err != nil {
		return nil, err
	}
	copy(footer[at:], seal(footer, at))
	file = append(file, footer...)
	file = binary.LittleEndian.AppendUint32(file, uint32(len(footer)))
	return append(file, magic...), nil
}

// blockSums takes the checksums of a body that comes in pieces.
type blockSums struct {
	sums []uint32
	fill int // bytes in the block at hand
	sum  uint32
}

func (s *blockSums) add(b []byte) {
	for len(b) > 0 {
		n := min(blockBytes-s.fill, len(b))
		s.sum = crc32.Update(s.sum, crc32.MakeTable(crc32.Castagnoli), b[:n])
		if s.fill += n; s.fill == blockBytes {
			s.sums, s.fill, s.sum = append(s.sums, s.sum), 0, 0
		}
		b = b[n:]
	}
}

// end is the list for the footer.
func (s *blockSums) end() []uint32 {
	if s.fill > 0 {
		s.sums, s.fill, s.sum = append(s.sums, s.sum), 0, 0
	}
	return s.sums
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// seal is the checksum of the footer with its own digits left out.
func seal(footer []byte, at int) string {
	var h xxh3.Hasher
	_, _ = h.Write(footer[:at])
	_, _ = h.Write(footer[at+sealDigits:])
	return fmt.Sprintf("%016x", h.Sum64())
}

func sealAt(footer []byte) (int, error) {
	at := bytes.LastIndex(footer, []byte(sealPattern))
	if at < 0 || at+len(sealPattern)+sealDigits > len(footer) {
		return 0, errors.New("footer has no seal")
	}
	return at + len(sealPattern), nil
}

// footerLength reads the last bytes of a file of the given size.
func footerLength(tail []byte, size int64) (int64, error) {
	if len(tail) != tailBytes || string(tail[4:]) != magic {
		return 0, errors.New("file does not end as Parquet")
	}
	n := int64(binary.LittleEndian.Uint32(tail))
	if n > footerBytesMax || n+tailBytes+int64(len(magic)) > size {
		return 0, fmt.Errorf("footer length %d in a file of %d bytes", n, size)
	}
	return n, nil
}

// parseFooter verifies and decodes a footer that begins at offset body.
func parseFooter(footer []byte, body int64) (*format.FileMetaData, *metadata, error) {
	at, err := sealAt(footer)
	if err != nil {
		return nil, nil, err
	}
	if have := string(footer[at : at+sealDigits]); have != seal(footer, at) {
		return nil, nil, fmt.Errorf("footer's checksum is %s, its bytes give %s", have, seal(footer, at))
	}
	f := new(format.FileMetaData)
	if err := thrift.Unmarshal(new(thrift.CompactProtocol), footer, f); err != nil {
		return nil, nil, fmt.Errorf("decode footer: %w", err)
	}
	m, err := parseEntries(f.KeyValueMetadata)
	if err != nil {
		return nil, nil, err
	}
	if f.NumRows < 0 || int64(len(m.Blocks)) != (body+blockBytes-1)/blockBytes {
		return nil, nil, fmt.Errorf("footer names %d rows and %d blocks for a body of %d bytes", f.NumRows, len(m.Blocks), body)
	}
	if m.ExtraBytes < 0 || m.ExtraOffset < 0 || m.ExtraRawBytes < 0 || m.ExtraOffset+m.ExtraBytes > body {
		return nil, nil, errors.New("device updates lie outside of the file")
	}
	if m.Parts < 1 || m.Parts > compactPartsMax || (m.Parts > 1) != (m.PartsBytes > 0) ||
		m.PartsBytes < 0 || m.PartsOffset < 0 || m.PartsRawBytes < 0 || m.PartsOffset+m.PartsBytes > body {
		return nil, nil, fmt.Errorf("table of %d parts lies outside of the file", m.Parts)
	}
	m.Rows, m.Body = uint64(f.NumRows), body
	return f, m, nil
}

func parseEntries(list []format.KeyValue) (*metadata, error) {
	entries := make(map[string]string, len(list))
	for _, kv := range list {
		entries[kv.Key] = kv.Value
	}
	m := new(metadata)
	var errs []error
	u := func(key string, bits int) uint64 {
		n, err := strconv.ParseUint(entries[key], 10, bits)
		if err != nil {
			errs = append(errs, fmt.Errorf("footer entry %s: %w", key, err))
		}
		return n
	}
	i := func(key string) int64 {
		n, err := strconv.ParseInt(entries[key], 10, 64)
		if err != nil {
			errs = append(errs, fmt.Errorf("footer entry %s: %w", key, err))
		}
		return n
	}
	if v := entries[keyFormat]; v != strconv.Itoa(formatVersion) && v != strconv.Itoa(formatLeast) {
		return nil, fmt.Errorf("segment format %q is not known to this version: %w", v, errLater)
	}
	m.Namespace = uint32(u(keyNamespace, 32))
	m.Shard = telemetry.ShardID(u(keyShard, 32))
	m.From, m.To, m.Messages = u(keyFrom, 64), u(keyTo, 64), u(keyMessages, 64)
	m.MinTime, m.MaxTime, m.MaxReceived = i(keyMinTime), i(keyMaxTime), i(keyReceived)
	digest := make([]byte, hex.DecodedLen(len(entries[keyDigest]))) // of any length: hex.Decode does not check
	if n, err := hex.Decode(digest, []byte(entries[keyDigest])); err != nil || n != len(m.Digest) {
		errs = append(errs, fmt.Errorf("footer entry %s is not a digest", keyDigest))
	}
	copy(m.Digest[:], digest)
	if _, err := fmt.Sscanf(entries[keyExtra], "%d %d %d", &m.ExtraOffset, &m.ExtraBytes, &m.ExtraRawBytes); err != nil {
		errs = append(errs, fmt.Errorf("footer entry %s: %w", keyExtra, err))
	}
	if _, err := fmt.Sscanf(entries[keyParts], "%d %d %d %d", &m.Parts, &m.PartsOffset, &m.PartsBytes, &m.PartsRawBytes); err != nil {
		errs = append(errs, fmt.Errorf("footer entry %s: %w", keyParts, err))
	}
	blocks, err := base64.StdEncoding.DecodeString(entries[keyBlocks])
	if err != nil || len(blocks)%4 != 0 {
		errs = append(errs, fmt.Errorf("footer entry %s is not a list of checksums", keyBlocks))
	}
	for ; len(blocks) >= 4; blocks = blocks[4:] {
		m.Blocks = append(m.Blocks, binary.LittleEndian.Uint32(blocks))
	}
	return m, errors.Join(errs...)
}
