package main

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/importer"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// detection is a file with what the detector says of it.
type detection struct {
	sensors []string
	devices []string
	ranges  []*shard.Range // of the sensors, nil where none is known
	rows    []detectRow    // in the order of the file
	order   []int          // of rows, by time

	readings, series int
	found            []telemetry.Anomaly
}

// detectRow is a line of the file; sensors are in the order of their names in
// detection.sensors.
type detectRow struct {
	line   int64
	time   int64
	device int
	bad    string
	lost   bool      // no time: nothing of it could be used
	values []float64 // NaN is no value

	verdicts []anomaly.Verdict // of the values, as long as values
	shares   []float64
	told     string // the shares in words, where an alert is told
	joint    anomaly.DeviceVerdict
	top      int // sensor, -1 for none
}

// read takes the whole file into memory: two numbers and a verdict per cell.
func (c *detectCmd) read() (*detection, error) {
	report := &lineReport{w: os.Stderr, what: "lines with something that is not used"}
	cfg := importer.Config{
		Path: c.File, Stdin: os.Stdin, Bad: report.bad,
		Mapping: importer.Mapping{Device: c.Device, Time: c.Time, TimeLayout: c.Layout, Sensors: c.Value, NoHeader: c.NoHeader, Columns: c.Columns, Delimiter: c.Delimiter},
	}
	if c.Device == "" {
		cfg.Mapping.DeviceID = "file"
	}
	f := &detection{}
	index, devices := map[string]int{}, map[string]int{}
	for row, err := range importer.Rows(cfg) {
		if err != nil {
			return nil, err
		}
		f.add(&row, index, devices)
	}
	report.end()
	f.sort()
	return f, nil
}

func (f *detection) add(row *importer.Row, index, devices map[string]int) {
	r := detectRow{line: row.Line, time: row.Time, bad: row.Bad, lost: row.Bad != "" && len(row.Values) == 0, top: -1}
	if !r.lost {
		dev, ok := devices[row.Device]
		if !ok {
			dev = len(f.devices)
			devices[row.Device] = dev
			f.devices = append(f.devices, row.Device)
		}
		r.device = dev
	}
	for _, v := range row.Values {
		k, ok := index[v.Sensor]
		if !ok {
			k = len(f.sensors)
			index[v.Sensor] = k
			f.sensors = append(f.sensors, v.Sensor)
		}
		for len(r.values) <= k {
			r.values = append(r.values, math.NaN())
		}
		r.values[k] = v.Value
	}
	f.rows = append(f.rows, r)
}

// sort finds the order of time, in which rows are scored; they are printed in
// the order of the file.
func (f *detection) sort() {
	at, late, first := int64(math.MinInt64), 0, int64(0)
	for i := range f.rows {
		r := &f.rows[i]
		if r.lost {
			continue
		}
		f.order = append(f.order, i)
		if r.time < at {
			if late++; late == 1 {
				first = r.line
			}
		}
		at = max(at, r.time)
	}
	if late == 0 {
		return
	}
	slices.SortStableFunc(f.order, func(a, b int) int { return cmp.Compare(f.rows[a].time, f.rows[b].time) })
	fmt.Fprintf(os.Stderr, "%s lines are older than a line before them, the first is line %d: scored in the order of time\n", count(late), first)
}

// detect scores every row as a shard scores a message.
func (f *detection) detect(p anomaly.Params) {
	d := anomaly.New(p)
	states := make([][]anomaly.State, len(f.devices))
	known := make([]int, len(f.devices))
	devices := make([]anomaly.DeviceState, len(f.devices))
	open := make([]*telemetry.Anomaly, len(f.devices))
	var row anomaly.Row
	for _, i := range f.order {
		r := &f.rows[i]
		if states[r.device] == nil {
			states[r.device] = make([]anomaly.State, len(f.sensors))
		}
		f.step(d, r, states[r.device], &known[r.device], &devices[r.device], &row)
		f.follow(r, &open[r.device])
	}
	for _, o := range open {
		if o != nil {
			f.found = append(f.found, *o)
		}
	}
	for _, n := range known {
		f.series += n
	}
	slices.SortStableFunc(f.found, func(a, b telemetry.Anomaly) int {
		return cmp.Or(cmp.Compare(a.Opened, b.Opened), strings.Compare(a.Device, b.Device))
	})
}

// step is one message. A device's sensors are told apart from their first value
// on, before anything of the row is scored.
func (f *detection) step(d *anomaly.Detector, r *detectRow, states []anomaly.State, known *int, dev *anomaly.DeviceState, row *anomaly.Row) {
	fresh := 0
	for k, x := range r.values {
		if x == x && states[k].Readings() == 0 {
			fresh++
		}
	}
	if fresh > 0 {
		*known += fresh
		for k := range states {
			states[k].SetSensors(*known)
		}
	}
	row.Reset()
	r.verdicts = make([]anomaly.Verdict, len(r.values))
	var members []int
	for k, x := range r.values {
		if x != x {
			continue
		}
		f.readings++
		r.verdicts[k] = *d.Add(row, &states[k], r.time, x)
		members = append(members, k)
		f.exceed(row, k, x)
	}
	r.joint = d.Finish(dev, row, r.time)
	if row.Len() != len(members) || len(members) == 0 {
		return
	}
	r.top = members[r.joint.Top]
	if r.joint.Alert == anomaly.Opened || r.joint.Alert == anomaly.Updated {
		r.told = shard.SharesOf(row, func(i int) string { return f.sensors[members[i]] })
	}
	if len(members) > 1 && r.joint.Score > 0 {
		r.shares = make([]float64, len(r.values))
		for i, k := range members {
			r.shares[k] = row.Share(i)
		}
	}
}

// follow moves the device's anomaly along.
func (f *detection) follow(r *detectRow, open **telemetry.Anomaly) {
	v := &r.joint
	if v.Alert == anomaly.Opened {
		*open = &telemetry.Anomaly{Device: f.devices[r.device], Opened: r.time}
	}
	o := *open
	if o == nil {
		return
	}
	switch v.Alert {
	case anomaly.Opened, anomaly.Updated:
		o.Severity, o.Cause, o.Shares = max(o.Severity, 100*float64(v.Score)), v.Cause.String(), r.told
		if r.top >= 0 {
			o.Sensor, o.Value, o.Expected = f.sensors[r.top], r.values[r.top], r.verdicts[r.top].Expected
			o.Low, o.High = f.band(r)
		}
	case anomaly.Closed:
		o.Closed = r.time
		f.found = append(f.found, *o)
		*open = nil
	}
}
