package parquet

import (
	"context"
	"errors"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

const (
	// maintainEvery is the pause of the background work when nothing is left to do.
	maintainEvery = 5 * time.Second
	// scrubAfter is how old the rows of a file are before it is looked at: younger
	// ones are about to be read by compaction, which checks as much.
	scrubAfter = time.Hour
)

// Maintain expires, compacts and removes files in the background until ctx ends
// or the store is closed, one shard after the other, and searches cold files for
// damage, slowly. Nothing waits for it. failed gets an error that matches ErrSync,
// after which the process should exit.
func (s *Store) Maintain(ctx context.Context, failed func(error)) {
	scrubbed := make(chan struct{})
	go func() {
		defer close(scrubbed)
		s.scrub(ctx)
	}()
	defer func() { <-scrubbed }()
	for ctx.Err() == nil {
		more := false
		for _, shard := range s.Shards() {
			did, err := s.maintain(ctx, shard)
			more = more || did
			switch {
			case errors.Is(err, ErrClosed) || ctx.Err() != nil:
				return
			case errors.Is(err, ErrSync):
				failed(err)
				return
			case err != nil:
				s.log.Warn("store maintenance: trying again", "shard", shard, "err", err)
			}
		}
		if !more && !sleep(ctx, maintainEvery) {
			return
		}
	}
}

// maintain does what is due in one shard and reports whether it did anything.
func (s *Store) maintain(ctx context.Context, shard telemetry.ShardID) (bool, error) {
	expired, err := s.Expire(ctx, shard, s.now())
	if err != nil {
		return false, err
	}
	compacted, err := s.Compact(ctx, shard)
	return expired || compacted, errors.Join(err, s.reap(ctx))
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// scrub reads one file after the other whole. What is damaged is set aside, so
// that it is fetched from a peer while there is one that has it.
func (s *Store) scrub(ctx context.Context) {
	clean := map[fileKey]time.Time{}
	young := min(scrubAfter, s.cfg.ScrubEvery)
	for ctx.Err() == nil {
		present := map[fileKey]time.Time{}
		worked := false
		for _, shard := range s.Shards() {
			for _, seg := range s.Segments(shard) {
				key := keyOf(&seg)
				if at, ok := clean[key]; ok && s.now().Sub(at) < s.cfg.ScrubEvery {
					present[key] = at
					continue
				}
				if s.now().UnixMicro()-seg.MaxReceived < young.Microseconds() {
					continue
				}
				worked = true
				ok, err := s.scrubOne(ctx, seg)
				if errors.Is(err, ErrClosed) || ctx.Err() != nil {
					return
				}
				if ok {
					present[key] = s.now()
				} else if err != nil && !sleep(ctx, maintainEvery) {
					return
				}
			}
		}
		clean = present // files that are gone are forgotten
		if !worked && !sleep(ctx, min(maintainEvery, s.cfg.ScrubEvery)) {
			return
		}
	}
}

// scrubOne reports whether the file is whole. An error says nothing about it.
func (s *Store) scrubOne(ctx context.Context, seg Segment) (whole bool, err error) {
	done, err := s.begin()
	if err != nil {
		return false, err
	}
	defer done()
	err = s.verifyPaced(ctx, seg, s.scrubPace.wait)
	switch {
	case err == nil:
		s.metrics.scrubs.Inc()
		return true, nil
	case ctx.Err() != nil, errors.Is(err, ErrNotFound):
		return false, nil
	case !errors.Is(err, ErrCorrupt) && !errors.As(err, new(*DigestError)):
		return false, err // being out of descriptors, for example
	}
	if aside := s.setAsideRange(ctx, seg.Shard, seg.Range(), err); aside != nil && !errors.Is(aside, ErrNotFound) {
		return false, aside
	}
	return false, nil
}
