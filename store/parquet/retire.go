package parquet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/sluice-iot/sluice/telemetry"
)

// retired keeps files that were replaced until the reads that began before have
// ended: these know the old files by name and open them when they get there.
type retired struct {
	mu     sync.Mutex
	clock  uint64
	active map[uint64]struct{} // reads under way, by when they began
	files  []retiree
}

type retiree struct {
	seg Segment
	at  uint64
}

// enter counts a read in; the result counts it out.
func (r *retired) enter() (leave func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	id := r.clock
	r.active[id] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.active, id)
	}
}

func (r *retired) add(seg Segment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files = append(r.files, retiree{seg: seg, at: r.clock})
}

// free takes the files that nobody can be reading any more.
func (r *retired) free() []Segment {
	r.mu.Lock()
	defer r.mu.Unlock()
	oldest := r.clock + 1
	for id := range r.active {
		oldest = min(oldest, id)
	}
	var out []Segment
	kept := r.files[:0]
	for _, f := range r.files {
		if f.at < oldest {
			out = append(out, f.seg)
		} else {
			kept = append(kept, f)
		}
	}
	r.files = kept
	return out
}

// forget is for a shard that is dropped with its files.
func (r *retired) forget(shard telemetry.ShardID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := r.files[:0]
	for _, f := range r.files {
		if f.seg.Shard != shard {
			kept = append(kept, f)
		}
	}
	r.files = kept
}

// reap removes replaced files. One that cannot be removed now is removed when the
// store is opened again.
func (s *Store) reap(ctx context.Context) error {
	var errs []error
	for _, seg := range s.retired.free() {
		errs = append(errs, s.reapOne(ctx, &seg))
	}
	return errors.Join(errs...)
}

func (s *Store) reapOne(ctx context.Context, seg *Segment) error {
	end, err := s.turn(ctx, seg.Shard)
	if err != nil {
		s.retired.add(*seg)
		return err
	}
	defer end()
	if have, same, _ := s.index.find(seg.Shard, seg.Range()); same && have.Expired == seg.Expired {
		return nil // the name has been given again meanwhile
	}
	if err := s.disk.remove(s.segmentPath(seg)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove replaced segment %v of shard %d: %w", seg.Range(), seg.Shard, err)
	}
	s.metrics.removed.Inc()
	return nil
}
