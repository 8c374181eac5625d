package synth

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/sluice-iot/sluice/anomaly"
)

// Engine is one turbofan of the C-MAPSS data set (Saxena and Goebel 2008, NASA):
// a simulated run until failure.
type Engine struct {
	Unit   int
	Cycles [][]float64 // 3 settings and 21 sensors of every cycle, up to the failure
}

// engineChannels are the settings and sensors of a line.
const engineChannels = 24

// ReadEngines reads a training file of C-MAPSS, plain or gzip.
func ReadEngines(path string) ([]Engine, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open engines: %w", err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	var out []Engine
	s := bufio.NewScanner(r)
	for line := 1; s.Scan(); line++ {
		fields := strings.Fields(s.Text())
		if len(fields) == 0 {
			continue
		}
		if len(fields) != engineChannels+2 {
			return nil, fmt.Errorf("%s line %d: %d fields, want %d", path, line, len(fields), engineChannels+2)
		}
		row := make([]float64, len(fields))
		for i, x := range fields {
			if row[i], err = strconv.ParseFloat(x, 64); err != nil {
				return nil, fmt.Errorf("%s line %d: %w", path, line, err)
			}
		}
		if unit := int(row[0]); len(out) == 0 || out[len(out)-1].Unit != unit {
			out = append(out, Engine{Unit: unit})
		}
		e := &out[len(out)-1]
		e.Cycles = append(e.Cycles, row[2:])
	}
	return out, s.Err()
}

// EngineResult is what the detector made of the engines.
type EngineResult struct {
	Engines    int     `json:"engines"`
	Flagged    int     `json:"flagged"`     // engines with an alert in the last two thirds of their life
	LeadCycles float64 `json:"lead_cycles"` // median, from the first such alert to the failure
	LeadShare  float64 `json:"lead_share"`  // median, of the life
	SeamShare  float64 `json:"seam_share"`  // engines with an alert in the first engineSeam cycles behind another engine's state
	EarlyShare float64 `json:"early_share"` // engines with an alert in the rest of the first third
	EarlyRate  float64 `json:"early_rate"`  // alerts per engine and 30 cycles there, behind the warm-up
	LateRate   float64 `json:"late_rate"`   // the same in the last third
}

// engineCycle is the time that a cycle is given: a flight a day.
const engineCycle = day

// engineSeam is how many cycles an engine that goes on from other engines' state
// needs until its own level is the norm, as many as close an alert: no two
// engines are alike, so that the first cycles are a level shift, a true one.
const engineSeam = 24

// EvaluateEngines runs every engine as a device of its own. peers is how many
// engines before it the detector has seen from their first third: it goes on
// from their states, as the detector of a new device of a known model may; 0
// lets every engine begin from nothing.
func EvaluateEngines(p anomaly.Params, engines []Engine, peers int) EngineResult {
	res := EngineResult{}
	var lead, share []float64
	early, earlyCycles, late, lateCycles := 0, 0, 0, 0
	seam := 0
	if peers > 0 {
		seam = engineSeam
	}
	for i := range engines {
		if i < peers {
			continue
		}
		alerts, warm := engineAlerts(p, engines[i-peers:i], engines[i].Cycles)
		n := len(engines[i].Cycles)
		res.Engines++
		first, any, seamed := -1, false, false
		for _, a := range alerts {
			switch {
			case a < seam:
				seamed = true
			case a < n/3:
				early++
				any = true
			case first < 0:
				first = a
			}
			if a >= n-n/3 {
				late++
			}
		}
		earlyCycles += max(0, n/3-max(warm, seam))
		lateCycles += n/3 - max(0, warm-(n-n/3))
		if seamed {
			res.SeamShare++
		}
		if any {
			res.EarlyShare++
		}
		if first >= 0 {
			res.Flagged++
			lead = append(lead, float64(n-first))
			share = append(share, float64(n-first)/float64(n))
		}
	}
	res.LeadCycles, res.LeadShare = median(lead), median(share)
	res.SeamShare /= float64(max(res.Engines, 1))
	res.EarlyShare /= float64(max(res.Engines, 1))
	res.EarlyRate = 30 * float64(early) / float64(max(earlyCycles, 1))
	res.LateRate = 30 * float64(late) / float64(max(lateCycles, 1))
	return res
}

// engineAlerts returns the cycles at which alerts opened, and the first cycle
// behind the warm-up.
func engineAlerts(p anomaly.Params, before []Engine, cycles [][]float64) (alerts []int, warm int) {
	det := anomaly.New(p)
	states := make([]anomaly.State, engineChannels)
	for k := range states {
		states[k].SetSensors(len(states))
	}
	var dev anomaly.DeviceState
	var row anomaly.Row
	t := int64(startTime)
	step := func(values []float64) anomaly.DeviceVerdict {
		row.Reset()
		for k, x := range values {
			det.Add(&row, &states[k], t, x)
		}
		t += engineCycle
		return det.Finish(&dev, &row, t-engineCycle)
	}
	for _, e := range before {
		for _, c := range e.Cycles[:len(e.Cycles)/3] {
			step(c)
		}
	}
	warm = -1
	for i, c := range cycles {
		v := step(c)
		if !v.Warmup && warm < 0 {
			warm = i
		}
		if v.Alert == anomaly.Opened {
			alerts = append(alerts, i)
		}
	}
	if warm < 0 {
		warm = len(cycles)
	}
	return alerts, warm
}
