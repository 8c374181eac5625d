package parquet

import (
	"context"
	"fmt"
	"io"

	"github.com/sluice-iot/sluice/telemetry"
)

// Open gives the bytes of a segment's file, for a peer that lacks it. The
// caller closes the stream. ErrNotFound when there is no such segment.
func (s *Store) Open(shard telemetry.ShardID, from, to uint64) (io.ReadCloser, Segment, error) {
	done, err := s.begin()
	if err != nil {
		return nil, Segment{}, err
	}
	defer done()
	r := Range{From: from, To: to}
	seg, same, _ := s.index.find(shard, r)
	if !same {
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
// the same digest needs nothing: r is not read.
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
	return s.verify(ctx, seg, again)
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
	have, same, _ := s.index.find(seg.Shard, seg.Range())
	if !same {
		return fmt.Errorf("verify segment %v of shard %d: %w", seg.Range(), seg.Shard, ErrNotFound)
	}
	if have.Digest != seg.Digest {
		return &DigestError{Shard: seg.Shard, From: seg.From, To: seg.To, Have: have.Digest, Want: seg.Digest}
	}
	f, err := s.openRaw(ctx, &have)
	if err != nil {
		return err
	}
	return s.verify(ctx, &have, f)
}

// verify reads all of an open file, which it closes.
func (s *Store) verify(ctx context.Context, seg *Segment, raw file) error {
	f, err := s.parse(seg, raw)
	if err != nil {
		return err
	}
	defer f.release()
	if err := f.verifyBlocks(ctx); err != nil {
		return s.damage(ctx, seg, err)
	}
	b, err := s.load(ctx, f)
	if err != nil {
		return s.damage(ctx, seg, err)
	}
	again, err := check(b, s.cfg.Namespace)
	if err != nil {
		return s.corrupt(seg, err)
	}
	again.Bytes, again.Digest = seg.Bytes, Digest(b)
	if again != *seg {
		return s.corrupt(seg, fmt.Errorf("its rows give %+v, expected %+v", again, *seg))
	}
	return nil
}

// damage is err as a CorruptError, unless the caller gave up.
func (s *Store) damage(ctx context.Context, seg *Segment, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("verify segment %v of shard %d: %w", seg.Range(), seg.Shard, ctx.Err())
	}
	return s.corrupt(seg, err)
}

// Load decodes a segment into the batch that it was written from (without the
// term), to fill a database from the archive. It does not compare the digest.
func (s *Store) Load(ctx context.Context, seg Segment) (*telemetry.Batch, error) {
	done, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer done()
	have, same, _ := s.index.find(seg.Shard, seg.Range())
	if !same {
		return nil, fmt.Errorf("load segment %v of shard %d: %w", seg.Range(), seg.Shard, ErrNotFound)
	}
	f, err := s.file(ctx, &have)
	if err != nil {
		return nil, err
	}
	defer f.release()
	b, err := s.load(ctx, f)
	if err != nil {
		return nil, s.damage(ctx, &have, err)
	}
	return b, nil
}

func (s *Store) load(ctx context.Context, f *segmentFile) (*telemetry.Batch, error) {
	d := s.decoder()
	defer s.decoders.Put(d)
	return d.loadBatch(ctx, f)
}
