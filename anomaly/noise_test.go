package anomaly

import (
	"math"
	"math/rand/v2"
)

// noise makes stationary series of known distributions around 50. Some remember
// what they said before: take one of noises() for every sensor.
type noise struct {
	name string
	next func(r *rand.Rand) float64
}

func noises() []noise {
	ar, slow := 0.0, 0.0
	ma := [5]float64{}
	return []noise{
		{"normal", func(r *rand.Rand) float64 { return r.NormFloat64() }},
		{"uniform", func(r *rand.Rand) float64 { return 2*r.Float64() - 1 }},
		{"laplace", func(r *rand.Rand) float64 { return r.ExpFloat64() - r.ExpFloat64() }},
		{"exponential", func(r *rand.Rand) float64 { return r.ExpFloat64() }},
		{"lognormal", func(r *rand.Rand) float64 { return math.Exp(0.5 * r.NormFloat64()) }},
		{"lognormal wide", func(r *rand.Rand) float64 { return math.Exp(r.NormFloat64()) }},
		{"student3", func(r *rand.Rand) float64 {
			c := 0.0
			for range 3 {
				g := r.NormFloat64()
				c += g * g
			}
			return r.NormFloat64() / math.Sqrt(c/3)
		}},
		{"student5", func(r *rand.Rand) float64 {
			c := 0.0
			for range 5 {
				g := r.NormFloat64()
				c += g * g
			}
			return r.NormFloat64() / math.Sqrt(c/5)
		}},
		{"autoregressive0.9", func(r *rand.Rand) float64 { ar = 0.9*ar + r.NormFloat64(); return ar }},
		{"autoregressive0.99", func(r *rand.Rand) float64 { slow = 0.99*slow + r.NormFloat64(); return slow }},
		{"moving average", func(r *rand.Rand) float64 {
			copy(ma[1:], ma[:4])
			ma[0] = r.NormFloat64()
			return ma[0] + ma[1] + ma[2] + ma[3] + ma[4]
		}},
		{"rounded", func(r *rand.Rand) float64 { return math.Round(2*r.NormFloat64()) / 2 }},
		{"five steps", func(r *rand.Rand) float64 { return math.Round(0.7 * r.NormFloat64()) }},
		{"counts", func(r *rand.Rand) float64 {
			n, p := 0.0, r.Float64()
			for ; p > math.Exp(-3); n++ {
				p *= r.Float64()
			}
			return n
		}},
		{"mixture", func(r *rand.Rand) float64 {
			if r.IntN(10) == 0 {
				return 4 + 0.5*r.NormFloat64()
			}
			return 0.5 * r.NormFloat64()
		}},
	}
}
