package anomaly

import "math"

// The features of a reading, in the order of State.q and State.ex.
const (
	featureSpike  = 0 // |innovation| in noise scales
	featureDev    = 1 // |deviation from level and season|
	featureLevel  = 2 // |short mean of the deviation|
	featureSpread = 3 // ratio of the short mean of |innovation| to its long mean, or the inverse
	featureRange  = 4 // distance outside of the range seen, in spans
	featureRun    = 5 // length of a run of equal values
	featureDrift  = 6 // |long mean of the deviation|

	tailRate  = 0.02 // a feature is surprising above its own 98 % quantile
	shortMean = 0.06 // memory of the short means: about 16 readings
	longMean  = 0.01 // memory of the long mean: about 100 readings
	softCap   = 12.0 // nats of one feature beyond which its surprise grows as a logarithm
	agreement = 0.65 // what the features behind the largest count for
)

// weights of the features in the combined surprise. Equal but for three: an
// innovation alone is one reading and the rest are many, the deviation much of what spike and level see, the spread ratio much
// of what a run of spikes gives.
var weights = [features]float64{0.8, 0.7, 1, 0.8, 1, 1, 1}

// tells weighs the features where the cause is named: an innovation says more
// than what it drags along.
var tells = [features]float64{1.4, 0.7, 1, 0.8, 0.8, 1, 1}

// smallest mean excess of each feature, in its own unit: below this a difference
// means nothing to a person, however regular the series has been.
var excessMin = [features]float32{0.15, 0.1, 0.05, 0.08, 0.05, 0.5, 0.03}

// measure gives the features of a reading: e is |innovation| and dev the
// deviation, both in scales; short, long and spread are the running means with
// this reading in them, run the length of the run it ends.
func (s *State) measure(f *forecast, x, e, dev, short, long, spread float64, run uint32, v *[features]float64) {
	v[featureSpike] = e
	v[featureDev] = math.Abs(dev)
	v[featureLevel] = math.Abs(short)
	if spread >= 1 {
		v[featureSpread] = spread - 1
	} else {
		v[featureSpread] = 1/(spread+0.05) - 1/1.05
	}
	v[featureRange] = 0
	if x > s.hi {
		v[featureRange] = (x - s.hi) / (s.hi - s.lo + f.unit)
	} else if x < s.lo {
		v[featureRange] = (s.lo - x) / (s.hi - s.lo + f.unit)
	}
	v[featureRun] = 0
	if run < s.n/2 { // what has said nothing else for half of its life is not stuck
		v[featureRun] = float64(run)
	}
	v[featureDrift] = math.Abs(long)
}

// mixture combines features: each above its own quantile counts in mean
// excesses (an exponential tail, in nats), the largest fully and the others by
// two thirds, so that agreement counts but cannot replace strength. top is the
// feature that names the cause, by its strength and by how much it tells.
type mixture struct {
	sum, best, plain float64
	top              int
}

// add takes the feature j, which is c > 0 mean excesses above its quantile.
func (m *mixture) add(j int, c, weight, tells float64, excused uint8) {
	if c > softCap {
		c = softCap + mul(softCap, ln(c/softCap))
	}
	if excused > 0 {
		c *= 2 / (2 + float64(excused))
	}
	if cc := mul(c, tells); cc > m.plain {
		m.plain, m.top = cc, j
	}
	c = mul(c, weight)
	m.sum += c
	m.best = larger(m.best, c)
}

func (m *mixture) surprise() float64 { return mul(1-agreement, m.best) + mul(agreement, m.sum) }

// surprise combines the features of a reading, and teaches them to their tails;
// ended is the length of the run of equal values before it. Most features of most
// readings lie below their quantile: that way is kept short.
func (s *State) surprise(v *[features]float64, ended uint32) (u float64, top int) {
	n := min(s.n+1, countCap)
	pace, fall := 30/float64(n), tailRate // pace: see young
	if n <= learnTailsAfter {
		fall = 0
	}
	ran := s.run > 0 || ended > 0
	var m mixture
	for j := range v {
		q, ex := float64(s.q[j]), float64(s.ex[j])
		over := v[j] - q
		if over > 0 {
			m.add(j, over/ex, weights[j], tells[j], s.excused[j])
		}
		if over > 0 || ran && j == featureRun {
			s.learnFeature(j, v[j], ended, n)
			continue
		}
		s.q[j] = lowered(q, ex, larger(learnings[j].q, pace), fall)
	}
	return m.surprise(), m.top
}

const (
	grainAfter  = 16    // steps after which the smallest is believed
	grainPart   = 0.5   // of it, the least mean excess: one step further is two nats
	grainForget = 0.001 // that it grows by at each step
	grainMax    = 1e37
)

// coarsen keeps the mean excesses from falling below what coarse values can tell.
// A series of whole degrees, or one that is on or off, has no readings between its
// steps; how rare the next step is, nothing can say before it was there a few
// times. A surprise that is measured in steps therefore counts by them, however
// regular the few values are that were seen.
func (s *State) coarsen(f *forecast, v *[features]float64) {
	if s.moves < grainAfter {
		return
	}
	g := mul(grainPart, float64(s.grain))
	if v[featureSpike] > float64(s.q[featureSpike]) {
		s.ex[featureSpike] = larger32(s.ex[featureSpike], float32(smaller(g/f.scale, grainMax)))
	}
	if v[featureDev] > float64(s.q[featureDev]) {
		s.ex[featureDev] = larger32(s.ex[featureDev], float32(smaller(g/f.wide, grainMax)))
	}
	if v[featureRange] > float64(s.q[featureRange]) {
		s.ex[featureRange] = larger32(s.ex[featureRange], float32(smaller(g/(s.hi-s.lo+f.unit), grainMax)))
	}
}

// learnGrain follows the smallest step that the series makes.
func (s *State) learnGrain(step float64) {
	if step == 0 {
		return
	}
	g := float64(s.grain)
	if g == 0 || step < g {
		g = step
	}
	s.grain = float32(smaller(g+mul(grainForget, g), grainMax))
	s.moves = min(s.moves+1, grainAfter)
}

// learning is how the tail of a feature follows its readings, from about the
// thousandth on; before, both shares fall with the number of readings.
type learning struct {
	q  float64 // what a reading moves the quantile by, in mean excesses
	ex float64 // the share of the new in the mean excess
}

// A smoothed feature says much the same for as many readings as it remembers, 16
// the short means and 100 the long one: fewer of them are news, and a tail that
// took every reading for one would make a fault the norm while it lasts. New
// extremes are the rarer the longer a series is known, so that a share which
// falls with the number of readings would leave their size as it was in the
// first hours, when anything was one.
var learnings = [features]learning{
	featureSpike: usual, featureDev: usual, featureLevel: {0.009, 0.006}, featureSpread: {0.009, 0.006},
	featureRange: {0.03, 0.2}, featureRun: usual, featureDrift: {0.003, 0.002},
}

var usual = learning{0.03, 0.02}

// runShare: see learnRun; a run of a quarter of the history teaches as any reading.
const runShare = 4

// learnFeature teaches one feature as the n-th reading has it.
func (s *State) learnFeature(j int, v float64, ended, n uint32) {
	switch {
	case n <= learnTailsAfter:
	case j == featureRun:
		s.learnRun(ended, n)
	default:
		learnings[j].of(young(n)).learn(v, 1, &s.q[j], &s.ex[j], excessMin[j])
	}
}

// learnRun teaches the length of the run of equal values that has just ended, as
// one observation, however long it was. A run that still goes on teaches by its
// share of the history only: a sensor that is stuck for a day in a month must
// not make that its habit, one that has said nothing else since its beginning
// must.
func (s *State) learnRun(ended, n uint32) {
	gain, run := 1.0, ended
	if s.run > 0 {
		run = s.run
		gain = smaller(mul(runShare, float64(run))/float64(n), 1)
	}
	usual.of(young(n)).learn(float64(run), gain, &s.q[featureRun], &s.ex[featureRun], excessMin[featureRun])
}

// young is what a tail moves by after n readings, at least.
func young(n uint32) learning {
	return learning{30 / float64(n), 1 / (1 + mul(tailRate, float64(n)))}
}

// of is the faster of l and what a young tail does.
func (l learning) of(y learning) learning { return learning{larger(l.q, y.q), larger(l.ex, y.ex)} }

// learn moves a quantile by a step of its mean excess (Robbins-Monro) and the
// mean excess by the winsorised excess; gain is what the reading counts for.
func (l learning) learn(v, gain float64, q, ex *float32, least float32) {
	qj, exj := float64(*q), float64(*ex)
	over := v - qj
	if over <= 0 {
		*q = lowered(qj, exj, mul(l.q, gain), tailRate)
		return
	}
	*q = float32(qj + mul(pull(qj, exj, mul(l.q, gain)), 1-tailRate))
	exj = toward(exj, smaller(over, 6*exj), mul(l.ex, gain))
	*ex = larger32(float32(exj), least)
}

// pull is the step that a reading of so much weight moves a quantile by.
func pull(q, ex, gain float64) float64 { return mul(gain, ex+mul(0.2, q)) }

// lowered is a quantile behind a reading that does not reach it.
func lowered(q, ex, gain, fall float64) float32 {
	return float32(larger(q-mul(pull(q, ex, gain), fall), 0))
}
