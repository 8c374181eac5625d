package parquet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/sluice-iot/sluice/telemetry"
)

// Drop removes a shard with all its files, damaged ones too, for a replica that
// has moved away. After an error it may be repeated; a crash inside leaves the
// shard either untouched or gone after the next Open.
func (s *Store) Drop(shard telemetry.ShardID) error {
	done, err := s.begin()
	if err != nil {
		return err
	}
	defer done()
	end, err := s.turn(context.Background(), shard)
	if err != nil {
		return err
	}
	defer end()
	gone := s.dir(shard) + suffixDropped
	err = s.disk.rename(s.dir(shard), gone)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("drop shard %d: %w", shard, err)
	}
	for _, seg := range s.index.drop(shard) {
		s.cache.evict(keyOf(&seg))
	}
	s.retired.forget(shard)
	s.gauges()
	if err := s.disk.syncDir(s.cfg.Dir); err != nil {
		return fmt.Errorf("sync store directory: %w", err)
	}
	return s.removeFolder(gone)
}

// SetAside takes a damaged segment out of the store: Missing reports its range
// until it is written or installed again. The file is kept under another name.
func (s *Store) SetAside(ctx context.Context, seg Segment, why error) error {
	return s.setAsideRange(ctx, seg.Shard, seg.Range(), why)
}

func (s *Store) setAsideRange(ctx context.Context, shard telemetry.ShardID, r Range, why error) error {
	done, err := s.begin()
	if err != nil {
		return err
	}
	defer done()
	end, err := s.turn(ctx, shard)
	if err != nil {
		return err
	}
	defer end()
	have, same, _ := s.index.find(shard, r)
	if !same {
		return fmt.Errorf("set aside segment %v of shard %d: %w", r, shard, ErrNotFound)
	}
	name := filepath.Base(s.segmentPath(&have))
	err = s.setAside(shard, name, why)
	if err == nil || errors.Is(err, ErrSync) { // renamed, at least for now
		s.index.remove(shard, r)
		s.cache.evict(keyOf(&have))
		s.gauges()
	}
	if err == nil {
		s.tell(shard, name, why)
	}
	return err
}
