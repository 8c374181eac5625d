package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/anomaly/synth"
)

type benchAnomaliesCmd struct {
	Devices  int     `default:"60" help:"Devices per kind of fault."`
	Seed     uint64  `default:"1000" help:"Of the first device."`
	PerMonth float64 `name:"alarms-per-month" default:"1" help:"The target: false alarms of one device in 30 days."`
	Engines  string  `placeholder:"FILE" help:"C-MAPSS training file (train_FD001.txt, plain or gzip), or its folder: run to failure of 100 turbofans."`
	JSON     bool    `name:"json" help:"Print JSON."`
}

// Help is shown with --help.
func (benchAnomaliesCmd) Help() string {
	return "Recall, delay and false alarms per device-month of the frozen detector on generated telemetry with labelled faults."
}

type anomaliesReport struct {
	Target  float64              `json:"target"`
	Faults  []synth.Result       `json:"faults"`
	Engines []synth.EngineResult `json:"engines,omitempty"` // alone with the shortest warm-up, then behind ten peers with the frozen defaults
}

const (
	enginePeers    = 10
	shortestWarmup = 64
)

// Run implements kong.
func (c *benchAnomaliesCmd) Run() error {
	if c.Devices < 1 || c.Devices > 10_000 {
		return fmt.Errorf("devices is %d: use 1 to 10000", c.Devices)
	}
	p := anomaly.DefaultParams()
	p.AlarmsPerDeviceMonth = c.PerMonth
	if err := p.Validate(); err != nil {
		return err
	}
	r := anomaliesReport{Target: c.PerMonth, Faults: synth.Evaluate(p, c.Seed, c.Devices)}
	if c.Engines != "" {
		engines, err := readEngines(c.Engines)
		if err != nil {
			return err
		}
		short := p
		short.Warmup = shortestWarmup
		r.Engines = []synth.EngineResult{synth.EvaluateEngines(short, engines, 0), synth.EvaluateEngines(p, engines, enginePeers)}
	}
	if c.JSON {
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	return r.print()
}

func readEngines(path string) ([]synth.Engine, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		found, err := filepath.Glob(filepath.Join(path, "train_FD001.txt*"))
		if err != nil || len(found) == 0 {
			return nil, fmt.Errorf("no train_FD001.txt or train_FD001.txt.gz in %s", path)
		}
		path = found[0]
	}
	return synth.ReadEngines(path)
}

func (r *anomaliesReport) print() error {
	fixed := func(f float64, digits int) string { return strconv.FormatFloat(f, 'f', digits, 64) }
	t := newTable(os.Stdout, "FAULT", ">DEVICES", ">RECALL", ">DELAY, MESSAGES", ">HOURS", ">RIGHT SENSOR", ">FALSE ALARMS", ">PER DEVICE-MONTH")
	recall, faults, alarms, months := 0.0, 0, 0, 0.0
	for i := range r.Faults {
		f := &r.Faults[i]
		alarms += f.FalseAlarms
		months += f.Months
		if f.Fault == synth.None {
			t.row("none", count(f.Devices), "", "", "", "", count(f.FalseAlarms), fixed(f.Rate, 2))
			continue
		}
		recall += f.Recall
		faults++
		t.row(string(f.Fault), count(f.Devices), fixed(f.Recall, 2), fixed(f.DelayRows, 0), fixed(f.DelayHours, 1), fixed(f.Sensor, 2), count(f.FalseAlarms), fixed(f.Rate, 2))
	}
	t.row("all", "", fixed(recall/float64(faults), 2), "", "", "", count(alarms), fixed(float64(alarms)/months, 2))
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Printf("\nTarget: %v false alarms per device-month.\n", r.Target)
	if len(r.Engines) == 0 {
		return nil
	}
	fmt.Println("\nTurbofans (C-MAPSS), a cycle counted as a day:")
	e := newTable(os.Stdout, "DETECTOR", ">ENGINES", ">FLAGGED", ">CYCLES BEFORE FAILURE", ">ALERTS/30 CYCLES, FIRST THIRD", ">LAST THIRD", ">ENGINES ALERTING IN FIRST THIRD")
	for i, name := range []string{"alone, warm-up " + strconv.Itoa(shortestWarmup), "behind " + strconv.Itoa(enginePeers) + " peers"} {
		x := &r.Engines[i]
		e.row(name, count(x.Engines), count(x.Flagged), fixed(x.LeadCycles, 0), fixed(x.EarlyRate, 2), fixed(x.LateRate, 2), fixed(x.EarlyShare, 2))
	}
	return e.flush()
}
