package anomaly

import "math"

const (
	second = 1_000_000 // us
	hour   = 3600 * second
	day    = 24 * hour
	month  = 30 * day

	winsor      = 4.0   // updates of the model see at most so many scales of one reading
	sideAdopt   = 64    // readings in a row beyond sideFar that make a new level the norm
	sideFar     = 3.0   // in mean absolute deviations
	levelLong   = 20000 // slowest level, readings; with the profile the level need not follow the day
	levelShort  = 400   // fastest level, readings
	noiseLong   = 1000  // memory of the noise scale and of the autocorrelation, readings
	visitsLong  = 6     // memory of the profile in visits of an hour (days), of the weekday in weeks
	rangeLong   = 20000 // memory of the range, readings
	halvesAfter = 128   // readings before the noise of the high and the low half are told apart
	gapFactor   = 4     // more than so many mean steps between readings is a gap
	countCap    = 1 << 30
	valueMax    = 1e36 // larger magnitudes are treated as this one (the profile is float32)
)

// forecast is what the model says of a reading before it is seen.
type forecast struct {
	base     float64 // level and season
	season   float64 // the season as known, before weighting
	expected float64 // base, the previous reading's share and the trend
	phi      float64 // share of the previous reading's deviation that lasts
	unit     float64 // smallest scale that makes sense for this series
	scale    float64 // noise scale, never 0
	wide     float64 // scale of deviations from base, never 0
	high     float64 // 0..1, where the forecast lies between the low and the high half of the series
	weight   float64 // 0..1, how much the season is believed
}

// clock splits device time (UTC) into day since the epoch, hour of day, and the
// position within the hour in [0, 1).
func clock(t int64) (d int32, h uint8, within float64) {
	dd := t / day
	r := t - dd*day
	if r < 0 {
		r += day
		dd--
	}
	hh := r / hour
	return int32(dd), uint8(hh), float64(r-hh*hour) / hour
}

func weekday(d int32) int {
	w := int(d % weekdays)
	if w < 0 {
		w += weekdays
	}
	return w
}

// season interpolates the profile between the centres of hours and adds the
// weekday's offset.
func (s *State) season(d int32, h uint8, within float64) float64 {
	other, f := int(h)+1, within-0.5
	if f < 0 {
		other, f = int(h)-1, -f
	}
	if other == hours {
		other = 0
	} else if other < 0 {
		other = hours - 1
	}
	a := float64(s.profile[h])
	b := a
	if s.seen[other] > 0 {
		b = float64(s.profile[other])
	}
	return toward(a, b, f) + float64(s.week[weekday(d)])
}

// predict fills f for a reading at the given time; after says that the newest
// reading is its predecessor, so that the previous value may be used.
func (s *State) predict(f *forecast, d int32, h uint8, within float64, after bool) {
	f.season = s.season(d, h, within)
	f.weight = 0
	if s.seasonal < s.plain {
		// full belief at a quarter of the deviation explained: below that the
		// profile's own error eats the gain
		f.weight = smaller(4*(1-s.seasonal/s.plain), 1)
	}
	f.base = s.level + mul(f.weight, f.season)
	f.unit = mul(1e-4, s.hi-s.lo) + mul(1e-9, math.Abs(s.level)) + 1e-30
	f.scale = s.noise + f.unit
	f.wide = smaller(s.plain, s.seasonal) + f.unit
	f.phi = 0
	f.expected = f.base
	if after {
		if s.cov > 0 {
			f.phi = smaller(s.cov/(s.vr+mul(f.unit, f.unit)), 1)
		}
		f.expected = f.base + (mul(f.phi, s.dprev) + s.bias)
	}
	f.high = 0.5 + clip(mul(0.5, f.expected-s.level)/(s.plain+f.unit), 0.5)
	if s.n > halvesAfter {
		f.scale = larger(toward(float64(s.noiseLow), float64(s.noiseHigh), f.high), mul(0.2, s.noise)) + f.unit
	}
}

// learn moves the model by one reading x at step dt after the newest. Every
// update sees x winsorised, so that one wild reading moves it by little; only a
// side held for sideAdopt readings is believed to be the new normal at once.
func (s *State) learn(f *forecast, x float64, d int32, h uint8, regular bool) {
	n := float64(s.n)
	e, dev := x-f.expected, x-f.base
	fresh := s.n < 64 // nothing is known yet: no winsorising
	ce, cd := e, dev
	if !fresh {
		ce = clip(e, mul(winsor, f.scale))
		cd = clip(dev, mul(winsor, f.wide))
	}
	slow := 1 / smaller(n, larger(float64(s.memory), levelShort))
	fast := 1.0 / noiseLong
	if n < noiseLong {
		fast = 1 / n
	}

	s.sides(dev, f.wide)
	la := slow
	if s.side > sideAdopt || s.side < -sideAdopt {
		la, cd = 0.1, dev
	}
	s.level = s.level + mul(la, cd)
	raw := x - s.level
	if !fresh {
		raw = clip(raw, mul(winsor, s.plain+f.unit)+math.Abs(f.season))
	}
	s.plain = toward(s.plain, math.Abs(raw), slow)
	s.seasonal = toward(s.seasonal, smaller(math.Abs(x-s.level-f.season), math.Abs(raw)+math.Abs(f.season)), slow)
	s.noise = toward(s.noise, math.Abs(ce), fast)
	if fresh {
		s.noiseHigh, s.noiseLow = float32(s.noise), float32(s.noise)
	} else {
		s.noiseHigh = float32(toward(float64(s.noiseHigh), math.Abs(ce), mul(2*fast, f.high)))
		s.noiseLow = float32(toward(float64(s.noiseLow), math.Abs(ce), mul(2*fast, 1-f.high)))
	}
	if regular {
		s.bias = s.bias + mul(fast, ce)
		p := clip(s.dprev, mul(winsor, f.wide))
		s.cov = toward(s.cov, mul(p, cd), fast)
		s.vr = toward(s.vr, mul(p, p), fast)
	}
	s.calendar(raw, d, h)
	s.dprev = x - (s.level + mul(f.weight, f.season))
	s.prev = x

	s.hi = s.hi - mul(s.hi-s.level, 1.0/rangeLong)
	s.lo = s.lo - mul(s.lo-s.level, 1.0/rangeLong)
	s.hi = larger(s.hi, x)
	s.lo = smaller(s.lo, x)
}

// sides counts readings in a row far on one side of the level.
func (s *State) sides(dev, wide float64) {
	far := mul(sideFar, wide)
	switch {
	case dev > far:
		if s.side < 0 {
			s.side = 0
		}
		s.side = min(s.side+1, 1000)
	case dev < -far:
		if s.side > 0 {
			s.side = 0
		}
		s.side = max(s.side-1, -1000)
	case s.side > 0:
		s.side--
	case s.side < 0:
		s.side++
	}
}

// calendar adds one deviation to the present hour and day, and folds an hour
// into the profile when it is over: learning once per visit makes the memory a
// number of days, whatever the cadence.
func (s *State) calendar(raw float64, d int32, h uint8) {
	if h != s.bin || d != s.day {
		if s.binN > 0 {
			s.seen[s.bin] = min(s.seen[s.bin]+1, visitsLong)
			m := s.binSum/float64(s.binN) - float64(s.week[weekday(s.day)])
			s.profile[s.bin] = float32(toward(float64(s.profile[s.bin]), m, 1/float64(s.seen[s.bin])))
		}
		s.bin, s.binSum, s.binN = h, 0, 0
	}
	if d != s.day {
		s.endDay()
		s.day, s.daySum, s.dayN = d, 0, 0
	}
	s.binSum += raw
	s.binN++
	s.daySum += raw
	s.dayN++
}

// endDay folds the day into its weekday's offset: the part of the day's mean
// that the profile does not have. Only days with most of their readings count,
// and the offset is believed from the second week on.
func (s *State) endDay() {
	if s.dayN == 0 || s.cadence <= 0 || mul(float64(s.dayN), s.cadence) < 0.75*day {
		return
	}
	mean := 0.0
	for _, v := range &s.profile {
		mean += float64(v)
	}
	off := s.daySum/float64(s.dayN) - mean/hours
	w := weekday(s.day)
	s.weekSeen[w] = min(s.weekSeen[w]+1, visitsLong)
	if k := s.weekSeen[w]; k > 1 {
		s.week[w] = float32(toward(float64(s.week[w]), off, 1/float64(k)))
	}
}
