package parquet

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// fileMerger merges the rows of neighbouring files into one file. It holds a page
// of each, one row group of the result and a digest per part: every part's digest
// is taken while its rows pass, so that damage is found and never written again.
type fileMerger struct {
	store   *Store
	inputs  []Segment
	cursors []*cursor // heap: the first has the next row
	heads   []*cursor // in the order of inputs
	enc     *encoder
	out     func([]byte) error
	sums    blockSums
	parts   []part
	digests []*digester
	group   groupBuilder
	lines   [][]byte // of the row groups written so far
	rows    []int64  // raw size of each
}

// groupBuilder gathers the next row group.
type groupBuilder struct {
	batchBuilder
	line []byte // lineage of the runs that are over
	part int    // of the run at hand
	run  uint64 // its rows
}

// dictionaryOf numbers strings in order of appearance.
type dictionaryOf struct {
	index map[string]uint32
	names []string
}

func (m *fileMerger) open(ctx context.Context, pace func(context.Context, int64) error) error {
	for i := range m.inputs {
		seg := &m.inputs[i]
		f, err := m.store.openSegment(ctx, seg)
		if err != nil {
			return err
		}
		c, err := newCursor(f, &decoder{zstd: m.store.zstd})
		if err != nil {
			f.release()
			return m.store.corrupt(seg, err)
		}
		c.first, c.pace = len(m.parts), pace
		m.heads = append(m.heads, c)
		m.parts = append(m.parts, c.table.parts...)
	}
	for i := range m.parts {
		r := Range{From: m.parts[i].From, To: m.parts[i].To}
		m.digests = append(m.digests, newDigester(m.store.cfg.Namespace, m.inputs[0].Shard, r, digestPartBytes))
	}
	return nil
}

func (m *fileMerger) close() {
	for _, c := range m.heads {
		c.file.release()
	}
}

// run writes the merged file and returns its segment.
func (m *fileMerger) run(ctx context.Context) (Segment, error) {
	m.enc.begin(encoderKeepBytes)
	m.group.reset()
	for _, c := range m.heads {
		if err := m.enter(ctx, c); err != nil {
			return Segment{}, err
		}
	}
	for len(m.cursors) > 0 {
		if err := m.series(ctx); err != nil {
			return Segment{}, err
		}
	}
	if err := m.endGroup(); err != nil {
		return Segment{}, err
	}
	return m.finish(ctx)
}

// fault names the input whose content is wrong.
func (m *fileMerger) fault(ctx context.Context, c *cursor, err error) error {
	return m.store.damage(ctx, &m.inputs[slices.Index(m.heads, c)], err)
}

// enter puts a cursor that is in no heap where its row belongs, unless it is at
// its end.
func (m *fileMerger) enter(ctx context.Context, c *cursor) error {
	ok, err := c.ready(ctx)
	if err != nil {
		return m.fault(ctx, c, err)
	}
	if !ok {
		return nil
	}
	m.cursors = append(m.cursors, c)
	for i := len(m.cursors) - 1; i > 0; {
		up := (i - 1) / 2
		if !before(m.cursors[i], m.cursors[up]) {
			break
		}
		m.cursors[i], m.cursors[up] = m.cursors[up], m.cursors[i]
		i = up
	}
	return nil
}

func (m *fileMerger) pop() *cursor {
	top, last := m.cursors[0], len(m.cursors)-1
	m.cursors[0] = m.cursors[last]
	m.cursors = m.cursors[:last]
	for i := 0; ; {
		least := i
		for _, c := range [2]int{2*i + 1, 2*i + 2} {
			if c < last && before(m.cursors[c], m.cursors[least]) {
				least = c
			}
		}
		if least == i {
			return top
		}
		m.cursors[i], m.cursors[least] = m.cursors[least], m.cursors[i]
		i = least
	}
}

// before orders the rows at hand by device, sensor, time and log order.
func before(a, b *cursor) bool {
	if c := compareSeries(a, b); c != 0 {
		return c < 0
	}
	ta, tb := a.dec.times[a.row], b.dec.times[b.row]
	return ta < tb || ta == tb && a.first < b.first
}

func compareSeries(a, b *cursor) int {
	if c := strings.Compare(a.device(a.row), b.device(b.row)); c != 0 {
		return c
	}
	return strings.Compare(a.sensor(a.row), b.sensor(b.row))
}

// series moves rows of the first cursor's series while they come before all others.
func (m *fileMerger) series(ctx context.Context) error {
	c := m.pop()
	number, sensor := c.dec.devices[c.row], c.dec.sensors[c.row]
	end := c.row + 1
	for end < c.rows && c.dec.devices[end] == number && c.dec.sensors[end] == sensor {
		end++
	}
	if len(m.cursors) > 0 && compareSeries(c, m.cursors[0]) == 0 {
		next := m.cursors[0]
		t := next.dec.times[next.row]
		stop := c.row + 1
		for stop < end && (c.dec.times[stop] < t || c.dec.times[stop] == t && c.first < next.first) {
			stop++
		}
		end = stop
	}
	device, name := c.dicts.devices[number], c.dicts.sensors[sensor]
	for c.row < end {
		if m.group.full(device) {
			if err := m.endGroup(); err != nil {
				return err
			}
		}
		r := c.at(c.row)
		p, err := c.take()
		if err != nil {
			return m.fault(ctx, c, err)
		}
		m.digests[c.first+p].row(device, name, &r)
		m.group.add(device, name, r, c.first+p)
	}
	return m.enter(ctx, c)
}

func (g *groupBuilder) reset() {
	g.rows, g.devices, g.line, g.run, g.part = g.rows[:0], nil, nil, 0, 0
	g.sensors = dictionaryOf{index: map[string]uint32{}}
}

// full reports whether a row of the device begins another row group.
func (g *groupBuilder) full(device string) bool {
	n := len(g.devices)
	return len(g.rows) >= groupRows || n >= groupDevices && g.devices[n-1] != device
}

func (g *groupBuilder) add(device, sensor string, r telemetry.Row, p int) {
	g.batchBuilder.add(device, sensor, r)
	if p != g.part {
		g.endRun()
	}
	g.part = p
	g.run++
}

func (g *groupBuilder) endRun() {
	if g.run > 0 {
		g.line = wire.AppendUint(wire.AppendUint(g.line, uint64(g.part)), g.run)
	}
	g.run = 0
}

// endGroup writes the row group that was gathered.
func (m *fileMerger) endGroup() error {
	g := &m.group
	if len(g.rows) == 0 {
		return nil
	}
	b := g.batch()
	if err := m.enc.group(b, b.Rows); err != nil {
		return fmt.Errorf("encode row group %d: %w", len(m.lines), err)
	}
	g.endRun()
	m.lines = append(m.lines, m.enc.fast.EncodeAll(g.line, nil))
	m.rows = append(m.rows, int64(len(g.line)))
	g.reset()
	return m.handOn()
}

// handOn gives what is encoded to the file.
func (m *fileMerger) handOn() error {
	e := m.enc
	m.sums.add(e.out)
	if err := m.out(e.out); err != nil {
		return err
	}
	e.base, e.out = e.at(), e.out[:0]
	return nil
}

// finish writes what is behind the rows.
func (m *fileMerger) finish(ctx context.Context) (Segment, error) {
	e := m.enc
	if err := e.pageIndex(); err != nil {
		return Segment{}, err
	}
	table := partsTable{}
	for i, line := range m.lines {
		table.lines = append(table.lines, lineage{at: e.at(), size: int64(len(line)), raw: m.rows[i]})
		e.out = append(e.out, line...)
	}
	for _, c := range m.heads {
		if err := m.extras(ctx, c); err != nil {
			return Segment{}, err
		}
	}
	table.parts = m.parts
	shard, ns := m.inputs[0].Shard, m.store.cfg.Namespace
	meta := metadata{Namespace: ns, Segment: Segment{Shard: shard, From: m.parts[0].From, To: m.parts[len(m.parts)-1].To, Parts: len(m.parts)}}
	for i := range m.parts {
		meta.add(&m.parts[i])
	}
	meta.Digest = partsDigest(ns, shard, m.parts)
	raw := table.append(nil)
	meta.PartsOffset, meta.PartsRawBytes = e.at(), int64(len(raw))
	e.out = e.fast.EncodeAll(raw, e.out)
	meta.PartsBytes = e.at() - meta.PartsOffset
	if err := m.handOn(); err != nil {
		return Segment{}, err
	}
	meta.Body, meta.Blocks = e.base, m.sums.end()
	var err error
	if e.out, err = appendFooter(e.out, &meta, e.groups); err != nil {
		return Segment{}, err
	}
	meta.Bytes = e.at()
	return meta.Segment, m.out(e.out)
}

// extras copies the device updates and anomalies of a file's parts, and compares
// the digests, for which they are the last that was missing.
func (m *fileMerger) extras(ctx context.Context, c *cursor) error {
	for i := range c.table.parts {
		p := &m.parts[c.first+i]
		var b telemetry.Batch
		if err := c.dec.extraOf(c.file, p, &b); err != nil {
			return m.fault(ctx, c, err)
		}
		if have := m.digests[c.first+i].end(p.Messages, b.Updates, b.Anomalies); have != p.Digest {
			return m.fault(ctx, c, &DigestError{Shard: m.inputs[0].Shard, From: p.From, To: p.To, Have: have, Want: p.Digest})
		}
		m.digests[c.first+i] = nil
		if p.extra.size == 0 {
			continue
		}
		raw, err := c.file.read(p.extra.at, p.extra.size, &c.dec.raw)
		if err != nil {
			return m.fault(ctx, c, err)
		}
		p.extra.at = m.enc.at()
		m.enc.out = append(m.enc.out, raw...)
		if len(m.enc.out) > encoderKeepBytes {
			if err := m.handOn(); err != nil {
				return err
			}
		}
	}
	return nil
}
