package synth

import (
	"math"
	"math/rand/v2"
)

const (
	second = 1_000_000 // us
	hour   = 3600 * second
	day    = 24 * hour

	rowsMin, rowsMax = 6000, 12000
	sensorsMax       = 8
	startTime        = 1_767_225_600 * second // 2026-01-01, a Thursday
)

// Device is what one device reported, with the one fault it had.
type Device struct {
	Sensors []string
	Times   []int64     // microseconds, ascending
	Values  [][]float64 // by row, then sensor; NaN is no reading
	Cadence int64       // microseconds
	Fault   Fault
	From    int   // first row of the fault; len(Times) when there is none
	To      int   // first row behind it
	Broken  []int // sensors with the fault
}

// signal makes the next value of a sensor at a time.
type signal interface {
	next(t int64, r *rand.Rand) float64
	// scale is the usual size of its noise, for the size of a fault.
	scale() float64
}

// Generate makes the device of a seed with a fault of a kind.
func Generate(seed uint64, f Fault) *Device {
	r := rand.New(rand.NewPCG(seed, 0x51ce))
	d := &Device{Fault: f}
	d.Cadence = []int64{60, 300, 300, 600, 900}[r.IntN(5)] * second
	rows := rowsMin + r.IntN(rowsMax-rowsMin)
	n := 1 + r.IntN(sensorsMax)
	var signals []signal
	for i := range n {
		s, name := d.signal(i, signals, f, r)
		signals = append(signals, s)
		d.Sensors = append(d.Sensors, name)
	}
	d.clock(rows, r)
	for _, t := range d.Times {
		row := make([]float64, n)
		for i, s := range signals {
			row[i] = s.next(t, r)
			if r.Float64() < 0.001 {
				row[i] = math.NaN()
			}
		}
		d.Values = append(d.Values, row)
	}
	d.From, d.To = rows, rows
	if f != None {
		d.breakIt(signals, r)
	}
	return d
}

// signal chooses what sensor i measures. A counter reset needs a counter.
func (d *Device) signal(i int, others []signal, f Fault, r *rand.Rand) (signal, string) {
	if i == 0 && f == CounterReset {
		return newMeter(r), "meter"
	}
	if i == 0 && f == SeasonalChange {
		return newTemperature(r, d.Cadence), "temperature"
	}
	if i > 0 && r.Float64() < 0.4 {
		return newFollower(others[r.IntN(i)], r), "follower" + string(rune('a'+i))
	}
	id := string(rune('a' + i))
	switch k := r.IntN(7); {
	case k == 0:
		return newTemperature(r, d.Cadence), "temperature" + id
	case k == 1:
		return newLoad(r), "load" + id
	case k == 2 && f != UnitChange && f != Drift && f != LevelShift: // a meter's level means nothing
		return newMeter(r), "meter" + id
	case k == 3:
		return newDuty(r, d.Cadence), "duty" + id
	case k == 4:
		return newPressure(r, d.Cadence), "pressure" + id
	case k == 5:
		return newCount(r), "count" + id
	default:
		return newVoltage(r), "voltage" + id
	}
}

// clock makes the times: jitter of a few per cent, now and then a gap.
func (d *Device) clock(rows int, r *rand.Rand) {
	t := int64(startTime) + r.Int64N(7*day)
	jitter := 0.0
	if r.Float64() < 0.5 {
		jitter = 0.05 * r.Float64()
	}
	at := t
	for range rows {
		d.Times = append(d.Times, at+int64(jitter*(r.Float64()-0.5)*float64(d.Cadence)))
		at += d.Cadence
		if r.Float64() < 0.0003 {
			at += d.Cadence * (1 + r.Int64N(60))
		}
	}
}

func dayPart(t int64) float64 { return float64(t%day) / day }

// weekend reports a Saturday or Sunday; day 0 of the epoch was a Thursday.
func weekend(t int64) bool { d := t / day % 7; return d == 2 || d == 3 }

// temperature: a day's curve, slow weather, first-order noise.
type temperature struct{ level, amp, phase, phi, sd, slow, slowSD, x, w, unit float64 }

func newTemperature(r *rand.Rand, _ int64) *temperature {
	return &temperature{level: 70*r.Float64() - 10, amp: 1 + 9*r.Float64(), phase: r.Float64(), phi: 0.5 + 0.45*r.Float64(),
		sd: 0.05 + 0.4*r.Float64(), slow: 0.9995, slowSD: 0.02 * r.Float64(), unit: []float64{0, 0.01, 0.1}[r.IntN(3)]}
}

func (s *temperature) next(t int64, r *rand.Rand) float64 {
	s.x = s.phi*s.x + s.sd*r.NormFloat64()
	s.w = s.slow*s.w + s.slowSD*r.NormFloat64()
	return quantise(s.level+s.amp*math.Sin(2*math.Pi*(dayPart(t)+s.phase))+s.w+s.x, s.unit)
}
func (s *temperature) scale() float64 { return s.sd / math.Sqrt(1-s.phi*s.phi) }

// load: busy at working hours of working days, multiplicative noise.
type load struct{ low, high, from, to, sd float64 }

func newLoad(r *rand.Rand) *load {
	return &load{low: 1 + 10*r.Float64(), high: 30 + 60*r.Float64(), from: 0.25 + 0.1*r.Float64(), to: 0.6 + 0.2*r.Float64(), sd: 0.03 + 0.15*r.Float64()}
}

func (s *load) next(t int64, r *rand.Rand) float64 {
	m := s.low
	if p := dayPart(t); !weekend(t) && p >= s.from && p < s.to {
		m = s.high
	}
	return m * math.Exp(s.sd*r.NormFloat64())
}
func (s *load) scale() float64 { return s.high * s.sd }

// meter: rises for ever, faster by day.
type meter struct{ total, rate float64 }

func newMeter(r *rand.Rand) *meter {
	return &meter{total: 1e5 * r.Float64(), rate: 0.1 + 5*r.Float64()}
}

func (s *meter) next(t int64, r *rand.Rand) float64 {
	s.total += s.rate * (1.2 + math.Sin(2*math.Pi*dayPart(t))) * r.ExpFloat64()
	return s.total
}
func (s *meter) scale() float64 { return s.rate }

// duty: a compressor that runs and rests.
type duty struct {
	on, off, sd float64
	left        int
	run, rest   int
	running     bool
}

func newDuty(r *rand.Rand, _ int64) *duty {
	return &duty{on: 50 + 100*r.Float64(), off: 2 * r.Float64(), sd: 1 + 2*r.Float64(), run: 2 + r.IntN(8), rest: 3 + r.IntN(15)}
}

func (s *duty) next(_ int64, r *rand.Rand) float64 {
	if s.left == 0 {
		s.running = !s.running
		n := s.rest
		if s.running {
			n = s.run
		}
		s.left = max(1, n+r.IntN(3)-1)
	}
	s.left--
	if s.running {
		return s.on + s.sd*r.NormFloat64()
	}
	return s.off + 0.05*math.Abs(r.NormFloat64())
}
func (s *duty) scale() float64 { return s.on / 3 }

// pressure: wanders and comes back over days.
type pressure struct{ level, x, phi, sd, white float64 }

func newPressure(r *rand.Rand, cadence int64) *pressure {
	tau := (0.3 + 2*r.Float64()) * day / float64(cadence)
	phi := math.Exp(-1 / tau)
	wide := 1 + 5*r.Float64()
	return &pressure{level: 950 + 100*r.Float64(), phi: phi, sd: wide * math.Sqrt(1-phi*phi), white: 0.02 + 0.2*r.Float64()}
}

func (s *pressure) next(_ int64, r *rand.Rand) float64 {
	s.x = s.phi*s.x + s.sd*r.NormFloat64()
	return s.level + s.x + s.white*r.NormFloat64()
}
func (s *pressure) scale() float64 { return s.sd/math.Sqrt(1-s.phi*s.phi) + s.white }

// events: counts per interval, more by day.
type events struct{ mean, amp float64 }

func newCount(r *rand.Rand) *events { return &events{mean: 0.5 + 30*r.Float64(), amp: r.Float64()} }

func (s *events) next(t int64, r *rand.Rand) float64 {
	return poisson(s.mean*(1+s.amp*math.Sin(2*math.Pi*dayPart(t))), r)
}
func (s *events) scale() float64 { return math.Sqrt(s.mean) + 1 }

func poisson(m float64, r *rand.Rand) float64 {
	n, p, l := 0.0, 1.0, math.Exp(-m)
	for {
		if p *= r.Float64(); p <= l {
			return n
		}
		n++
	}
}

// voltage: constant with noise of some shape, coarse steps.
type voltage struct {
	level, sd, unit float64
	shape           int
}

func newVoltage(r *rand.Rand) *voltage {
	sd := 0.01 + 0.5*r.Float64()
	return &voltage{level: []float64{3.3, 12, 24, 230}[r.IntN(4)], sd: sd, unit: []float64{0, sd / 2, sd / 10}[r.IntN(3)], shape: r.IntN(4)}
}

func (s *voltage) next(_ int64, r *rand.Rand) float64 {
	var x float64
	switch s.shape {
	case 0:
		x = r.NormFloat64()
	case 1:
		x = 2*r.Float64() - 1
	case 2:
		x = r.ExpFloat64() - r.ExpFloat64()
	default: // Student t with 5 degrees of freedom
		c := 0.0
		for range 5 {
			z := r.NormFloat64()
			c += z * z
		}
		x = r.NormFloat64() / math.Sqrt(c/5)
	}
	return quantise(s.level+s.sd*x, s.unit)
}
func (s *voltage) scale() float64 { return s.sd }

// follower: moves with another sensor, a little noise of its own.
type follower struct {
	of               signal
	gain, offset, sd float64
}

func newFollower(of signal, r *rand.Rand) *follower {
	return &follower{of: of, gain: 0.5 + r.Float64(), offset: 20 * r.Float64(), sd: (0.1 + 0.5*r.Float64()) * of.scale()}
}

// next depends on the state that of has reached: it is asked behind it.
func (s *follower) next(t int64, r *rand.Rand) float64 {
	return s.offset + s.gain*peek(s.of, t, r) + s.sd*r.NormFloat64()
}
func (s *follower) scale() float64 { return s.gain*s.of.scale() + s.sd }

// peek is the present value of a signal without its white noise.
func peek(s signal, t int64, r *rand.Rand) float64 {
	switch v := s.(type) {
	case *temperature:
		return v.level + v.amp*math.Sin(2*math.Pi*(dayPart(t)+v.phase)) + v.w + v.x
	case *pressure:
		return v.level + v.x
	case *duty:
		if v.running {
			return v.on
		}
		return v.off
	case *load:
		if p := dayPart(t); !weekend(t) && p >= v.from && p < v.to {
			return v.high
		}
		return v.low
	case *follower:
		return v.offset + v.gain*peek(v.of, t, r)
	case *meter:
		return v.rate * (1.2 + math.Sin(2*math.Pi*dayPart(t)))
	case *events:
		return v.mean * (1 + v.amp*math.Sin(2*math.Pi*dayPart(t)))
	case *voltage:
		return v.level
	}
	return 0
}

func quantise(x, unit float64) float64 {
	if unit == 0 {
		return x
	}
	return unit * math.Round(x/unit)
}
