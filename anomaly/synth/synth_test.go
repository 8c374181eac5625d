package synth

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/sluice-iot/sluice/anomaly"
)

func TestASeedIsOneDevice(t *testing.T) {
	for _, f := range append(Faults(), None) {
		a, b := Generate(3, f), Generate(3, f)
		if len(a.Times) != len(b.Times) || len(a.Sensors) != len(b.Sensors) || a.From != b.From {
			t.Fatalf("%s: %d rows from %d, then %d from %d", f, len(a.Times), a.From, len(b.Times), b.From)
		}
		for i := range a.Times {
			if i > 0 && a.Times[i] < a.Times[i-1] {
				t.Fatalf("%s: row %d goes back in time", f, i)
			}
			for k := range a.Values[i] {
				if x, y := a.Values[i][k], b.Values[i][k]; math.Float64bits(x) != math.Float64bits(y) {
					t.Fatalf("%s: row %d, sensor %d: %v, then %v", f, i, k, x, y)
				}
			}
		}
	}
}

// A fault changes the broken sensor within its rows and nothing else.
func TestAFaultStaysInItsRows(t *testing.T) {
	for _, f := range Faults() {
		if f == CounterReset { // lasts to the end
			continue
		}
		d := Generate(5, f)
		changed := 0
		if d.From < len(d.Times)/2 || d.To <= d.From || d.To > len(d.Times) || len(d.Broken) != 1 {
			t.Fatalf("%s: rows %d to %d of %d, sensors %v", f, d.From, d.To, len(d.Times), d.Broken)
		}
		for i := d.From; i < d.To; i++ {
			if x := d.Values[i][d.Broken[0]]; x == x {
				changed++
			}
		}
		if changed == 0 {
			t.Errorf("%s: no reading within the fault", f)
		}
	}
}

// The floor is below what was measured when it was written, so that a change
// that costs detection or cries wolf is noticed.
func TestFrozenDefaultsOnGeneratedTelemetry(t *testing.T) {
	recall, alarms, months := 0.0, 0, 0.0
	for _, r := range Evaluate(anomaly.DefaultParams(), 500, 12) {
		t.Logf("%-16s recall %.2f, delay %.0f messages, %.2f false alarms per device-month", r.Fault, r.Recall, r.DelayRows, r.Rate)
		recall += r.Recall / float64(len(Faults()))
		alarms += r.FalseAlarms
		months += r.Months
	}
	rate := float64(alarms) / months
	if recall < 0.65 || rate > 2 || rate < 0.4 {
		t.Errorf("recall %.2f, %.2f false alarms per device-month at a target of 1", recall, rate)
	}
}

func TestEnginesAreFlaggedBeforeTheyFail(t *testing.T) {
	root := os.Getenv("SLUICE_DATA")
	if root == "" {
		root = "../../../shared/data"
	}
	path := filepath.Join(root, "cmapss", "train_FD001.txt.gz")
	if _, err := os.Stat(path); err != nil {
		t.Skip("no engines: set SLUICE_DATA to a folder that holds cmapss/")
	}
	engines, err := ReadEngines(path)
	if err != nil {
		t.Fatal(err)
	}
	r := EvaluateEngines(anomaly.DefaultParams(), engines, 10)
	t.Logf("%+v", r)
	if r.Flagged < r.Engines*7/10 || r.EarlyRate > 1 {
		t.Errorf("%d of %d engines flagged, %.2f alerts per 30 cycles in the first third", r.Flagged, r.Engines, r.EarlyRate)
	}
}

// What a plant does every few hours, a pump that starts or a mode that changes,
// is no alert once it was seen for days; what is broken stands out.
func TestAPlantsModesBecomeNormal(t *testing.T) {
	r := EvaluatePlants(anomaly.DefaultParams(), 500, 6)
	t.Logf("%+v", r)
	if r.SwitchShare > 0.05 || r.LaterRate > 0.3 || r.FaultRate > 0.2 {
		t.Errorf("alerts at %.2f of the mode changes, %.2f a day in days 6 to 10, %.2f a day without a fault later", r.SwitchShare, r.LaterRate, r.FaultRate)
	}
	if r.Recall < 0.4 || r.Inside < 3*r.Outside {
		t.Errorf("%.2f of the faults found, severity %.1f inside of them, %.1f outside", r.Recall, r.Inside, r.Outside)
	}
}

// A fault within the range of what a short wave does ranks above it.
func TestFaultsOfAWaveRankAboveIt(t *testing.T) {
	r := EvaluateWaves(anomaly.DefaultParams(), 500, 8)
	t.Logf("%+v", r)
	if r.Precision < 0.15 || r.Alerts > 0.5 {
		t.Errorf("average precision %.2f, %.2f alerts elsewhere", r.Precision, r.Alerts)
	}
}

func TestAveragePrecisionTakesEqualScoresTogether(t *testing.T) {
	positive := []bool{true, false, true, false}
	for _, c := range []struct {
		score []float64
		want  float64
	}{
		{[]float64{4, 2, 3, 1}, 1},
		{[]float64{1, 1, 1, 1}, 0.5},
		{[]float64{4, 3, 2, 1}, 0.5 + 0.5*2/3},
		{[]float64{0, 5, 0, 5}, 0.5},
	} {
		if got := averagePrecision(c.score, positive); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("%v: %v, want %v", c.score, got, c.want)
		}
	}
}
