package synth

import (
	"slices"

	"github.com/sluice-iot/sluice/anomaly"
)

// PlantResult is what the detector made of plants.
type PlantResult struct {
	Plants      int                `json:"plants"`
	Recall      float64            `json:"recall"`       // share of the faults with an alert
	Found       map[string]float64 `json:"found"`        // the same by fault
	DelayRows   float64            `json:"delay_rows"`   // median
	FirstRate   float64            `json:"first_rate"`   // alerts per plant-day without a fault, in days 1 to 5
	LaterRate   float64            `json:"later_rate"`   // in days 6 to 10
	FaultRate   float64            `json:"fault_rate"`   // behind them, outside of the faults and the two hours after
	SwitchShare float64            `json:"switch_share"` // changes of mode in days 6 to 10 with an alert within five minutes
	Inside      float64            `json:"inside"`       // mean severity in the first half hour of a fault
	Outside     float64            `json:"outside"`      // mean severity elsewhere in the second half
	// Precision is the average precision of the rows of faults among all rows of
	// their plant, ranked by severity; mean over the plants.
	Precision float64 `json:"average_precision"`
}

// plantRecovery is how many rows behind a fault belong to it: the tank fills and
// cools by itself.
const plantRecovery = 120

// plantTally adds up plants.
type plantTally struct {
	PlantResult
	delays                                                           []float64
	first, later, falseAlarms, quietRows, switches, seen, insideRows int
}

// EvaluatePlants runs plants with seeds first, first+1, ...
func EvaluatePlants(p anomaly.Params, first uint64, plants int) PlantResult {
	t := plantTally{PlantResult: PlantResult{Plants: plants, Found: map[string]float64{}}}
	for i := range plants {
		pl := NewPlant(first + uint64(i))
		opened, severity := playPlant(p, pl)
		near := t.faults(pl, opened, severity)
		broken := make([]bool, plantRows)
		for j := range broken {
			broken[j] = pl.faultAt(j) != ""
		}
		t.Precision += averagePrecision(severity, broken) / float64(plants)
		t.quiet(pl, opened, near, severity)
	}
	days := float64(plants) * plantDays / 4
	t.Recall = float64(len(t.delays)) / float64(max(plants*plantFaults, 1))
	for f := range t.Found {
		t.Found[f] /= float64(plants)
	}
	t.DelayRows = median(t.delays)
	t.FirstRate, t.LaterRate = float64(t.first)/days, float64(t.later)/days
	t.FaultRate = float64(t.falseAlarms) / float64(max(t.quietRows, 1)) * float64(day/plantCadence)
	t.SwitchShare = float64(t.seen) / float64(max(t.switches, 1))
	t.Inside /= float64(max(t.insideRows, 1))
	t.Outside /= float64(max(t.quietRows, 1))
	return t.PlantResult
}

// playPlant returns for every row whether an alert opened, and the severity.
func playPlant(p anomaly.Params, pl *Plant) (opened []bool, severity []float64) {
	det, states := anomaly.New(p), make([]anomaly.State, plantSensors)
	for k := range states {
		states[k].SetSensors(len(states))
	}
	var dev anomaly.DeviceState
	var row anomaly.Row
	for j, t := range pl.Times {
		row.Reset()
		for k, x := range pl.Values[j] {
			det.Add(&row, &states[k], t, x)
		}
		v := det.Finish(&dev, &row, t)
		opened, severity = append(opened, v.Alert == anomaly.Opened), append(severity, v.Severity)
	}
	return opened, severity
}

// faults counts what was found, and returns the rows that belong to a fault.
func (t *plantTally) faults(pl *Plant, opened []bool, severity []float64) []bool {
	near := make([]bool, plantRows)
	for _, f := range pl.Faults {
		for j := f.From; j < min(f.To+plantRecovery, plantRows); j++ {
			near[j] = true
		}
		for j := f.From; j < f.From+30; j++ {
			t.Inside += severity[j]
			t.insideRows++
		}
		found := 0.0
		for j := f.From; j < f.To+10; j++ {
			if opened[j] {
				t.delays = append(t.delays, float64(j-f.From))
				found = 1
				break
			}
		}
		t.Found[f.Fault] += found
	}
	return near
}

// quiet counts alerts where nothing is broken.
func (t *plantTally) quiet(pl *Plant, opened, near []bool, severity []float64) {
	for j, o := range opened {
		n := 0
		if o {
			n = 1
		}
		switch {
		case j < plantRows/4:
			t.first += n
		case j < plantHealthy:
			t.later += n
		case !near[j]:
			t.falseAlarms += n
			t.quietRows++
			t.Outside += severity[j]
		}
	}
	for _, j := range pl.Switches {
		if j < plantRows/4 || j >= plantHealthy-5 {
			continue
		}
		t.switches++
		if slices.Contains(opened[j:j+5], true) {
			t.seen++
		}
	}
}
