package synth

import (
	"math"
	"math/rand/v2"

	"github.com/sluice-iot/sluice/anomaly"
)

const (
	waveRows    = 4000
	waveFaults  = 4
	waveHealthy = waveRows / 2
	waveCadence = 60 * second
	waveLate    = 10 // rows behind a fault in which an alert is its
)

// Wave is a series with a period far shorter than a day: a rotating machine, a
// pump's stroke, a heart. Four of its periods in the second half are wrong, each within the
// range of the healthy ones.
type Wave struct {
	Times  []int64
	Values []float64
	Faults []Span
}

// NewWave makes the wave of a seed.
func NewWave(seed uint64) *Wave {
	r := rand.New(rand.NewPCG(seed, 0x3a7e))
	w := &Wave{}
	period := 12 * math.Pow(16, r.Float64()) // 12 to 192 rows
	var amp, phase [3]float64
	for h := range amp {
		amp[h], phase[h] = r.Float64()/float64(1+h), 2*math.Pi*r.Float64()
	}
	amp[0] += 0.5
	noise := 0.005 * math.Pow(20, r.Float64())
	kinds := []string{"flat", "jump", "weak", "mirrored"}
	r.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	for i := range waveFaults {
		from := waveHealthy + i*waveHealthy/waveFaults + r.IntN(waveHealthy/waveFaults/3)
		w.Faults = append(w.Faults, Span{kinds[i], from, from + int(period*(0.5+0.5*r.Float64())) + 2})
	}
	at, held := 0.0, 0.0
	for i := range waveRows {
		fault := w.faultAt(i)
		at += 2 * math.Pi / period * (1 + 0.01*r.NormFloat64())
		if fault == "jump" {
			at += math.Pi / period // half a period too much over one
		}
		x := 0.0
		for h := range amp {
			x += amp[h] * math.Sin(float64(h+1)*at+phase[h])
		}
		switch fault {
		case "flat":
			x = held
		case "weak":
			x *= 0.4
		case "mirrored":
			x = -x
		}
		held = x
		w.Times = append(w.Times, startTime+int64(i)*waveCadence)
		w.Values = append(w.Values, x+noise*r.NormFloat64())
	}
	return w
}

func (w *Wave) faultAt(i int) string {
	for _, f := range w.Faults {
		if i >= f.From && i < f.To {
			return f.Fault
		}
	}
	return ""
}

// WaveResult is what the detector made of waves.
type WaveResult struct {
	Waves     int     `json:"waves"`
	Precision float64 `json:"average_precision"` // of the rows of faults among all, ranked by severity; mean over the waves
	Recall    float64 `json:"recall"`            // share of the faults with an alert
	Alerts    float64 `json:"alerts"`            // per wave, outside of faults
}

// EvaluateWaves runs waves with seeds first, first+1, ...
func EvaluateWaves(p anomaly.Params, first uint64, waves int) WaveResult {
	out := WaveResult{Waves: waves}
	det := anomaly.New(p)
	for i := range waves {
		w := NewWave(first + uint64(i))
		var s anomaly.State
		severity, broken := make([]float64, waveRows), make([]bool, waveRows)
		found := map[string]bool{}
		for j, x := range w.Values {
			v := det.Step(&s, w.Times[j], x)
			f := w.faultAt(j)
			severity[j], broken[j] = v.Severity, f != ""
			if v.Alert != anomaly.Opened {
				continue
			}
			if f == "" {
				f = w.faultAt(j - waveLate)
			}
			if f == "" {
				out.Alerts++
			}
			found[f] = f != ""
		}
		delete(found, "")
		out.Recall += float64(len(found))
		out.Precision += averagePrecision(severity, broken)
	}
	n := float64(max(waves, 1))
	out.Recall, out.Precision, out.Alerts = out.Recall/n/waveFaults, out.Precision/n, out.Alerts/n
	return out
}
