package anomaly

import "math"

// tail models how often separate episodes of a surprise this large happen. An
// episode begins when the surprise passes the threshold q and ends after
// episodeGap readings below it; only its peak counts. Counting episodes instead
// of readings makes the rate honest when surprises come in runs, as they do with
// every smoothed feature (declustering, peaks over threshold: Leadbetter 1991).
//
// The threshold is a stochastic quantile (Robbins and Monro 1951) at the rate
// pi(n) = 0.7/sqrt(n) episodes per reading, which deepens as readings come:
// the longer a series is known, the less has to be extrapolated. Above it a
// generalised Pareto tail (Pickands 1975; streaming use: Siffer et al. 2017,
// "SPOT") is fitted by the first two moments of the excess.
type tail struct {
	q     float64 // threshold; its steps are smaller than a float32 resolves
	mean  float32 // mean excess of an episode's peak over q
	sq    float32 // mean squared excess
	top   float32 // peak of the present episode
	calm  uint16  // readings below q since it was last passed
	in    bool    // an episode is going on
	count uint32  // readings learned from, saturating
	pi    float32 // rate(), renewed every renew readings
	step  float32 // step of q at an episode, renewed with pi
}

const (
	episodeGap  = 24        // readings below the threshold that end an episode, as they close an alert
	excessClip  = 3.0       // an excess counts at most so many mean excesses in their mean: real anomalies must not become the norm
	clipMean    = 1.0523957 // what that takes from the mean of an exponential tail: 1/(1 - e^-3)
	shapePrior  = 25        // episodes that the belief in the usual shape, rhoPrior, weighs as much as
	rhoPrior    = 1.1       // a little heavier than exponential; 1 is exponential
	episodesMax = 400       // memory in episodes; the standard error of the scale is then 5 %
	tailCount   = 1<<20 + 1 // no multiple of renew: pi stays once it is final
	tailDoubt   = 2.0       // of a tail as young as the features below it, see shape
	renew       = 16        // readings between two computations of what changes slowly
)

// rate is pi(n), episodes per reading above q.
func (t *tail) rate() float64 { return 0.7 / math.Sqrt(float64(t.count)+100) }

// known is the number of episodes that the model rests on.
func (t *tail) known() float64 {
	return smaller(mul(t.rate(), float64(t.count)+40), episodesMax)
}

// shape gives the scale and shape of a tail from the first two moments of k
// excesses; prior is the shape believed at first. A fit's predictive
// distribution has a heavier tail than the fit (for an exponential one it is the
// Lomax distribution, shape + 1/k): little data, heavy tail.
func shape(m, sq, k, doubt, prior float64) (sigma, xi float64) {
	rho := sq / mul(2, mul(m, m)) // 1 for an exponential tail
	rho = (mul(k, rho) + mul(shapePrior, prior)) / (k + shapePrior)
	rho = smaller(larger(rho, 0.75), 1.6)
	xi = (rho - 1) / (mul(2, rho) - 1)
	return mul(m, 1-xi), xi + doubt/k
}

// excessNats is -ln of the share of peaks that exceed the threshold by e scales.
func excessNats(e, xi float64) float64 {
	if xi > 1e-6 {
		return ln(1+mul(xi, e)) / xi
	}
	return e - mul(0.5*xi, mul(e, e)) // a finite end would claim certainty: continue as a Gaussian does
}

func (t *tail) shape(doubt float64) (sigma, xi float64) {
	return shape(float64(t.mean), float64(t.sq), t.known(), doubt, rhoPrior)
}

// cut is where an excess is cut for the mean square, in means, and what puts back
// what that takes from an exponential tail: 1/(1 - (1+c) e^-c).
type cut struct{ at, back float64 }

var (
	squareSeries = cut{6, 1.0176576} // a heavy tail of its own must show
	squareDevice = cut{3, 1.2486706} // its variable is in nats already: what is heavy is a fault
)

// moments moves the mean and the mean square of the excesses by the share a of
// one more. Some excesses are faults, which are not what the tail is about; six
// of them, of six means each, among two hundred made the seventh look usual. An
// excess is therefore cut, and what that takes from the moments of an exponential
// tail is put back.
func moments(mean, sq float32, excess, a float64, square cut) (m, s float32) {
	e := larger(excess, 0)
	e1, e2 := smaller(e, mul(excessClip, float64(mean))), smaller(e, mul(square.at, float64(mean)))
	m = float32(larger(toward(float64(mean), mul(clipMean, e1), a), 0.05))
	return m, float32(toward(float64(sq), mul(square.back, mul(e2, e2)), a))
}

// nats is -ln of the rate of episodes per reading whose peak reaches u; doubt is
// what of a young tail is added to its shape.
func (t *tail) nats(u, doubt float64) float64 {
	base := -ln(t.rate())
	e := u - t.q
	if e <= 0 {
		return mul(base, u/(t.q+1e-9))
	}
	sigma, xi := t.shape(doubt)
	return base + excessNats(e/sigma, xi)
}

// reach is the inverse of nats above the threshold.
func (t *tail) reach(nats float64) float64 {
	y := nats + ln(t.rate())
	if y <= 0 {
		return t.q
	}
	sigma, xi := t.shape(tailDoubt)
	if xi > 1e-6 {
		return t.q + mul(sigma, (exp(mul(xi, y))-1)/xi)
	}
	if xi > -1e-6 {
		return t.q + mul(sigma, y)
	}
	// y = e - xi/2 e^2 with -xi = c > 0
	c := -xi
	return t.q + mul(sigma, (math.Sqrt(1+mul(2*c, y))-1)/c)
}

// learn takes the surprise of one reading; it reports whether the model moved
// enough for the alert bar to be computed anew.
func (t *tail) learn(u float64) bool {
	if t.count == 0 {
		t.q, t.mean, t.sq = 2, 1, 2
	}
	if t.count%renew == 0 {
		t.pi = float32(t.rate())
		t.step = float32(float64(t.mean) / t.known())
	}
	mean, q, step := float64(t.mean), t.q, float64(t.step)
	moved := false
	if u > q {
		t.calm = 0
		if !t.in {
			t.in = true
			t.top = float32(u)
			t.q = q + step
		} else if u > float64(t.top) {
			t.top = float32(u)
		}
	} else if t.in {
		if t.calm++; t.calm >= episodeGap {
			t.in = false
			a := 1 / (t.known() + 1)
			t.mean, t.sq = moments(t.mean, t.sq, float64(t.top)-q, a, squareSeries)
			t.step = float32(float64(t.mean) / t.known())
			moved = true
		}
	}
	if !t.in {
		t.q = larger(t.q-mul(step, float64(t.pi)), 0.2)
	}
	if t.count < tailCount {
		t.count++
		// the same tail at a slightly deeper threshold
		t.q += mul(mean, 0.5/(float64(t.count)+100))
	}
	return moved
}
