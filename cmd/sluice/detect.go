package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/importer"
)

type detectCmd struct {
	File      string   `arg:"" help:"CSV, plain or gzip; - is standard input."`
	Time      string   `placeholder:"COLUMN" help:"Column of the time, or {date} {time}; default: timestamp, time, ts, date, epoch and the like, else the first with dates."`
	Layout    string   `name:"time-layout" placeholder:"LAYOUT" help:"Form of other times than RFC 3339 and epochs, as Go writes it."`
	Value     []string `aliases:"sensors" placeholder:"COLUMN" help:"Columns with values; default: all others that hold numbers, but for labels (label, anomaly, is_anomaly, changepoint, ...)."`
	Device    string   `placeholder:"COLUMN" help:"Column or template of the device id, where the file holds several."`
	NoHeader  bool     `help:"The first line is data already, whatever it looks like."`
	Columns   []string `placeholder:"NAME" help:"Names of the columns of a file without header; default c1,c2,..."`
	Delimiter string   `default:"auto" help:"A character, tab, space (runs of blanks) or auto."`
	PerMonth  float64  `name:"alarms-per-month" default:"1" help:"False alarms that one device may raise in 30 days."`
	Range     []string `sep:"none" placeholder:"NAME=LO:HI" help:"What a column can measure: a value outside is an anomaly. Once for each column."`
	JSON      bool     `name:"json" help:"Print every row with its severity, one JSON object a line."`
	Scores    bool     `help:"Print every reading with its score (CSV)."`
	Alerts    bool     `help:"With --json: print the anomalies instead of the rows."`
	Plot      string   `placeholder:"FILE" help:"Draw series, band and alerts: FILE.svg or FILE.png."`
}

// Help is shown with --help.
func (detectCmd) Help() string {
	return `Runs the detector of the cluster over a file, without a cluster, with the same code and the same parameters for every file. The columns of a row are the sensors of one device.

Rows are scored in the order of their time and printed in the order of the file; when these differ, that is said on standard error. A cell that is no number costs itself, a line without a time costs itself: both are reported with their line number on standard error, and a line of JSON says so in "error". Exit code 0 says that the file was read, whatever was found.`
}

// Run implements kong.
func (c *detectCmd) Run() error {
	params := anomaly.DefaultParams()
	params.AlarmsPerDeviceMonth = c.PerMonth
	if err := params.Validate(); err != nil {
		return err
	}
	if c.Time == importer.NoTime {
		return errors.New("time is none: the detector needs times")
	}
	if c.JSON && c.Scores {
		return errors.New("json and scores are both given: use one of them")
	}
	if err := plotName(c.Plot); err != nil {
		return err
	}
	ranges, err := parseRanges(c.Range)
	if err != nil {
		return err
	}
	f, err := c.read()
	if err != nil {
		return err
	}
	if err := f.setRanges(ranges); err != nil {
		return err
	}
	if len(f.rows) == 0 {
		return fmt.Errorf("%s has no line of data behind its header: to read that as data use --no-header", c.File)
	}
	f.detect(params)
	if c.Plot != "" {
		if err := f.plot(c.Plot); err != nil {
			return err
		}
	}
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	switch {
	case c.JSON && !c.Alerts:
		err = f.printRows(out)
	case c.Scores:
		err = f.printScores(out)
	default:
		err = c.print(out, f)
	}
	if e := out.Flush(); err == nil && e != nil {
		err = fmt.Errorf("write output: %w", e)
	}
	if err == nil && f.readings == 0 {
		err = errors.New("no reading could be used: see the lines above, and check --time and --value")
	}
	return err
}

// print is the list of anomalies.
func (c *detectCmd) print(out *bufio.Writer, f *detection) error {
	if c.JSON {
		for i := range f.found {
			if err := printLine(out, api.AnomalyOf(&f.found[i])); err != nil {
				return err
			}
		}
		return nil
	}
	fmt.Fprintf(out, "%s readings of %s series, %s anomalies\n", count(f.readings), count(f.series), count(len(f.found)))
	if len(f.found) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	t := anomalyTable(out)
	for i := range f.found {
		a := api.AnomalyOf(&f.found[i])
		t.row(anomalyRow(&a)...)
	}
	return t.flush()
}
