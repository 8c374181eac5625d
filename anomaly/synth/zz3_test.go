package synth

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"sort"
	"testing"

	"github.com/sluice-iot/sluice/anomaly"
)

type zzSet struct {
	name  string
	rows  [][]float64
	label []bool
	cad   int64
}

func zzSMD(seed uint64) zzSet {
	r := rand.New(rand.NewPCG(seed, 91))
	n, k := 12000, 10
	s := zzSet{name: "smd", cad: 60 * second, label: make([]bool, n)}
	ar := make([]float64, k)
	phase := r.Float64()
	amp := make([]float64, k)
	for j := range amp {
		amp[j] = 3 * r.Float64()
	}
	c := 0.0
	for i := range n {
		row := make([]float64, k)
		c = 0.95*c + 0.3*r.NormFloat64()
		d := math.Sin(2 * math.Pi * (float64(i)/1440 + phase))
		for j := range k {
			ar[j] = 0.8*ar[j] + 0.3*r.NormFloat64()
			row[j] = amp[j]*d + ar[j] + float64(j%3)*0.5*c
			if j == 7 {
				row[j] = math.Round(math.Exp(0.5 * row[j]))
			}
			if j == 8 {
				row[j] = max(0, row[j])
			}
		}
		s.rows = append(s.rows, row)
	}
	for range 6 {
		at := 3000 + r.IntN(n-3400)
		length := 10 + r.IntN(250)
		m := 1 + r.IntN(4)
		kind := r.IntN(3)
		for range m {
			j := r.IntN(k)
			size := (1.5 + 3*r.Float64()) * []float64{-1, 1}[r.IntN(2)]
			for i := at; i < at+length; i++ {
				switch kind {
				case 0:
					s.rows[i][j] += size
				case 1:
					s.rows[i][j] += math.Abs(size) * r.NormFloat64()
				case 2:
					s.rows[i][j] += size * float64(i-at) / float64(length) * 1.5
				}
			}
		}
		for i := at; i < at+length; i++ {
			s.label[i] = true
		}
	}
	return s
}

func zzSKAB(seed uint64) zzSet {
	r := rand.New(rand.NewPCG(seed, 92))
	n, k := 1150, 8
	s := zzSet{name: "skab", cad: second, label: make([]bool, n)}
	ar := make([]float64, k)
	from := 550 + r.IntN(100)
	to := from + 300 + r.IntN(150)
	size := make([]float64, k)
	for range 2 + r.IntN(3) {
		size[r.IntN(k)] = (1 + 3*r.Float64()) * []float64{-1, 1}[r.IntN(2)]
	}
	slow := r.Float64() < 0.5
	for i := range n {
		row := make([]float64, k)
		for j := range k {
			ar[j] = 0.7*ar[j] + 0.5*r.NormFloat64()
			row[j] = 20 + ar[j] + 0.5*r.NormFloat64()
			if j == 5 {
				row[j] = math.Round(row[j])
			}
			if i >= from && i < to {
				f := 1.0
				if slow {
					f = min(1, float64(i-from)/100)
				}
				row[j] += f * size[j]
			}
		}
		s.rows = append(s.rows, row)
		s.label[i] = i >= from && i < to
	}
	return s
}

func zzAP(score []float64, label []bool) float64 {
	idx := make([]int, len(score))
	for i := range idx {
		idx[i] = i
	}
	sort.Slice(idx, func(a, b int) bool { return score[idx[a]] > score[idx[b]] })
	pos := 0
	for _, l := range label {
		if l {
			pos++
		}
	}
	tp, ap := 0, 0.0
	for i := 0; i < len(idx); {
		j, t := i, 0
		for j < len(idx) && score[idx[j]] == score[idx[i]] {
			if label[idx[j]] {
				t++
			}
			j++
		}
		tp += t
		ap += float64(t) / float64(pos) * float64(tp) / float64(j)
		i = j
	}
	return ap
}

func TestZImit(t *testing.T) {
	if os.Getenv("ZZ") == "" {
		t.Skip()
	}
	res := map[string][]float64{}
	count := map[string]float64{}
	for seed := range uint64(60) {
		sets := []zzSet{zzSMD(seed), zzSKAB(seed)}
		for _, f := range []Fault{LevelShift, Drift, Stuck, Variance, SeasonalChange} {
			d := Generate(30000+seed, f)
			if len(d.Sensors) < 2 {
				continue
			}
			l := make([]bool, len(d.Times))
			for i := d.From; i < d.To; i++ {
				l[i] = true
			}
			sets = append(sets, zzSet{"synth " + string(f), d.Values, l, d.Cadence})
		}
		for _, s := range sets {
			det := anomaly.New(anomaly.DefaultParams())
			states := make([]anomaly.State, len(s.rows[0]))
			for i := range states {
				states[i].SetSensors(len(states))
			}
			var dev anomaly.DeviceState
			var row anomaly.Row
			var sev, score, own, sevN []float64
			alerts, good := 0.0, 0.0
			hit := false
			for i, r := range s.rows {
				row.Reset()
				for j, x := range r {
					if x == x {
						det.Add(&row, &states[j], int64(startTime)+int64(i)*s.cad, x)
					}
				}
				v := det.Finish(&dev, &row, int64(startTime)+int64(i)*s.cad)
				o := 0.0
				for k := range row.Len() {
					o = max(o, float64(row.Verdict(k).Score))
				}
				sev = append(sev, v.Severity)
				score = append(score, float64(v.Score))
				own = append(own, o)
				n := v.Severity
				if n <= 20 {
					n = 0
				}
				sevN = append(sevN, n)
				if v.Alert == anomaly.Opened {
					alerts++
					near := false
					for k := max(0, i-30); k <= i; k++ {
						near = near || s.label[k]
					}
					if near {
						good++
						hit = true
					}
				}
			}
			res[s.name] = append(res[s.name], 0)
			count[s.name+" sev"] += zzAP(sev, s.label)
			count[s.name+" news"] += zzAP(sevN, s.label)
			count[s.name+" score"] += zzAP(score, s.label)
			count[s.name+" own"] += zzAP(own, s.label)
			count[s.name+" alerts"] += alerts
			count[s.name+" good"] += good
			if hit {
				count[s.name+" hit"]++
			}
		}
	}
	for name, r := range res {
		n := float64(len(r))
		fmt.Printf("%-22s n %2.0f AP sev %.3f news-only %.3f score %.3f own %.3f | alerts %.1f good %.2f hit %.2f\n", name, n, count[name+" sev"]/n, count[name+" news"]/n, count[name+" score"]/n, count[name+" own"]/n, count[name+" alerts"]/n, count[name+" good"]/max(1, count[name+" alerts"]), count[name+" hit"]/n)
	}
}
