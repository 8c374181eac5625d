package parquet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

const (
	// compactFilesMin is how many files are worth merging: a row is written again
	// about log8(rows of a window / rows of a flush) times.
	compactFilesMin = 8
	// compactFilesMax bounds the pages in memory, 1 MiB an input.
	compactFilesMax = 32
	// compactRowsMax bounds a file: 8 Mi rows are 12 to 40 MiB and 512 pages,
	// whose bounds are 100 KiB in memory while the file is open.
	compactRowsMax = 8 << 20
)

// suffixMerge marks the temporary file of a compaction, which is not made in the
// shard's turn, apart from one that a flush or an install writes.
const suffixMerge = ".merge" + suffixTemp

// plan picks neighbouring files to merge, nil when nothing is worth it. Only files
// of one window are merged, so that retention removes whole files, the same on
// every replica; a window that is followed by another is complete, and what is
// left of it is merged down to two files. The largest input is at most as large
// as the others together: every row's file doubles at least.
func (s *Store) plan(list []Segment) []Segment {
	var best []Segment
	for lo := 0; lo < len(list); {
		hi, over := s.stretch(list, lo)
		least := compactFilesMin
		if over {
			least = 2
		}
		if group := pick(list[lo:hi], least); len(group) > len(best) {
			best = group
		}
		lo = hi
	}
	return best
}

// pick finds the longest group of at least least neighbours that may be one file.
func pick(list []Segment, least int) []Segment {
	var best []Segment
	for lo := range list {
		rows, largest, parts := uint64(0), uint64(0), 0
		for hi := lo; hi < len(list) && hi-lo < compactFilesMax; hi++ {
			seg := &list[hi]
			rows, largest, parts = rows+seg.Rows, max(largest, seg.Rows), parts+seg.Parts
			if rows > compactRowsMax || parts > compactPartsMax {
				break
			}
			if n := hi + 1 - lo; n >= least && n > len(best) && (2*largest <= rows || least == 2) {
				best = list[lo : hi+1]
			}
		}
	}
	return best
}

// stretch finds the end of the neighbours of one window that begin at lo, and
// whether the window is over. Files without rows go with any others.
func (s *Store) stretch(list []Segment, lo int) (hi int, over bool) {
	window, known := int64(0), false
	for hi = lo; hi < len(list); hi++ {
		seg := &list[hi]
		if seg.Expired || hi > lo && seg.From != list[hi-1].To {
			return max(hi, lo+1), false
		}
		if seg.Rows == 0 {
			continue
		}
		if known && s.window(seg) != window {
			return hi, true
		}
		window, known = s.window(seg), true
	}
	return hi, false
}

// window numbers the stretch of receive time that a file belongs to.
func (s *Store) window(seg *Segment) int64 { return seg.MaxReceived / s.cfg.window().Microseconds() }

// Compact merges once what is most worth merging in a shard and reports whether
// it did. Damage that it meets sets the file aside. The files it replaces go when nobody reads them any more.
func (s *Store) Compact(ctx context.Context, shard telemetry.ShardID) (bool, error) {
	done, err := s.begin()
	if err != nil {
		return false, err
	}
	defer done()
	inputs := s.plan(s.index.segments(shard))
	if len(inputs) == 0 {
		return false, nil
	}
	began := time.Now()
	seg, err := s.merge(ctx, inputs)
	var damage *CorruptError
	switch {
	case errors.As(err, &damage):
		return false, errors.Join(err, s.setAsideRange(ctx, shard, Range{From: damage.From, To: damage.To}, err))
	case errors.Is(err, ErrNotFound): // an input was taken away meanwhile
		return false, nil
	case err != nil:
		s.metrics.compactFailures.Inc()
		return false, fmt.Errorf("compact %d files of shard %d: %w", len(inputs), shard, err)
	}
	s.metrics.compactions.Inc()
	s.metrics.compactRows.Add(float64(seg.Rows))
	s.metrics.compactSeconds.Observe(time.Since(began).Seconds())
	s.log.Debug("segments compacted", "shard", shard, "files", len(inputs), "rows", seg.Rows, "bytes", seg.Bytes, "dur", time.Since(began))
	return true, nil
}

// merge writes the file that replaces its inputs and puts it in their place.
func (s *Store) merge(ctx context.Context, inputs []Segment) (Segment, error) {
	shard := inputs[0].Shard
	r := Range{From: inputs[0].From, To: inputs[len(inputs)-1].To}
	temp := s.path(shard, r) + suffixMerge
	seg, err := s.mergeInto(ctx, temp, inputs)
	if err == nil {
		err = s.swap(ctx, temp, &seg, inputs)
	}
	if err != nil {
		if rerr := s.disk.remove(temp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove temporary file: %w", rerr))
		}
	}
	return seg, err
}

func (s *Store) mergeInto(ctx context.Context, temp string, inputs []Segment) (seg Segment, err error) {
	enc, err := s.encoder()
	if err != nil {
		return Segment{}, err
	}
	defer s.putEncoder(enc)
	m := &fileMerger{store: s, inputs: inputs, enc: enc}
	defer m.close()
	if err := m.open(ctx, s.compactPace.wait); err != nil {
		return Segment{}, err
	}
	err = s.fillTemp(temp, func(f file) error {
		m.out = func(b []byte) error {
			if _, err := f.Write(b); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			return s.compactPace.wait(ctx, int64(len(b)))
		}
		seg, err = m.run(ctx)
		return err
	})
	return seg, err
}

// swap gives the merged file its name. From the rename on it counts: whoever
// opens the directory finds in it what it replaces.
func (s *Store) swap(ctx context.Context, temp string, seg *Segment, inputs []Segment) error {
	end, err := s.turn(ctx, seg.Shard)
	if err != nil {
		return err
	}
	defer end()
	for i := range inputs {
		if have, _, _ := s.index.find(seg.Shard, inputs[i].Range()); have != inputs[i] {
			return fmt.Errorf("segment %v of shard %d changed during compaction: %w", inputs[i].Range(), seg.Shard, ErrNotFound)
		}
	}
	if err := s.disk.rename(temp, s.segmentPath(seg)); err != nil {
		return fmt.Errorf("rename to final name: %w", err)
	}
	if err := s.disk.syncDir(s.dir(seg.Shard)); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	s.replace(inputs, seg)
	return nil
}

// replace puts seg in the place of others, whose files wait until nobody reads
// them. The turn is held.
func (s *Store) replace(old []Segment, seg *Segment) {
	s.index.replace(old, *seg)
	for i := range old {
		s.cache.evict(keyOf(&old[i]))
		s.retired.add(old[i])
	}
	s.gauges()
}
