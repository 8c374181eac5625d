package parquet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/sluice-iot/sluice/store"
)

// openPage replaces a page by its runs of wanted points: one per sensor,
// ascending, because rows are sorted by device, sensor and time.
func (m *merger) openPage(f *segmentFile, src source) error {
	m.store.metrics.readPages.Inc()
	runs, err := m.decoder.selectPoints(f, &f.groups[src.group], src.page, m)
	if err != nil {
		return m.store.corrupt(src.segment, fmt.Errorf("row group %d page %d: %w", src.group, src.page, err))
	}
	for i, run := range runs {
		m.push(source{bound: run[0].Time, order: src.order + uint64(i), run: run})
	}
	return nil
}

// selectPoints reads the columns that decide first, the others only when a row
// is wanted.
func (d *decoder) selectPoints(s *segmentFile, g *rowGroup, page int, m *merger) ([][]store.Point, error) {
	lo, hi, err := d.deviceRows(s, g, page, m.query.Device)
	if err != nil || lo == hi {
		return nil, err
	}
	if d.times, err = d.timestamps(s, g, colTime, page, d.times); err != nil {
		return nil, fmt.Errorf("time: %w", err)
	}
	wanted := false
	for _, t := range d.times[lo:hi] {
		wanted = wanted || (t >= m.from && t < m.to)
	}
	if !wanted {
		return nil, nil
	}
	dicts, err := m.dicts(s, g)
	if err != nil {
		return nil, err
	}
	if d.sensors, err = d.dictNumbers(s, g, colSensor, page, len(dicts.sensors), d.sensors); err != nil {
		return nil, fmt.Errorf("sensor: %w", err)
	}
	if err := d.numberColumns(s, g, page, &dicts.numberDicts); err != nil {
		return nil, err
	}
	return d.runs(lo, hi, dicts.sensors, m), nil
}

// dicts are the dictionaries of the row group at hand; a query that reads
// several pages of a group reads them once. Devices are left out.
func (m *merger) dicts(s *segmentFile, g *rowGroup) (*groupDicts, error) {
	if m.group == g {
		return &m.groupDicts, nil
	}
	var t groupDicts
	var err error
	if t.sensors, err = m.decoder.strings(s, g, colSensor); err != nil {
		return nil, fmt.Errorf("sensors: %w", err)
	}
	if t.numberDicts, err = m.decoder.numberDicts(s, g); err != nil {
		return nil, err
	}
	m.group, m.groupDicts = g, t
	return &m.groupDicts, nil
}

// deviceRows finds the rows of a device in a page: they are neighbours.
func (d *decoder) deviceRows(s *segmentFile, g *rowGroup, page int, device string) (lo, hi int, err error) {
	p := &g.pages[page]
	if p.minDevice == device && p.maxDevice == device {
		return 0, int(p.rows), nil
	}
	n, err := d.dictionary(s, g, colDevice)
	if err != nil {
		return 0, 0, fmt.Errorf("devices: %w", err)
	}
	number, ok, err := search(d.plain, device)
	if err != nil || !ok {
		return 0, 0, err
	}
	if d.devices, err = d.dictNumbers(s, g, colDevice, page, n, d.devices); err != nil {
		return 0, 0, fmt.Errorf("device_id: %w", err)
	}
	for lo < len(d.devices) && d.devices[lo] != number {
		lo++
	}
	for hi = lo; hi < len(d.devices) && d.devices[hi] == number; hi++ {
	}
	return lo, hi, nil
}

// search finds an entry of a sorted dictionary page.
func search(dict []byte, want string) (number int32, ok bool, err error) {
	for at := 0; at < len(dict); number++ {
		if at+4 > len(dict) {
			return 0, false, errors.New("dictionary ends inside of an entry")
		}
		n := int(binary.LittleEndian.Uint32(dict[at:]))
		at += 4
		if n < 0 || n > len(dict)-at {
			return 0, false, errors.New("dictionary ends inside of an entry")
		}
		switch bytes.Compare(dict[at:at+n], []byte(want)) {
		case 0:
			return number, true, nil
		case 1:
			return 0, false, nil
		}
		at += n
	}
	return 0, false, nil
}

// runs makes the wanted points of rows [lo, hi) of the decoded page.
func (d *decoder) runs(lo, hi int, sensors []string, m *merger) [][]store.Point {
	var runs [][]store.Point
	var end int
	for ; lo < hi; lo = end {
		number := d.sensors[lo]
		for end = lo + 1; end < hi && d.sensors[end] == number; end++ {
		}
		if name := sensors[number]; m.query.Sensor == "" || m.query.Sensor == name {
			if run := d.run(lo, end, m.name(name), m); len(run) > 0 {
				runs = append(runs, run)
			}
		}
	}
	return runs
}

// run makes the wanted points of the rows of one series, whose times ascend.
func (d *decoder) run(lo, hi int, sensor string, m *merger) []store.Point {
	first, _ := slices.BinarySearch(d.times[lo:hi], m.from)
	last, _ := slices.BinarySearch(d.times[lo:hi], m.to)
	if first >= last {
		return nil
	}
	run := make([]store.Point, 0, last-first)
	for i := lo + first; i < lo+last; i++ {
		p := store.Point{
			Time: d.times[i], Received: d.received[i], Sensor: sensor,
			Value: d.values[i], Score: d.scores[i], Quality: d.qualities[i],
		}
		if m.query.Matches(&p) {
			run = append(run, p)
		}
	}
	sortRun(run)
	if m.query.Desc { // of equal points the first stays the first
		run = slices.CompactFunc(run, func(a, b store.Point) bool { return a.Compare(&b) == 0 })
		slices.Reverse(run)
	}
	return run
}

// sortRun orders points of one time by their values; rows of one time are in
// log order, and equal points stay in it.
func sortRun(run []store.Point) {
	for i := 1; i < len(run); i++ {
		if run[i-1].Compare(&run[i]) > 0 {
			slices.SortStableFunc(run, func(a, b store.Point) int { return a.Compare(&b) })
			return
		}
	}
}

// name gives every point of a sensor the same string, apart from the page's
// dictionary, which would stay in memory with it.
func (m *merger) name(s string) string {
	if n, ok := m.names[s]; ok {
		return n
	}
	n := string([]byte(s))
	m.names[n] = n
	return n
}
