package parquet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/sluice-iot/sluice/telemetry"
)

// Export gives a peer what it lacks of a range: every file that lies inside of it
// as it is, of a compacted file that reaches beyond it the flushes inside as files
// of their own, and what has expired as a segment without a file (nil reader). The
// peer Installs them in this order. An error of send ends it.
func (s *Store) Export(ctx context.Context, shard telemetry.ShardID, want Range, send func(Segment, io.Reader) error) error {
	done, err := s.begin()
	if err != nil {
		return err
	}
	defer done()
	defer s.retired.enter()()
	for _, seg := range s.index.segments(shard) {
		if seg.To <= want.From || seg.From >= want.To {
			continue
		}
		if err := s.exportOne(ctx, &seg, want, send); err != nil {
			return fmt.Errorf("export segment %v of shard %d: %w", seg.Range(), shard, err)
		}
	}
	return nil
}

func (s *Store) exportOne(ctx context.Context, seg *Segment, want Range, send func(Segment, io.Reader) error) error {
	if seg.Expired {
		clipped := *seg
		clipped.From, clipped.To, clipped.Bytes = max(seg.From, want.From), min(seg.To, want.To), 0
		return send(clipped, nil)
	}
	if want.contains(seg.Range()) {
		raw, err := s.openRaw(ctx, seg)
		if err != nil {
			return err
		}
		defer func() { _ = raw.Close() }() // read only
		return send(*seg, io.NewSectionReader(raw, 0, seg.Bytes))
	}
	f, err := s.file(ctx, seg)
	if err != nil {
		return err
	}
	defer f.release()
	enc, err := s.encoder()
	if err != nil {
		return err
	}
	defer s.putEncoder(enc)
	return s.extract(ctx, seg, f, want, func(b *telemetry.Batch, one Segment) error {
		file, err := enc.encode(b, &metadata{Segment: one, Namespace: s.cfg.Namespace})
		if err != nil {
			return err
		}
		one.Bytes = int64(len(file))
		return send(one, bytes.NewReader(file))
	})
}

// extractRowsMax bounds the rows of the flushes that are taken out of a file in
// one pass over it: 40 MiB.
const extractRowsMax = 1 << 20

// extract gives the flushes of a file that lie inside a range, in their order,
// each as the batch that it was and verified by its digest.
func (s *Store) extract(ctx context.Context, seg *Segment, f *segmentFile, want Range, give func(*telemetry.Batch, Segment) error) error {
	t, err := (&decoder{zstd: s.zstd}).parts(f)
	if err != nil {
		return s.corrupt(seg, err)
	}
	for lo := 0; lo < len(t.parts); {
		if !want.contains(Range{From: t.parts[lo].From, To: t.parts[lo].To}) {
			lo++
			continue
		}
		rows, hi := uint64(0), lo
		for hi < len(t.parts) && t.parts[hi].To <= want.To && (hi == lo || rows+t.parts[hi].Rows <= extractRowsMax) {
			rows += t.parts[hi].Rows
			hi++
		}
		batches, err := s.extractParts(ctx, f, lo, hi)
		if err != nil {
			return s.damage(ctx, seg, err)
		}
		for i, b := range batches {
			if err := give(b, t.parts[lo+i].segment(seg.Shard)); err != nil {
				return err
			}
		}
		lo = hi
	}
	return nil
}

// extractParts decodes parts [lo, hi) of a file.
func (s *Store) extractParts(ctx context.Context, f *segmentFile, lo, hi int) ([]*telemetry.Batch, error) {
	c, err := newCursor(f, &decoder{zstd: s.zstd})
	if err != nil {
		return nil, err
	}
	builders := make([]batchBuilder, hi-lo)
	for i := range builders {
		builders[i].sensors.index = map[string]uint32{}
	}
	for {
		ok, err := c.ready(ctx)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		row := c.row
		p, err := c.take()
		if err != nil {
			return nil, err
		}
		if p >= lo && p < hi {
			builders[p-lo].add(c.device(row), c.sensor(row), c.at(row))
		}
	}
	batches := make([]*telemetry.Batch, hi-lo)
	for i := range batches {
		p := &c.table.parts[lo+i]
		b := builders[i].batch()
		b.Namespace, b.Shard, b.From, b.To, b.Messages = s.cfg.Namespace, f.meta.Shard, p.From, p.To, p.Messages
		if err := c.dec.extraOf(f, p, b); err != nil {
			return nil, err
		}
		if have := Digest(b); have != p.Digest {
			return nil, &DigestError{Shard: b.Shard, From: p.From, To: p.To, Have: have, Want: p.Digest}
		}
		batches[i] = b
	}
	return batches, nil
}

// batchBuilder gathers the rows of one flush in their order.
type batchBuilder struct {
	rows    []telemetry.Row
	devices []string
	sensors dictionaryOf
}

func (g *batchBuilder) add(device, sensor string, r telemetry.Row) {
	if n := len(g.devices); n == 0 || g.devices[n-1] != device {
		g.devices = append(g.devices, device)
	}
	r.Device, r.Sensor = uint32(len(g.devices)-1), g.sensors.of(sensor)
	g.rows = append(g.rows, r)
}

func (d *dictionaryOf) of(s string) uint32 {
	n, ok := d.index[s]
	if !ok {
		n = uint32(len(d.names))
		d.index[s] = n
		d.names = append(d.names, s)
	}
	return n
}

// sort puts the names in order and gives every number its new one.
func (d *dictionaryOf) sort() (names []string, rank []uint32) {
	names = slices.Sorted(slices.Values(d.names))
	rank = make([]uint32, len(names))
	for r, name := range names {
		rank[d.index[name]] = uint32(r)
	}
	return names, rank
}

func (g *batchBuilder) batch() *telemetry.Batch {
	names, rank := g.sensors.sort()
	for i := range g.rows {
		g.rows[i].Sensor = rank[g.rows[i].Sensor]
	}
	return &telemetry.Batch{Devices: g.devices, Sensors: names, Rows: g.rows}
}
