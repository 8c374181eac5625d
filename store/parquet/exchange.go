package parquet

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/sluice-iot/sluice/telemetry"
)

// Open gives the bytes of a segment's file. The caller closes the stream.
// ErrNotFound when there is no such segment.
func (s *Store) Open(shard telemetry.ShardID, from, to uint64) (io.ReadCloser, Segment, error) {
	done, err := s.begin()
	if err != nil {
		return nil, Segment{}, err
	}
	defer done()
	r := Range{From: from, To: to}
	seg, same, _ := s.index.find(shard, r)
	if !same || seg.Expired {
		return nil, Segment{}, fmt.Errorf("open segment %v of shard %d: %w", r, shard, ErrNotFound)
	}
	f, err := s.openRaw(context.Background(), &seg)
	if err != nil {
		return nil, Segment{}, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, 0, seg.Bytes), f}, seg, nil
}

// Install takes a peer's segment: seg as the peer's Open described it and its
// file's bytes. The file gets its name only after every block, the footer and
// the digest of the decoded rows have been verified against seg; what fails is
// a CorruptError or DigestError and leaves nothing. A range that is here with
// the same digest needs nothing: r is not read. An expired range has no file, r may
// be nil.
func (s *Store) Install(ctx context.Context, seg Segment, r io.Reader) error {
	done, err := s.begin()
	if err != nil {
		return err
	}
	defer done()
	end, err := s.turn(ctx, seg.Shard)
	if err != nil {
		return err
	}
	defer end()
	if _, ok, err := s.existing(&seg); ok || err != nil {
		return err
	}
	if seg.Expired && seg.From < seg.To {
		return s.installExpired(&seg)
	}
	if seg.From >= seg.To || seg.Bytes <= 0 {
		return fmt.Errorf("install segment %v of shard %d with %d bytes: no such file can be", seg.Range(), seg.Shard, seg.Bytes)
	}
	err = s.commit(&seg, func(f file) error { return s.receive(ctx, &seg, f, r) })
	if err != nil {
		s.metrics.writeFailures.Inc()
		return fmt.Errorf("install segment %v of shard %d: %w", seg.Range(), seg.Shard, err)
	}
	s.index.add(seg)
	s.gauges()
	s.metrics.installs.Inc()
	return nil
}

// receive copies a peer's file and verifies the copy.
func (s *Store) receive(ctx context.Context, seg *Segment, f file, r io.Reader) error {
	n, err := io.Copy(f, io.LimitReader(r, seg.Bytes+1))
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if n != seg.Bytes {
		return s.corrupt(seg, fmt.Errorf("%d bytes received, %d announced", n, seg.Bytes))
	}
	path := s.path(seg.Shard, seg.Range()) + suffixTemp
	again, err := s.disk.open(path)
	if err != nil {
		return fmt.Errorf("open to verify: %w", err)
	}
	return s.verify(ctx, seg, again, nil)
}

// Verify reads a segment's file whole and compares every checksum and the
// digest of its rows. A CorruptError says what is wrong; SetAside the segment
// then, and Install it from a peer.
func (s *Store) Verify(ctx context.Context, seg Segment) error {
	done, err := s.begin()
	if err != nil {
		return err
	}
	defer done()
	return s.verifyPaced(ctx, seg, nil)
}

func (s *Store) verifyPaced(ctx context.Context, seg Segment, pace func(context.Context, int64) error) error {
	have, same, _ := s.index.find(seg.Shard, seg.Range())
	if !same {
		return fmt.Errorf("verify segment %v of shard %d: %w", seg.Range(), seg.Shard, ErrNotFound)
	}
	if have.Digest != seg.Digest {
		return &DigestError{Shard: seg.Shard, From: seg.From, To: seg.To, Have: have.Digest, Want: seg.Digest}
	}
	if have.Expired {
		_, err := s.probeExpired(have.Shard, have.Range())
		return err
	}
	f, err := s.openRaw(ctx, &have)
	if err != nil {
		return err
	}
	return s.verify(ctx, &have, f, pace)
}

// verify reads all of an open file, which it closes: every block, and the digest
// of every part from its rows, one page of them in memory.
func (s *Store) verify(ctx context.Context, seg *Segment, raw file, pace func(context.Context, int64) error) error {
	f, err := s.parse(seg, raw)
	if err != nil {
		return err
	}
	defer f.release()
	if err := f.verifyBlocks(ctx, pace); err != nil {
		return s.damage(ctx, seg, err)
	}
	c, err := newCursor(f, &decoder{zstd: s.zstd})
	if err != nil {
		return s.damage(ctx, seg, err)
	}
	if err := s.verifyRows(ctx, seg, c); err != nil {
		return s.damage(ctx, seg, err)
	}
	return nil
}

func (s *Store) verifyRows(ctx context.Context, seg *Segment, c *cursor) error {
	parts := c.table.parts
	digests, again := make([]*digester, len(parts)), make([]part, len(parts))
	for i := range parts {
		digests[i] = newDigester(s.cfg.Namespace, seg.Shard, Range{From: parts[i].From, To: parts[i].To}, digestPartBytes)
	}
	var device, sensor string
	last := int64(math.MinInt64)
	for {
		ok, err := c.ready(ctx)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		d, n, r := c.device(c.row), c.sensor(c.row), c.at(c.row)
		if d < device || d == device && (n < sensor || n == sensor && r.Time < last) {
			return fmt.Errorf("rows of device %q are not sorted by device, sensor and time", d)
		}
		device, sensor, last = d, n, r.Time
		p, err := c.take()
		if err != nil {
			return err
		}
		digests[p].row(d, n, &r)
		again[p].count(&r)
	}
	for i := range parts {
		p := &parts[i]
		var b telemetry.Batch
		if err := c.dec.extraOf(c.file, p, &b); err != nil {
			return err
		}
		a := &again[i]
		a.From, a.To, a.Messages, a.extra = p.From, p.To, p.Messages, p.extra
		if a.Digest = digests[i].end(p.Messages, b.Updates, b.Anomalies); *a != *p {
			return fmt.Errorf("its rows give %+v, expected %+v", *a, *p)
		}
	}
	return nil
}

// count takes a row into the figures of a part.
func (p *part) count(r *telemetry.Row) {
	if p.Rows == 0 {
		p.MinTime, p.MaxTime, p.MaxReceived = r.Time, r.Time, r.Received
	}
	p.Rows++
	p.MinTime, p.MaxTime, p.MaxReceived = min(p.MinTime, r.Time), max(p.MaxTime, r.Time), max(p.MaxReceived, r.Received)
}

// damage is err as a CorruptError, unless the caller gave up.
func (s *Store) damage(ctx context.Context, seg *Segment, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("verify segment %v of shard %d: %w", seg.Range(), seg.Shard, ctx.Err())
	}
	return s.corrupt(seg, err)
}

// Load decodes one flush into the batch that it was written from (without the
// term), to fill a database from the archive: a segment, or a part of a compacted
// one. It compares the digest.
func (s *Store) Load(ctx context.Context, seg Segment) (*telemetry.Batch, error) {
	done, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer done()
	defer s.retired.enter()()
	have, ok := s.index.covering(seg.Shard, seg.Range())
	if !ok || have.Expired {
		return nil, fmt.Errorf("load segment %v of shard %d: %w", seg.Range(), seg.Shard, ErrNotFound)
	}
	f, err := s.file(ctx, &have)
	if err != nil {
		return nil, err
	}
	defer f.release()
	var batch *telemetry.Batch
	err = s.extract(ctx, &have, f, seg.Range(), func(b *telemetry.Batch, _ Segment) error {
		batch = b
		return nil
	})
	if err == nil && (batch == nil || batch.From != seg.From || batch.To != seg.To) {
		err = fmt.Errorf("load range %v of shard %d, which is no single flush: %w", seg.Range(), seg.Shard, ErrNotFound)
	}
	return batch, err
}

// Each gives the flushes of a shard that are here with their rows, in the order of
// the log, each as the batch that it was written from (without the term) and
// compared with its digest. Up to extractRowsMax rows are in memory. An error of
// give ends it.
func (s *Store) Each(ctx context.Context, shard telemetry.ShardID, give func(*telemetry.Batch) error) error {
	done, err := s.begin()
	if err != nil {
		return err
	}
	defer done()
	defer s.retired.enter()()
	for _, seg := range s.index.segments(shard) {
		if seg.Expired {
			continue
		}
		f, err := s.file(ctx, &seg)
		if err != nil {
			return err
		}
		err = s.extract(ctx, &seg, f, seg.Range(), func(b *telemetry.Batch, _ Segment) error { return give(b) })
		f.release()
		if err != nil {
			return fmt.Errorf("read segment %v of shard %d: %w", seg.Range(), shard, err)
		}
	}
	return nil
}
