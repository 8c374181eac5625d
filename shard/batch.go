package shard

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// batch compacts pending blocks: repeats out, dictionaries sorted, rows sorted
// by device, sensor, time and log order. want chooses among the readings.
func (f *flusher) batch(from, to uint64, blocks []*pendingBlock, want func(mark) bool) (*telemetry.Batch, error) {
	g := gatherer{devices: newDictionary(), sensors: newDictionary()}
	for _, p := range blocks {
		g.rows = slices.Grow(g.rows, p.allRows())
		err := f.eachReading(p, &g.block, func(e *block.Entry, rd *block.Reading, k mark) {
			if !want(k) {
				return
			}
			g.rows = append(g.rows, telemetry.Row{
				Time: e.Time, Received: e.Received, Value: rd.Value.Float64(),
				Device: g.devices.of(g.block.Devices[e.Device]), Sensor: g.sensors.of(g.block.Sensors[rd.Sensor]),
				Score: k.score, Quality: k.quality,
			})
		})
		if err != nil {
			return nil, err
		}
	}
	return &telemetry.Batch{
		Namespace: namespace, Shard: f.shard.id, From: from, To: to,
		Devices: g.devices.sort(), Sensors: g.sensors.sort(), Rows: g.sorted(),
	}, nil
}

type gatherer struct {
	block            block.Block
	devices, sensors dictionary
	rows             []telemetry.Row
}

// sorted renames the rows to the sorted dictionaries and sorts them by device,
// sensor, time and log order: two stable counting passes, and a sort of those
// series whose readings did not come in the order of their time.
func (g *gatherer) sorted() []telemetry.Row {
	for i := range g.rows {
		r := &g.rows[i]
		r.Device, r.Sensor = g.devices.rank[r.Device], g.sensors.rank[r.Sensor]
	}
	spare := make([]telemetry.Row, len(g.rows))
	countingSort(spare, g.rows, len(g.sensors.names), func(r *telemetry.Row) uint32 { return r.Sensor })
	countingSort(g.rows, spare, len(g.devices.names), func(r *telemetry.Row) uint32 { return r.Device })
	byTime := func(a, b telemetry.Row) int { return cmp.Compare(a.Time, b.Time) }
	for from := 0; from < len(g.rows); {
		to := from + 1
		for to < len(g.rows) && g.rows[to].Device == g.rows[from].Device && g.rows[to].Sensor == g.rows[from].Sensor {
			to++
		}
		if series := g.rows[from:to]; !slices.IsSortedFunc(series, byTime) {
			slices.SortStableFunc(series, byTime)
		}
		from = to
	}
	return g.rows
}

const dayMicros = 24 * 3600 * 1_000_000

// byDay brings the rows of one day (UTC) together and keeps their order: chunks
// of the database are whole days, and each is opened once.
func byDay(rows []telemetry.Row) {
	day := func(r *telemetry.Row) int64 {
		d := r.Time / dayMicros
		if r.Time%dayMicros < 0 {
			d--
		}
		return d
	}
	slices.SortStableFunc(rows, func(a, b telemetry.Row) int { return cmp.Compare(day(&a), day(&b)) })
}

// countingSort copies src to dst in the order of key, which is below n.
func countingSort(dst, src []telemetry.Row, n int, key func(*telemetry.Row) uint32) {
	starts := make([]int, n+1)
	for i := range src {
		starts[key(&src[i])+1]++
	}
	for k := range n {
		starts[k+1] += starts[k]
	}
	for i := range src {
		k := key(&src[i])
		dst[starts[k]] = src[i]
		starts[k]++
	}
}

// dictionary numbers strings in order of appearance and ranks them at the end.
type dictionary struct {
	index map[string]uint32
	names []string
	rank  []uint32 // number of appearance -> number in sorted order
}

func newDictionary() dictionary { return dictionary{index: map[string]uint32{}} }

func (d *dictionary) of(s string) uint32 {
	if i, ok := d.index[s]; ok {
		return i
	}
	s = strings.Clone(s) // the block's memory is reused
	i := uint32(len(d.names))
	d.index[s] = i
	d.names = append(d.names, s)
	return i
}

// sort returns the names in order and fills rank.
func (d *dictionary) sort() []string {
	sorted := slices.Clone(d.names)
	slices.Sort(sorted)
	d.rank = make([]uint32, len(sorted))
	for r, s := range sorted {
		d.rank[d.index[s]] = uint32(r)
	}
	return sorted
}

// bothLanes chooses every reading.
func bothLanes(mark) bool { return true }

// eachReading calls fn for every reading of a pending block that becomes a row.
func (f *flusher) eachReading(p *pendingBlock, b *block.Block, fn func(*block.Entry, *block.Reading, mark)) error {
	if p.allRows() == 0 {
		return nil
	}
	data, err := f.shard.fsm.blockData(p)
	if err != nil {
		return err
	}
	marks, err := f.shard.fsm.blockMarks(p)
	if err != nil {
		return err
	}
	if err := b.Decode(data); err != nil {
		return fmt.Errorf("decode pending block %d: %w", p.index, err)
	}
	if len(b.Readings) != len(marks) {
		return fmt.Errorf("pending block %d has %d readings, %d are marked", p.index, len(b.Readings), len(marks))
	}
	for i := range b.Messages {
		e := &b.Messages[i]
		for k := e.Readings.From; k < e.Readings.To; k++ {
			if !marks[k].drop {
				fn(e, &b.Readings[k], marks[k])
			}
		}
	}
	return nil
}

// pendingPoints answers a query from what a store with these watermarks lacks.
func (f *flusher) pendingPoints(blocks iter.Seq[*pendingBlock], at telemetry.Watermarks, q store.Query) ([]store.Point, error) {
	var out []store.Point
	var b block.Block
	names := newDictionary()
	for p := range blocks {
		if !p.lacks(at) {
			continue
		}
		err := f.eachReading(p, &b, func(e *block.Entry, rd *block.Reading, k mark) {
			if b.Devices[e.Device] != q.Device || at.Has(k.lane, p.index) {
				return
			}
			pt := store.Point{Time: e.Time, Received: e.Received, Sensor: b.Sensors[rd.Sensor], Value: rd.Value.Float64(), Score: k.score, Quality: k.quality}
			if q.Matches(&pt) {
				pt.Sensor = names.names[names.of(pt.Sensor)]
				out = append(out, pt)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b store.Point) int { return q.Compare(&a, &b) })
	return out, nil
}

// lacks reports whether a store with these watermarks lacks rows of the block.
func (p *pendingBlock) lacks(at telemetry.Watermarks) bool {
	for lane, n := range p.rows {
		if n > 0 && !at.Has(telemetry.Lane(lane), p.index) {
			return true
		}
	}
	return false
}

// mergePoints merges two answers to a query and cuts the result at its limit. A
// point in both is one reading that was sent twice, long after each other.
func mergePoints(a, b []store.Point, q *store.Query) []store.Point {
	limit := q.Limit
	if len(b) == 0 && len(a) <= limit {
		return a
	}
	out := make([]store.Point, 0, min(limit, len(a)+len(b)))
	for len(out) < limit && (len(a) > 0 || len(b) > 0) {
		switch {
		case len(b) == 0 || len(a) > 0 && q.Compare(&a[0], &b[0]) < 0:
			out, a = append(out, a[0]), a[1:]
		case len(a) == 0 || q.Compare(&b[0], &a[0]) < 0:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return out
}
