package anomaly

import (
	"math"
	"math/rand/v2"
	"testing"
)

// fault changes a healthy series from reading `at` on.
type fault struct {
	name   string
	delay  int // readings within which the alert must open
	causes []Cause
	apply  func(i int, x, base float64, r *rand.Rand) float64 // i: readings since the fault began, base: the series without noise
}

func faults() []fault {
	held := 0.0
	return []fault{
		{"spike", 1, []Cause{CauseSpike, CauseRange}, func(i int, x, base float64, r *rand.Rand) float64 {
			if i == 0 {
				return x + 12
			}
			return x
		}},
		{"dropout to zero", 1, []Cause{CauseSpike, CauseRange}, func(i int, x, base float64, r *rand.Rand) float64 {
			if i < 5 {
				return 0
			}
			return x
		}},
		{"level shift", 25, []Cause{CauseLevel, CauseSpike, CauseSeason, CauseRange}, func(i int, x, base float64, r *rand.Rand) float64 { return x + 4 }},
		{"unit change", 1, []Cause{CauseSpike, CauseRange, CauseLevel, CauseSeason}, func(i int, x, base float64, r *rand.Rand) float64 { return x*1.8 + 32 }},
		{"more variance", 40, []Cause{CauseVariance, CauseSpike, CauseRange, CauseLevel}, func(i int, x, base float64, r *rand.Rand) float64 { return base + 4*(x-base) }},
		{"flat line", 60, []Cause{CauseFlat, CauseVariance, CauseLevel, CauseDrift}, func(i int, x, base float64, r *rand.Rand) float64 {
			if i == 0 {
				held = x
			}
			return held
		}},
		{"drift", 250, []Cause{CauseDrift, CauseLevel, CauseSeason, CauseRange, CauseSpike}, func(i int, x, base float64, r *rand.Rand) float64 { return x + 0.05*float64(i) }},
	}
}

// Faults on a daily pattern with noise of unit scale, 5-minute readings, after
// ten days of health: at least 90 % of each must open an alert within its delay,
// name a cause that fits, and close again once the fault is the norm or gone.
func TestFaultsAreFoundInTime(t *testing.T) {
	const at, after, reps = 2880, 6000, 40
	d := New(DefaultParams())
	for _, f := range faults() {
		found, fits, closed, early := 0, 0, 0, 0
		for rep := range reps {
			r := rand.New(rand.NewPCG(uint64(rep), 11))
			var s State
			opened := false
			for i := range at + after {
				base := 20 + 5*math.Sin(2*math.Pi*float64(i%288)/288)
				x := base + r.NormFloat64()
				if i >= at {
					x = f.apply(i-at, x, base, r)
				}
				v := d.Step(&s, int64(i)*300*second, x)
				if v.Alert == Opened && i < at {
					early++
				}
				if v.Alert == Opened && i >= at && i < at+f.delay && !opened {
					opened = true
					found++
					for _, c := range f.causes {
						if c == v.Cause {
							fits++
						}
					}
				}
			}
			if _, open := s.Open(); !open {
				closed++
			}
		}
		t.Logf("%-16s found %d of %d within %d readings, cause fits %d, closed %d, alerts before the fault %d", f.name, found, reps, f.delay, fits, closed, early)
		if found < reps*9/10 || fits < found*9/10 || f.name != "drift" && f.name != "flat line" && closed < reps*9/10 {
			t.Errorf("%s: found %d of %d within %d readings, cause fits %d, closed %d", f.name, found, reps, f.delay, fits, closed)
		}
	}
}

// A meter that rises for ever raises nothing; when it starts again at zero there
// is one alert, and the series goes on as before.
func TestCounterResetIsOneAlert(t *testing.T) {
	d := New(DefaultParams())
	var s State
	r := rand.New(rand.NewPCG(5, 5))
	total, before, after := 1e5, 0, 0
	for i := range 12000 {
		total += r.ExpFloat64()
		if i == 6000 {
			total = 0
		}
		v := d.Step(&s, int64(i)*60*second, total)
		if v.Alert != Opened {
			continue
		}
		if i < 6000 {
			before++
			continue
		}
		after++
		if i != 6000 || v.Cause != CauseReset {
			t.Errorf("alert at %d, cause %v", i, v.Cause)
		}
	}
	if before > 1 || after != 1 {
		t.Errorf("%d alerts before the reset, %d from it on, want 0 and 1", before, after)
	}
}

func TestConstantSeriesIsSilentUntilItMoves(t *testing.T) {
	d := New(DefaultParams())
	var s State
	for i := range 5000 {
		x := 7.5
		if i == 4000 {
			x = 8
		}
		v := d.Step(&s, int64(i)*second, x)
		if i != 4000 && v.Alert == Opened {
			t.Errorf("alert at %d: %+v", i, v)
		}
		if i == 4000 && v.Alert != Opened {
			t.Errorf("the first move in 4000 readings: %+v", v)
		}
	}
}

// One alert per event: a level shift of a day is not an alert per reading.
func TestAlertsAreDeduplicated(t *testing.T) {
	d := New(DefaultParams())
	opened := 0
	const reps = 30
	for rep := range uint64(reps) {
		r := rand.New(rand.NewPCG(rep, 2))
		var s State
		for i := range 4000 {
			x := r.NormFloat64()
			if i >= 3000 && i < 3288 {
				x += 15
			}
			if d.Step(&s, int64(i)*300*second, x).Alert == Opened && i >= 3000 {
				opened++
			}
		}
	}
	if opened < reps || opened > 3*reps {
		t.Errorf("%d alerts for %d events with a beginning and an end", opened, reps)
	}
}

// After a week of 9-to-5 days the band follows the hours: the expected value at
// noon and at midnight differ as the data does.
func TestSeasonIsLearned(t *testing.T) {
	d := New(DefaultParams())
	var s State
	r := rand.New(rand.NewPCG(3, 3))
	worst := 0.0
	for i := range 144 * 21 {
		h := float64(i%144) / 6
		x := 10 + r.NormFloat64()
		if h >= 9 && h < 17 {
			x += 20
		}
		v := d.Step(&s, int64(i)*600*second, x)
		if i > 144*14 && h > 10 && h < 16 {
			worst = math.Max(worst, math.Abs(v.Expected-30))
		}
	}
	if worst > 8 {
		t.Errorf("expected value misses the working hours by %.1f of 20", worst)
	}
}

// A run of equal values teaches once, when it is over: a sensor that was stuck for
// hours is not used to it, and one of whole steps, which repeats itself, is.
func TestARunOfEqualValuesIsOneObservation(t *testing.T) {
	d := New(DefaultParams())
	r := rand.New(rand.NewPCG(9, 9))
	var fine, steps State
	for i := range 6000 {
		x := r.NormFloat64()
		y := math.Round(x)
		if i >= 4000 && i < 4100 {
			x = 0.5
		}
		d.Step(&fine, int64(i)*60*second, x)
		d.Step(&steps, int64(i)*60*second, y)
	}
	if q := fine.q[featureRun]; q > 2 {
		t.Errorf("after a run of 100 in 6000 readings, runs of %.1f are usual", q)
	}
	if q := steps.q[featureRun]; q < 1 || q > 12 {
		t.Errorf("runs of %.1f are usual for whole steps", q)
	}
}
