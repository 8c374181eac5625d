package parquet

import (
	"fmt"
	"math"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// compactPartsMax bounds the parts of one file, and with them the table of parts
// (60 bytes each) and what verifying holds in memory (2 KiB each).
const compactPartsMax = 4096

// part is one flush inside of a file: the range that replicas agree about, with
// the digest they agree on. A file that was not compacted is one part itself.
type part struct {
	From, To         uint64
	Rows, Messages   uint64
	Digest           [16]byte
	MinTime, MaxTime int64
	MaxReceived      int64
	extra            pieceOfFile // device updates and anomalies; none when empty
}

// pieceOfFile is a zstd frame in a file's body.
type pieceOfFile struct {
	at, size, raw int64
}

// lineage says of every row of a row group which part it belongs to: runs of
// (number of the part, rows), two varints each.
type lineage = pieceOfFile

// partsTable is what a compacted file keeps behind its page indexes.
type partsTable struct {
	parts []part
	lines []lineage // one per row group
}

func (p *part) segment(shard telemetry.ShardID) Segment {
	return Segment{
		Shard: shard, From: p.From, To: p.To, Rows: p.Rows, Messages: p.Messages, Digest: p.Digest,
		MinTime: p.MinTime, MaxTime: p.MaxTime, MaxReceived: p.MaxReceived, Parts: 1,
	}
}

func (t *partsTable) append(b []byte) []byte {
	piece := func(p pieceOfFile) {
		b = wire.AppendUint(b, uint64(p.at))
		b = wire.AppendUint(b, uint64(p.size))
		b = wire.AppendUint(b, uint64(p.raw))
	}
	b = wire.AppendUint(b, uint64(len(t.parts)))
	b = wire.AppendUint(b, t.parts[0].From)
	for i := range t.parts {
		p := &t.parts[i]
		for _, v := range []uint64{p.To - p.From, p.Rows, p.Messages} {
			b = wire.AppendUint(b, v)
		}
		b = append(b, p.Digest[:]...)
		for _, v := range []int64{p.MinTime, p.MaxTime, p.MaxReceived} {
			b = wire.AppendInt(b, v)
		}
		piece(p.extra)
	}
	b = wire.AppendUint(b, uint64(len(t.lines)))
	for _, l := range t.lines {
		piece(l)
	}
	return b
}

func decodePartsTable(b []byte) (*partsTable, error) {
	r := wire.NewReader(b)
	piece := func() pieceOfFile {
		p := pieceOfFile{at: int64(r.Uint()), size: int64(r.Uint()), raw: int64(r.Uint())}
		if p.at < 0 || p.size < 0 || p.raw < 0 || p.at > math.MaxInt64-p.size {
			p = pieceOfFile{size: -1} // refused by the reader
		}
		return p
	}
	t := &partsTable{}
	n := r.Count(25)
	from := r.Uint()
	for range n {
		p := part{From: from, To: from + r.Uint(), Rows: r.Uint(), Messages: r.Uint()}
		copy(p.Digest[:], r.Bytes(len(p.Digest)))
		p.MinTime, p.MaxTime, p.MaxReceived = r.Int(), r.Int(), r.Int()
		p.extra = piece()
		if p.To <= p.From {
			return nil, fmt.Errorf("part %d has the range (%d, %d]", len(t.parts), p.From, p.To)
		}
		t.parts = append(t.parts, p)
		from = p.To
	}
	for range r.Count(3) {
		t.lines = append(t.lines, piece())
	}
	if r.Err() != nil || r.Len() > 0 {
		return nil, fmt.Errorf("table of parts: %d bytes are left, %w", r.Len(), r.Err())
	}
	return t, nil
}

// parts reads a file's table; of a file that was not compacted, the one part it is.
func (d *decoder) parts(s *segmentFile) (_ *partsTable, err error) {
	defer guard(&err)
	m := s.meta
	if m.Parts == 1 {
		p := part{
			From: m.From, To: m.To, Rows: m.Rows, Messages: m.Messages, Digest: m.Digest,
			MinTime: m.MinTime, MaxTime: m.MaxTime, MaxReceived: m.MaxReceived,
		}
		if m.ExtraBytes > 0 {
			p.extra = pieceOfFile{at: m.ExtraOffset, size: m.ExtraBytes, raw: m.ExtraRawBytes}
		}
		return &partsTable{parts: []part{p}}, nil
	}
	if err := d.piece(s, pieceOfFile{at: m.PartsOffset, size: m.PartsBytes, raw: m.PartsRawBytes}); err != nil {
		return nil, fmt.Errorf("table of parts: %w", err)
	}
	t, err := decodePartsTable(d.plain)
	if err != nil {
		return nil, err
	}
	return t, t.check(s)
}

// check compares the table with what the footer says.
func (t *partsTable) check(s *segmentFile) error {
	m := s.meta
	if len(t.parts) != m.Parts || len(t.lines) != len(s.groups) {
		return fmt.Errorf("table of %d parts and %d row groups, expected %d and %d", len(t.parts), len(t.lines), m.Parts, len(s.groups))
	}
	sum := Segment{Shard: m.Shard, From: t.parts[0].From, To: t.parts[len(t.parts)-1].To, Parts: m.Parts, Bytes: m.Bytes}
	sum.Digest = partsDigest(m.Namespace, m.Shard, t.parts)
	for i := range t.parts {
		sum.add(&t.parts[i])
	}
	if sum != m.Segment {
		return fmt.Errorf("its parts give %+v, expected %+v", sum, m.Segment)
	}
	return nil
}

// add counts a part in.
func (s *Segment) add(p *part) {
	if p.Rows > 0 {
		if s.Rows == 0 {
			s.MinTime, s.MaxTime, s.MaxReceived = p.MinTime, p.MaxTime, p.MaxReceived
		}
		s.MinTime, s.MaxTime, s.MaxReceived = min(s.MinTime, p.MinTime), max(s.MaxTime, p.MaxTime), max(s.MaxReceived, p.MaxReceived)
	}
	s.Rows += p.Rows
	s.Messages += p.Messages
}

// piece reads and decompresses a frame into d.plain.
func (d *decoder) piece(s *segmentFile, p pieceOfFile) error {
	raw, err := s.read(p.at, p.size, &d.raw)
	if err != nil {
		return err
	}
	return d.decompress(raw, p.raw)
}

// extraOf decodes the device updates and anomalies of a part into b.
func (d *decoder) extraOf(s *segmentFile, p *part, b *telemetry.Batch) (err error) {
	defer guard(&err)
	if p.extra.size == 0 {
		return nil
	}
	if err := d.piece(s, p.extra); err != nil {
		return fmt.Errorf("device updates: %w", err)
	}
	return unmarshalExtra(d.plain, b)
}
