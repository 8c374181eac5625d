package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/importer"
	"github.com/sluice-iot/sluice/telemetry"
)

type detectCmd struct {
	File      string   `arg:"" help:"CSV, plain or gzip; - is standard input."`
	Time      string   `placeholder:"COLUMN" help:"Column of the time; default: timestamp, time, ts, unix_ts, datetime or date."`
	Layout    string   `name:"time-layout" placeholder:"LAYOUT" help:"Form of other times than RFC 3339, as Go writes it."`
	Value     []string `placeholder:"COLUMN" help:"Columns with values; default: all others that hold numbers."`
	Device    string   `placeholder:"COLUMN" help:"Column or template of the device id, where the file holds several."`
	Delimiter string   `default:"auto" help:"A character, tab, space (runs of blanks) or auto."`
	PerMonth  float64  `name:"alarms-per-month" default:"1" help:"False alarms that one device may raise in 30 days."`
	Scores    bool     `help:"Print every reading with its score (CSV) instead of the anomalies."`
	JSON      bool     `name:"json" help:"Print JSON, one anomaly a line."`
}

// Help is shown with --help.
func (detectCmd) Help() string {
	return "Runs the detector of the cluster over a file, without a cluster. Exit code 0 says that the file was read, whatever was found."
}

// series is one sensor of one device under detection.
type series struct {
	state anomaly.State
	open  *telemetry.Anomaly
}

// detection is the state of a run.
type detection struct {
	detector *anomaly.Detector
	series   map[[2]string]*series
	sensors  map[string]int // per device
	readings int64
	found    []telemetry.Anomaly
	each     func(device, sensor string, t int64, value float64, v *anomaly.Verdict) error // may be nil
}

// Run implements kong.
func (c *detectCmd) Run() error {
	params := anomaly.DefaultParams()
	params.AlarmsPerDeviceMonth = c.PerMonth
	if err := params.Validate(); err != nil {
		return err
	}
	report := &lineReport{w: os.Stderr}
	cfg := importer.Config{
		Path: c.File, Stdin: os.Stdin, Bad: report.bad,
		Mapping: importer.Mapping{Device: c.Device, Time: c.Time, TimeLayout: c.Layout, Sensors: c.Value, Delimiter: c.Delimiter},
	}
	if c.Device == "" {
		cfg.Mapping.DeviceID = "file"
	}
	if c.Time == importer.NoTime {
		return errors.New("time is none: the detector needs times")
	}
	out := bufio.NewWriter(os.Stdout)
	d := &detection{detector: anomaly.New(params), series: map[[2]string]*series{}, sensors: map[string]int{}}
	if c.Scores {
		d.each = func(device, sensor string, t int64, value float64, v *anomaly.Verdict) error {
			_, err := fmt.Fprintf(out, "%s,%s,%s,%s,%s\n", api.Time(t), device, sensor, strconv.FormatFloat(value, 'g', -1, 64), strconv.FormatFloat(float64(v.Score), 'g', 6, 32))
			return err
		}
		fmt.Fprintln(out, "time,device,sensor,value,score")
	}
	for row, err := range importer.Rows(cfg) {
		if err != nil {
			return errors.Join(out.Flush(), err)
		}
		if err := d.row(&row); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
	report.end()
	err := out.Flush()
	if err == nil && !c.Scores {
		err = c.print(d)
	}
	if err == nil && d.readings == 0 {
		err = errors.New("no reading could be used: see the lines above, and check --time and --value")
	}
	return err
}

// row steps the detector for every value of a row.
func (d *detection) row(row *importer.Row) error {
	for _, x := range row.Values {
		key := [2]string{row.Device, x.Sensor}
		s := d.series[key]
		if s == nil {
			s = &series{}
			d.series[key] = s
			d.sensors[row.Device]++
		}
		s.state.SetSensors(d.sensors[row.Device])
		v := d.detector.Step(&s.state, row.Time, x.Value)
		d.readings++
		d.alert(s, row, &x, &v)
		if d.each != nil {
			if err := d.each(row.Device, x.Sensor, row.Time, x.Value, &v); err != nil {
				return err
			}
		}
	}
	return nil
}

// alert follows the alert of a series.
func (d *detection) alert(s *series, row *importer.Row, x *importer.Value, v *anomaly.Verdict) {
	switch v.Alert {
	case anomaly.Opened:
		s.open = &telemetry.Anomaly{Device: row.Device, Sensor: x.Sensor, Opened: row.Time}
		fallthrough
	case anomaly.Updated:
		if s.open == nil {
			return
		}
		o := s.open
		o.Severity, o.Cause, o.Value, o.Expected, o.Low, o.High = v.Severity, v.Cause.String(), x.Value, v.Expected, v.Low, v.High
	case anomaly.Closed:
		if s.open != nil {
			s.open.Closed = row.Time
			d.found = append(d.found, *s.open)
			s.open = nil
		}
	}
}

// all are the anomalies in the order of their opening, the open ones too.
func (d *detection) all() []telemetry.Anomaly {
	out := d.found
	for _, s := range d.series {
		if s.open != nil {
			out = append(out, *s.open)
		}
	}
	slices.SortFunc(out, func(a, b telemetry.Anomaly) int {
		switch {
		case a.Opened != b.Opened:
			return int(min(1, max(-1, a.Opened-b.Opened)))
		case a.Device != b.Device:
			return slices.Compare([]string{a.Device}, []string{b.Device})
		}
		return slices.Compare([]string{a.Sensor}, []string{b.Sensor})
	})
	return out
}

func (c *detectCmd) print(d *detection) error {
	found := d.all()
	if c.JSON {
		for i := range found {
			if err := printLine(os.Stdout, api.AnomalyOf(&found[i])); err != nil {
				return err
			}
		}
		return nil
	}
	fmt.Printf("%s readings of %s series, %s anomalies\n", count(d.readings), count(len(d.series)), count(len(found)))
	if len(found) == 0 {
		return nil
	}
	fmt.Println()
	t := anomalyTable(os.Stdout)
	for i := range found {
		a := api.AnomalyOf(&found[i])
		t.row(anomalyRow(&a)...)
	}
	return t.flush()
}
