package parquet

import (
	"slices"
	"sort"
	"sync"

	"github.com/sluice-iot/sluice/telemetry"
)

// index knows every segment. The slices in it are replaced, never changed, so
// that a reader keeps what it got without holding the lock.
type index struct {
	mu     sync.RWMutex
	shards map[telemetry.ShardID][]Segment // ascending, disjoint
}

func newIndex() *index { return &index{shards: map[telemetry.ShardID][]Segment{}} }

func (x *index) segments(shard telemetry.ShardID) []Segment {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.shards[shard]
}

// find returns the segment of exactly this range, and whether another one
// shares log entries with it.
func (x *index) find(shard telemetry.ShardID, r Range) (have Segment, same, overlaps bool) {
	list := x.segments(shard)
	i := sort.Search(len(list), func(i int) bool { return list[i].To > r.From })
	if i == len(list) || list[i].From >= r.To {
		return Segment{}, false, false
	}
	return list[i], list[i].Range() == r, list[i].Range() != r
}

// add takes a segment that overlaps none.
func (x *index) add(seg Segment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := x.shards[seg.Shard]
	i := sort.Search(len(list), func(i int) bool { return list[i].From >= seg.From })
	if i == len(list) && cap(list) > len(list) {
		x.shards[seg.Shard] = append(list, seg) // behind what any reader sees
		return
	}
	grown := make([]Segment, 0, 2*len(list)+4)
	grown = append(append(append(grown, list[:i]...), seg), list[i:]...)
	x.shards[seg.Shard] = grown
}

func (x *index) remove(shard telemetry.ShardID, r Range) {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := slices.Clone(x.shards[shard])
	x.shards[shard] = slices.DeleteFunc(list, func(s Segment) bool { return s.Range() == r })
}

// replace puts seg in the place of neighbours.
func (x *index) replace(old []Segment, seg Segment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(x.shards[seg.Shard]), func(s Segment) bool { return slices.Contains(old, s) })
	i := sort.Search(len(list), func(i int) bool { return list[i].From >= seg.From })
	x.shards[seg.Shard] = slices.Insert(list, i, seg)
}

// covering returns the segment that holds all of a range.
func (x *index) covering(shard telemetry.ShardID, r Range) (Segment, bool) {
	have, same, overlaps := x.find(shard, r)
	return have, (same || overlaps) && have.Range().contains(r)
}

func (x *index) drop(shard telemetry.ShardID) []Segment {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := x.shards[shard]
	delete(x.shards, shard)
	return list
}

// Usage is what a store holds.
type Usage struct {
	Shards   int
	Segments int
	Rows     uint64
	Messages uint64
	Bytes    int64
}

func (x *index) usage() Usage {
	x.mu.RLock()
	defer x.mu.RUnlock()
	u := Usage{Shards: len(x.shards)}
	for _, list := range x.shards {
		for i := range list {
			if list[i].Expired {
				continue
			}
			u.Segments++
			u.Rows += list[i].Rows
			u.Messages += list[i].Messages
			u.Bytes += list[i].Bytes
		}
	}
	return u
}

// missing are the ranges up to upTo that no segment of the list covers.
func missing(list []Segment, upTo uint64) []Range {
	var gaps []Range
	done := uint64(0)
	for i := range list {
		if list[i].From >= upTo {
			break
		}
		if list[i].From > done {
			gaps = append(gaps, Range{From: done, To: list[i].From})
		}
		done = list[i].To
	}
	if done < upTo {
		gaps = append(gaps, Range{From: done, To: upTo})
	}
	return gaps
}

// complete is the log index up to which a list covers everything.
func complete(list []Segment) uint64 {
	done := uint64(0)
	for i := range list {
		if list[i].From != done {
			break
		}
		done = list[i].To
	}
	return done
}
