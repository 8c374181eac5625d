package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/anomaly/synth"
)

type benchAnomaliesCmd struct {
	Devices  int     `default:"60" help:"Devices per kind of fault."`
	Seed     uint64  `default:"1000" help:"Of the first device."`
	Plants   int     `default:"20" help:"Plants: devices of 13 columns with modes, set points, binary and constant ones. 0: none."`
	Waves    int     `default:"40" help:"Waves: series with a period of 12 to 192 rows. 0: none."`
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
	Plants  *synth.PlantResult   `json:"plants,omitempty"`
	Waves   *synth.WaveResult    `json:"waves,omitempty"`
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
	if c.Plants < 0 || c.Plants > 10_000 {
		return fmt.Errorf("plants is %d: use 0 to 10000", c.Plants)
	}
	if c.Waves < 0 || c.Waves > 10_000 {
		return fmt.Errorf("waves is %d: use 0 to 10000", c.Waves)
	}
	p := anomaly.DefaultParams()
	p.AlarmsPerDeviceMonth = c.PerMonth
	if err := p.Validate(); err != nil {
		return err
	}
	r := anomaliesReport{Target: c.PerMonth, Faults: synth.Evaluate(p, c.Seed, c.Devices)}
	if c.Plants > 0 {
		plants := synth.EvaluatePlants(p, c.Seed, c.Plants)
		r.Plants = &plants
	}
	if c.Waves > 0 {
		waves := synth.EvaluateWaves(p, c.Seed, c.Waves)
		r.Waves = &waves
	}
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
	t := newTable(os.Stdout, "FAULT", ">DEVICES", ">RECALL", ">DELAY, MESSAGES", ">HOURS", ">RIGHT SENSOR", ">AVERAGE PRECISION", ">FALSE ALARMS", ">PER DEVICE-MONTH")
	recall, precision, faults, alarms, months := 0.0, 0.0, 0, 0, 0.0
	for i := range r.Faults {
		f := &r.Faults[i]
		alarms += f.FalseAlarms
		months += f.Months
		if f.Fault == synth.None {
			t.row("none", count(f.Devices), "", "", "", "", "", count(f.FalseAlarms), fixed(f.Rate, 2))
			continue
		}
		recall += f.Recall
		precision += f.Precision
		faults++
		t.row(string(f.Fault), count(f.Devices), fixed(f.Recall, 2), fixed(f.DelayRows, 0), fixed(f.DelayHours, 1), fixed(f.Sensor, 2), fixed(f.Precision, 2), count(f.FalseAlarms), fixed(f.Rate, 2))
	}
	t.row("all", "", fixed(recall/float64(faults), 2), "", "", "", fixed(precision/float64(faults), 2), count(alarms), fixed(float64(alarms)/months, 2))
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Printf("\nTarget: %v false alarms per device-month.\n", r.Target)
	if err := errors.Join(r.printPlants(), r.printWaves()); err != nil || len(r.Engines) == 0 {
		return err
	}
	fmt.Println("\nTurbofans (C-MAPSS), a cycle counted as a day:")
	e := newTable(os.Stdout, "DETECTOR", ">ENGINES", ">FLAGGED", ">CYCLES BEFORE FAILURE", ">ALERTS/30 CYCLES, FIRST THIRD", ">LAST THIRD", ">ENGINES ALERTING IN FIRST THIRD", ">AT THE SEAM")
	for i, name := range []string{"alone, warm-up " + strconv.Itoa(shortestWarmup), "behind " + strconv.Itoa(enginePeers) + " peers"} {
		x := &r.Engines[i]
		e.row(name, count(x.Engines), count(x.Flagged), fixed(x.LeadCycles, 0), fixed(x.EarlyRate, 2), fixed(x.LateRate, 2), fixed(x.EarlyShare, 2), fixed(x.SeamShare, 2))
	}
	return e.flush()
}

func (r *anomaliesReport) printWaves() error {
	x := r.Waves
	if x == nil {
		return nil
	}
	_, err := fmt.Printf("\nWaves, a period of 12 to 192 rows, four stretches wrong: %d, recall %.2f, average precision %.2f, %.2f alerts elsewhere in each.\n", x.Waves, x.Recall, x.Precision, x.Alerts)
	return err
}

func (r *anomaliesReport) printPlants() error {
	x := r.Plants
	if x == nil {
		return nil
	}
	fixed := func(f float64, digits int) string { return strconv.FormatFloat(f, 'f', digits, 64) }
	fmt.Println("\nPlants, a row a minute for 20 days, six faults in the second half:")
	t := newTable(os.Stdout, "PLANTS", ">RECALL", ">DELAY, MESSAGES", ">ALERTS A DAY, DAYS 1-5", ">6-10", ">BEHIND, NO FAULT", ">MODE CHANGES WITH ALERT", ">SEVERITY IN FAULTS", ">ELSEWHERE", ">AVERAGE PRECISION")
	t.row(count(x.Plants), fixed(x.Recall, 2), fixed(x.DelayRows, 0), fixed(x.FirstRate, 2), fixed(x.LaterRate, 2), fixed(x.FaultRate, 3), fixed(x.SwitchShare, 2), fixed(x.Inside, 1), fixed(x.Outside, 1), fixed(x.Precision, 2))
	if err := t.flush(); err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(x.Found))
	for i, name := range names {
		names[i] = name + " " + fixed(x.Found[name], 2)
	}
	fmt.Println("Recall by fault: " + strings.Join(names, ", "))
	return nil
}
