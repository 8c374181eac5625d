package parquet

import (
	"cmp"
	"slices"
	"time"

	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/telemetry"
)

// FolderName is the folder of a shard, in a store and in an archive of its files.
func FolderName(shard telemetry.ShardID) string { return dirName(shard) }

// Name is the file name of a segment that holds a range.
func Name(r Range) string { return fileName(r) }

// ParseName is the inverse of Name.
func ParseName(name string) (Range, bool) { return parseFileName(name) }

// Gaps are the ranges up to upTo that none of have covers, in ascending order.
func Gaps(have []Range, upTo uint64) []Range {
	list := make([]Segment, len(have))
	for i, r := range have {
		list[i] = Segment{From: r.From, To: r.To}
	}
	slices.SortFunc(list, func(a, b Segment) int { return cmp.Compare(a.From, b.From) })
	return missing(list, upTo)
}

// settledAfter is how long compaction has to merge what is left of a window that
// is over.
const settledAfter = time.Hour

// Settled is the log index up to which a shard's rows were received in windows
// that have been over for a while, without gaps: what will hardly be compacted any
// more.
func (s *Store) Settled(shard telemetry.ShardID, now time.Time) uint64 {
	window := s.cfg.window().Microseconds()
	done, sure := uint64(0), uint64(0)
	list := s.index.segments(shard)
	for i := range list {
		seg := &list[i]
		if seg.From != done || seg.Rows > 0 && (s.window(seg)+1)*window+settledAfter.Microseconds() > clock.Micros(now) {
			break
		}
		if done = seg.To; seg.Rows > 0 || seg.Expired {
			sure = done
		}
	}
	return sure
}
