package parquet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// Write makes a batch durable as one immutable file and returns its segment,
// which reads see from then on. A batch without rows makes a file too. When the
// range exists already nothing is written and the existing segment is returned,
// or a DigestError when its content is another. Other errors: BatchError,
// OverlapError, ErrClosed, ctx's while waiting for another write to the shard,
// and the disk's (matching ErrSync when an fsync failed); then the range is not
// done and may be repeated.
func (s *Store) Write(ctx context.Context, b *telemetry.Batch) (Segment, error) {
	done, err := s.begin()
	if err != nil {
		return Segment{}, err
	}
	defer done()
	began := time.Now()
	seg, err := check(b, s.cfg.Namespace)
	if err != nil {
		return Segment{}, err
	}
	seg.Digest = Digest(b)
	end, err := s.turn(ctx, seg.Shard)
	if err != nil {
		return Segment{}, err
	}
	defer end()
	if have, ok, err := s.existing(&seg); ok || err != nil {
		return have, err
	}
	if err := s.write(b, &seg); err != nil {
		s.metrics.writeFailures.Inc()
		return Segment{}, fmt.Errorf("write segment %v of shard %d: %w", seg.Range(), seg.Shard, err)
	}
	s.index.add(seg)
	s.gauges()
	s.metrics.writeRows.Add(float64(seg.Rows))
	s.metrics.writeBytes.Add(float64(seg.Bytes))
	s.metrics.writeSeconds.Observe(time.Since(began).Seconds())
	return seg, nil
}

// existing answers for a range that is done already. The turn is held.
func (s *Store) existing(seg *Segment) (Segment, bool, error) {
	have, same, overlaps := s.index.find(seg.Shard, seg.Range())
	if !same && !overlaps {
		return Segment{}, false, nil
	}
	if !have.Range().contains(seg.Range()) {
		return Segment{}, false, &OverlapError{Shard: seg.Shard, Range: seg.Range(), Have: have.Range()}
	}
	if have.Expired { // nothing to compare with, and nothing to keep
		return *seg, true, nil
	}
	mine, ok, err := s.lookup(seg.Shard, seg.Range(), s.tableInTurn)
	switch {
	case err != nil:
		return Segment{}, false, err
	case !ok:
		return Segment{}, false, &OverlapError{Shard: seg.Shard, Range: seg.Range(), Have: have.Range()}
	case mine.Digest != seg.Digest:
		return Segment{}, false, &DigestError{Shard: seg.Shard, From: seg.From, To: seg.To, Have: mine.Digest, Want: seg.Digest}
	}
	return mine, true, nil
}

func (s *Store) write(b *telemetry.Batch, seg *Segment) error {
	e, err := s.encoder()
	if err != nil {
		return err
	}
	defer s.putEncoder(e)
	meta := metadata{Segment: *seg, Namespace: s.cfg.Namespace}
	bytes, err := e.encode(b, &meta)
	if err != nil {
		return err
	}
	seg.Bytes = int64(len(bytes))
	return s.commit(seg, func(f file) error {
		_, err := f.Write(bytes)
		return err
	})
}

func (s *Store) encoder() (*encoder, error) {
	if e, ok := s.encoders.Get().(*encoder); ok {
		return e, nil
	}
	return newEncoder()
}

func (s *Store) putEncoder(e *encoder) {
	e.release()
	s.encoders.Put(e)
}

// commit makes a file with the content that fill writes: temporary file, fsync,
// rename, fsync of the folder. After an error nothing of it counts: the
// temporary file is removed, and a file already renamed is not in the index
// until the range is written again.
func (s *Store) commit(seg *Segment, fill func(file) error) error {
	if err := s.folder(seg.Shard); err != nil {
		return err
	}
	path := s.segmentPath(seg)
	if err := s.fillTemp(path+suffixTemp, fill); err != nil {
		if rerr := s.disk.remove(path + suffixTemp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove temporary file: %w", rerr))
		}
		return err
	}
	if err := s.disk.rename(path+suffixTemp, path); err != nil {
		return fmt.Errorf("rename to final name: %w", err)
	}
	if err := s.disk.syncDir(s.dir(seg.Shard)); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

func (s *Store) fillTemp(path string, fill func(file) error) error {
	f, err := s.disk.create(path)
	if err != nil {
		return fmt.Errorf("create temporary file: %w", err)
	}
	if err := fill(f); err != nil {
		return errors.Join(fmt.Errorf("write temporary file: %w", err), f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync temporary file: %w: %w", ErrSync, err), f.Close())
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close temporary file: %w", err)
	}
	return nil
}

// folder makes the shard's folder durable before the first file in it.
func (s *Store) folder(shard telemetry.ShardID) error {
	if len(s.index.segments(shard)) > 0 {
		return nil
	}
	if err := s.disk.mkdir(s.dir(shard)); err != nil {
		return fmt.Errorf("create folder: %w", err)
	}
	if err := s.disk.syncDir(s.cfg.Dir); err != nil {
		return fmt.Errorf("sync store directory: %w", err)
	}
	return nil
}
