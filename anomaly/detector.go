package anomaly

import "math"

// Version names the arithmetic: two builds with equal Version give equal states
// and verdicts for equal readings. Any change of a result raises it.
const Version = 6

const (
	learnTailsAfter = 16 // readings before the features' tails are learned: the scales must exist
	settle          = 64 // readings before Params.Warmup ends at which the tail of the combined surprise begins to learn
	aimMin          = 3.0
)

// Verdict is what a reading is worth.
type Verdict struct {
	// Score = 1 - p^(ln 2 / ln(1/p*)): p is the estimated rate, per reading of
	// this series, of separate episodes at least this surprising, and p* the rate
	// that the target allows. 0: unremarkable (p = 1); 0.5: exactly as rare as the
	// target; 0.75: p = p*^2; near 1: rarer than anything. 0 while warming up.
	// A multiple of 1/1024: more digits would say nothing, and cost the store 3
	// bytes in every row.
	Score float32
	// Severity is 100 Score if the reading is news: if it beats the decaying peak
	// of earlier news by 1.5 nats; otherwise 20 Score, 45 Score while an alert is
	// open, or what the mean Score of the last readings gives, at most 30: what goes on
	// ranks below what is new and above what is quiet, and what is quiet by how long
	// it has been. An alert opens at about 50: a little below on a series long without alerts,
	// higher on one that had many.
	Severity float64
	// Expected is the forecast made before the reading; readings outside Low to
	// High alert by their distance from it alone.
	Expected, Low, High float64
	Cause               Cause // the most surprising aspect, CauseNone when nothing is
	Alert               Transition
	Warmup              bool // the series is too new for a score

	nats float32 // -ln p
	fit  float32 // the same without the doubt of a young tail
	dev  float32 // deviation from level and season in scales, clipped
}

// Probability estimates how often, per reading of this series on stationary data,
// a separate episode at least this surprising begins; 1 is unremarkable.
func (v *Verdict) Probability() float64 {
	if v.Warmup {
		return 1
	}
	return exp(-float64(v.nats))
}

// grade rounds a score to a multiple of 1/1024; both steps are exact.
func grade(score float64) float32 { return float32(math.Floor(mul(score, 1024)+0.5) / 1024) }

// Detector scores readings. It is immutable and may be shared by any number of
// goroutines; a State belongs to one of them at a time.
type Detector struct{ p Params }

// New returns a detector; parameters outside of their range (Params.Validate
// names them) are replaced by the nearest allowed ones.
func New(p Params) *Detector {
	def := DefaultParams()
	if !(p.AlarmsPerDeviceMonth > 0) {
		p.AlarmsPerDeviceMonth = def.AlarmsPerDeviceMonth
	}
	p.AlarmsPerDeviceMonth = smaller(larger(p.AlarmsPerDeviceMonth, 1e-3), 1e4)
	p.Warmup = min(max(p.Warmup, 64), 1e6)
	p.CloseAfter = min(max(p.CloseAfter, 1), 60000)
	return &Detector{p: p}
}

// Params are the parameters that are in use.
func (d *Detector) Params() Params { return d.p }

// Step scores the reading x of device time t (microseconds) and learns from it.
// It depends on s, t and x alone. A reading older than the newest one is scored
// by level and season and leaves s as it is. NaN and infinities give the zero
// Verdict and leave s as it is; magnitudes above 1e36 count as 1e36.
func (d *Detector) Step(s *State, t int64, x float64) (out Verdict) {
	d.step(s, t, x, &out)
	return out
}

// step is Step that writes where the verdict is kept: copies of it would be a
// tenth of the work.
func (d *Detector) step(s *State, t int64, x float64, out *Verdict) {
	*out = Verdict{Warmup: int(s.n) < d.p.Warmup}
	if x-x != 0 {
		return
	}
	x = clip(x, valueMax)
	if s.n == 0 {
		s.begin(t, x)
		out.Expected, out.Low, out.High = x, x, x
		return
	}
	if t < s.last {
		d.late(s, t, x, out)
		return
	}
	regular := s.tick(t)

	var f forecast
	dd, h, within := clock(t)
	s.predict(&f, dd, h, within, regular)
	e, dev := math.Abs(x-f.expected)/f.scale, (x-f.base)/f.wide
	cut := clip(dev, 6) // one wild reading is a spike, no level
	short, long := toward(float64(s.short), cut, shortMean), toward(float64(s.long), cut, longMean)
	spread := toward(float64(s.spread), smaller(e, 8), shortMean)
	ended := s.run
	if x == s.prev {
		s.run = min(s.run+1, countCap)
	} else {
		s.run = 0
	}
	reset := s.counter(x)

	var v [features]float64
	s.measure(&f, x, e, dev, short, long, spread, s.run, &v)
	innovation := s.innovation()
	u, top := s.surprise(&v, ended)
	out.Expected, out.dev = f.expected, float32(cut)
	if u > 0 {
		out.Cause = causeOf(top, &f, reset)
	}
	if int(s.n)+settle >= d.p.Warmup {
		d.judge(s, out, u)
	}
	s.band(out, f.scale, innovation)

	s.learnGrain(math.Abs(x - s.prev))
	if s.n < countCap {
		s.n++
	}
	if s.n > learnTailsAfter {
		s.coarsen(&f, &v)
	}
	s.short, s.long, s.spread = float32(short), float32(long), float32(spread)
	if reset {
		s.level += x - s.prev // a new start is no news about the counter's speed
		s.prev = x
		s.hi, s.lo = larger(s.hi, x), smaller(s.lo, x)
		return
	}
	s.learn(&f, x, dd, h, regular)
}

// judge turns the combined surprise into score, severity and alert, and teaches
// it to the tail.
func (d *Detector) judge(s *State, out *Verdict, u float64) {
	nats := 0.0
	if u > 0 {
		nats = s.tail.nats(u, tailDoubt)
	}
	if s.tail.learn(u) || s.bar == 0 {
		d.aim(s)
	}
	aim := float64(s.target)
	peak := float64(s.peak) - mul(float64(s.peak), float64(s.fade))
	s.peak = float32(peak)
	out.nats = float32(nats)
	out.fit = out.nats
	if u > s.tail.q {
		out.fit = float32(s.tail.nats(u, 0))
	}
	if !out.Warmup {
		score := 0.0
		if nats > 0 {
			score = 1 - exp(-mul(math.Ln2, nats)/aim)
			out.Score = grade(score)
		}
		lasting := s.recent(score)
		if nats > peak+worseBy {
			out.Severity = 100 * score
			s.peak = float32(nats)
		} else {
			out.Severity = told(s.open, score, lasting)
		}
		out.Alert = d.alertStep(&s.alarm, nats, aim, peak, habitGain, out.Cause)
	}
}

// aim computes what a surprise must reach: the target per device and 30 days,
// shared by its sensors, per reading of this series.
func (d *Detector) aim(s *State) {
	c := s.cadence
	if !(c > 0) {
		c = second
	}
	s.memory = float32(smaller(larger(day/c, levelShort), levelLong))
	s.fade = float32(1 / smaller(larger(peakHours*hour/c, peakShort), peakLong))
	perMonth := mul(larger(month/c, 1), larger(float64(s.sensors), 1))
	aim := larger(ln(perMonth/d.p.AlarmsPerDeviceMonth), aimMin)
	s.target = float32(aim)
	s.earn = float32(exp(-aim))
	b := s.tail.reach(aim)
	if b > softCap {
		b = mul(softCap, exp((smaller(b, 60)-softCap)/softCap))
	}
	s.bar = float32(larger(b, 0.1))
}

// late scores a reading that is older than the newest one.
func (d *Detector) late(s *State, t int64, x float64, out *Verdict) {
	var f forecast
	dd, h, within := clock(t)
	s.predict(&f, dd, h, within, false)
	out.Expected = f.base
	f.scale = larger(f.scale, f.wide) // the innovation is unknown: judge by the deviation
	var v [features]float64
	s.measure(&f, x, math.Abs(x-f.base)/f.scale, (x-f.base)/f.wide, 0, 0, 1, 0, &v)
	var m mixture
	for j := range v {
		if over := v[j] - float64(s.q[j]); over > 0 {
			m.add(j, over/float64(s.ex[j]), weights[j], tells[j], s.excused[j])
		}
	}
	if u := m.surprise(); u > 0 {
		out.Cause = causeOf(m.top, &f, false)
		if !out.Warmup && s.target > 0 {
			out.Score = grade(1 - exp(-mul(math.Ln2, s.tail.nats(u, tailDoubt))/float64(s.target)))
		}
	}
	s.band(out, f.scale, s.innovation())
}

// onset is where an innovation begins to be surprising, in scales, and what it
// then counts by.
type onset struct{ q, ex float64 }

func (s *State) innovation() onset {
	return onset{float64(s.q[featureSpike]), float64(larger32(s.ex[featureSpike], excessMin[featureSpike]))}
}

// band sets Low and High to where the innovation alone reaches the bar.
func (s *State) band(out *Verdict, scale float64, innovation onset) {
	bar := float64(s.bar)
	if bar == 0 {
		bar = softCap
	}
	w := mul(scale, innovation.q+mul(innovation.ex, bar))
	out.Low, out.High = out.Expected-w, out.Expected+w
}

// begin makes x the first reading of the series.
func (s *State) begin(t int64, x float64) {
	s.last, s.n = t, 1
	s.level, s.prev, s.hi, s.lo = x, x, x, x
	s.spread = 1
	s.day, s.bin, _ = clock(t)
	for j := range s.ex {
		s.ex[j] = larger32(0.5, excessMin[j])
		s.q[j] = 1
	}
}

// tick moves the time of the series to t >= last and reports whether no gap lies
// between. Steps count at most gapFactor means, so that outages do not pass for
// a slower cadence.
func (s *State) tick(t int64) bool {
	dt := float64(t - s.last)
	s.last = t
	if dt == 0 || dt < 0 { // < 0: the difference overflowed
		return dt == 0
	}
	if s.cadence == 0 {
		s.cadence = dt
		return true
	}
	regular := dt <= mul(gapFactor, s.cadence)
	a := 1.0 / 256
	if s.n < 256 {
		a = 1 / float64(s.n)
	}
	s.cadence = toward(s.cadence, smaller(dt, mul(gapFactor, s.cadence)), a)
	return regular
}

// counter follows whether the series only rises and reports a reset: it fell by
// nine tenths or more, to zero or above.
func (s *State) counter(x float64) bool {
	was := s.rising
	now := was // noise takes either way at random: no branch for what is not rare
	if x > s.prev {
		now = was + 1
	}
	if x < s.prev {
		now = 0
	}
	s.rising = min(now, 1000)
	if now < was && was >= 64 && x >= 0 && x <= mul(0.1, s.prev) {
		s.rising = was
		return true
	}
	return false
}

func causeOf(top int, f *forecast, reset bool) Cause {
	if reset {
		return CauseReset
	}
	switch top {
	case featureSpike:
		return CauseSpike
	case featureDev:
		if f.weight > 0.3 {
			return CauseSeason
		}
		return CauseLevel
	case featureLevel:
		return CauseLevel
	case featureSpread:
		return CauseVariance
	case featureDrift:
		return CauseDrift
	case featureRange:
		return CauseRange
	default:
		return CauseFlat
	}
}
