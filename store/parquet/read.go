package parquet

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// EverythingHere as Read's upTo asks for what this store has, complete or not.
const EverythingHere = ^uint64(0)

// readAttempts bounds how often a read begins again because a file it wanted
// was taken away meanwhile; that is rare and does not come in rows.
const readAttempts = 3

// Read returns the points of one device, ascending by store.Point.Compare (or
// descending), at most q.Limit, and the log index up to which the answer holds
// everything: upTo or more, because the store may be ahead of what the log knows.
// Points that compare equal are the same reading and come once, the one from the
// lower log index. The rows of ranges below upTo that are not here would be missing
// silently, so they give an IncompleteError (store.ErrUnavailable) instead, unless
// upTo is EverythingHere. Damage in what the query touches gives a CorruptError.
//
// Only pages that may hold wanted rows are read, and only as far as the limit
// needs: memory is at most one page of points per overlapping series and file.
func (s *Store) Read(ctx context.Context, shard telemetry.ShardID, upTo uint64, q store.Query) (points []store.Point, covered uint64, err error) {
	if q.Limit <= 0 {
		return nil, 0, fmt.Errorf("query limit %d: must be above 0", q.Limit)
	}
	covered, err = s.reading(ctx, shard, upTo, q.Device, func(list []Segment) error {
		points, err = s.mergePoints(ctx, list, &q)
		return err
	})
	s.metrics.readPoints.Add(float64(len(points)))
	return points, covered, err
}

// reading runs a query over the segments of a shard, again when one was taken
// away meanwhile.
func (s *Store) reading(ctx context.Context, shard telemetry.ShardID, upTo uint64, device string, query func([]Segment) error) (covered uint64, err error) {
	done, err := s.begin()
	if err != nil {
		return 0, err
	}
	defer done()
	began := time.Now()
	for attempt := 1; ; attempt++ {
		covered, err = s.readingOnce(shard, upTo, query)
		if errors.Is(err, ErrNotFound) { // a segment was taken away meanwhile
			if attempt < readAttempts {
				continue
			}
			err = fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
		if err != nil {
			return 0, fmt.Errorf("read device %s: %w", device, err)
		}
		s.metrics.readSeconds.Observe(time.Since(began).Seconds())
		return covered, nil
	}
}

func (s *Store) readingOnce(shard telemetry.ShardID, upTo uint64, query func([]Segment) error) (uint64, error) {
	defer s.retired.enter()() // before the list is taken
	list := s.index.segments(shard)
	if upTo == EverythingHere {
		return upTo, query(list)
	}
	if gaps := missing(list, upTo); len(gaps) > 0 {
		return 0, &IncompleteError{Shard: shard, Missing: gaps}
	}
	covered := complete(list)
	n := sort.Search(len(list), func(i int) bool { return list[i].To > covered })
	return covered, query(list[:n])
}

func (s *Store) mergePoints(ctx context.Context, list []Segment, q *store.Query) ([]store.Point, error) {
	var points []store.Point
	err := s.eachPoint(ctx, list, q, func(p *store.Point) bool {
		points = append(points, *p)
		return len(points) < q.Limit
	})
	return points, err
}

// eachPoint gives the points of a query in their order until give wants no more.
func (s *Store) eachPoint(ctx context.Context, list []Segment, q *store.Query, give func(*store.Point) bool) error {
	m := merger{store: s, decoder: s.decoder(), query: q, from: q.From, to: q.To, give: give, names: map[string]string{}}
	defer s.decoders.Put(m.decoder)
	switch {
	case q.After != nil && q.Desc:
		m.to = min(m.to, q.After.Time+1)
	case q.After != nil:
		m.from = max(m.from, q.After.Time)
	}
	for i := range list {
		seg := &list[i]
		if seg.Rows > 0 && seg.MaxTime >= m.from && seg.MinTime < m.to {
			m.push(source{bound: m.bound(seg.MinTime, seg.MaxTime), order: uint64(i) << orderShift, segment: seg, page: wholeSegment})
		}
	}
	for len(m.heap) > 0 && !m.done {
		if err := ctx.Err(); err != nil {
			return err
		}
		src := m.pop()
		if src.run != nil {
			m.take(src)
		} else if err := m.open(ctx, src); err != nil {
			return err
		}
	}
	return nil
}

// merger is one running query: a heap of sources, each of which is a segment
// not yet opened, a page not yet decoded, or a sorted run of points.
type merger struct {
	store   *Store
	decoder *decoder
	query   *store.Query
	from    int64 // no wanted point is earlier
	to      int64 // no wanted point is at or after it
	heap    []source
	give    func(*store.Point) bool
	last    store.Point // given last
	given   bool
	done    bool              // give wants no more
	names   map[string]string // sensor names, one copy each

	group      *rowGroup // whose dictionaries are at hand
	groupDicts groupDicts
}

// source is ordered by its first possible point: a bound in time, before any known
// point of that time, or the head of a run.
type source struct {
	bound   int64
	order   uint64        // segment, then position in it: the earlier wins between equal points
	run     []store.Point // nil: still to be read
	segment *Segment
	group   int
	page    int // wholeSegment: its file has not been looked into
}

const wholeSegment = -1

// orderShift leaves room for the runs of one segment: pages times sensors.
const orderShift = 40

// bound is the time of the first point that a source of these times may have.
func (m *merger) bound(minTime, maxTime int64) int64 {
	if m.query.Desc {
		return min(m.to-1, maxTime)
	}
	return max(m.from, minTime)
}

func (m *merger) before(a, b *source) bool {
	if a.bound != b.bound {
		return (a.bound < b.bound) != m.query.Desc
	}
	switch {
	case a.run == nil || b.run == nil:
		return a.run == nil && (b.run != nil || a.order < b.order)
	default:
		if c := m.query.Compare(&a.run[0], &b.run[0]); c != 0 {
			return c < 0
		}
		return a.order < b.order
	}
}

func (m *merger) push(s source) {
	m.heap = append(m.heap, s)
	i := len(m.heap) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !m.before(&m.heap[i], &m.heap[up]) {
			break
		}
		m.heap[i], m.heap[up] = m.heap[up], m.heap[i]
		i = up
	}
}

func (m *merger) pop() source {
	top := m.heap[0]
	last := len(m.heap) - 1
	m.heap[0] = m.heap[last]
	m.heap[last] = source{}
	m.heap = m.heap[:last]
	m.down()
	return top
}

// down moves the first source to where it belongs.
func (m *merger) down() {
	for i := 0; ; {
		least := i
		for _, c := range [2]int{2*i + 1, 2*i + 2} {
			if c < len(m.heap) && m.before(&m.heap[c], &m.heap[least]) {
				least = c
			}
		}
		if least == i {
			return
		}
		m.heap[i], m.heap[least] = m.heap[least], m.heap[i]
		i = least
	}
}

// take gives points of a run that was on top while they come before every other
// source.
func (m *merger) take(src source) {
	for {
		p := &src.run[0]
		if !m.given || m.last.Compare(p) != 0 {
			m.last, m.given = *p, true
			if m.done = !m.give(p); m.done {
				return
			}
		}
		src.run = src.run[1:]
		if len(src.run) == 0 {
			return
		}
		src.bound = src.run[0].Time
		if len(m.heap) > 0 && m.before(&m.heap[0], &src) {
			m.push(src)
			return
		}
	}
}

// open reads a source that reached the top. A file is held no longer than that:
// a query over many files needs no more descriptors than the cache has.
func (m *merger) open(ctx context.Context, src source) error {
	f, err := m.store.file(ctx, src.segment)
	if err != nil {
		return err
	}
	defer f.release()
	if src.page == wholeSegment {
		m.openSegment(f, src)
		return nil
	}
	return m.openPage(f, src)
}

// openSegment replaces a segment by its pages that may hold wanted rows.
func (m *merger) openSegment(f *segmentFile, src source) {
	m.store.metrics.readFiles.Inc()
	q := m.query
	for gi := range f.groups {
		for pi := range f.groups[gi].pages {
			p := &f.groups[gi].pages[pi]
			if q.Device < p.minDevice || q.Device > p.maxDevice || p.maxTime < m.from || p.minTime >= m.to ||
				(q.Sensor != "" && (q.Sensor < p.minSensor || q.Sensor > p.maxSensor)) {
				continue
			}
			m.push(source{
				bound: m.bound(p.minTime, p.maxTime), segment: src.segment, group: gi, page: pi,
				order: src.order + uint64(f.groups[gi].before+int64(pi))<<runShift,
			})
		}
	}
}

// runShift leaves room for the runs of one page, one per sensor at most.
const runShift = 14
