package simulate

import (
	"math"
	"math/rand/v2"
	"strconv"
	"time"
)

// weather is what all sites share: slow waves whose periods share no multiple,
// so that no two days are alike. It is a function of time, not of history.
type weather struct {
	phase [3]float64
}

func newWeather(seed uint64) weather {
	r := rand.New(rand.NewPCG(seed, 0x77656174686572))
	var w weather
	for i := range w.phase {
		w.phase[i] = 2 * math.Pi * r.Float64()
	}
	return w
}

// at gives the deviation of temperature (degrees C) and pressure (hPa).
func (w *weather) at(t time.Time) (temperature, pressure float64) {
	h := float64(t.UnixMilli()) / 3.6e6
	temperature = 2.2*math.Sin(2*math.Pi*h/157+w.phase[0]) + 0.9*math.Sin(2*math.Pi*h/41+w.phase[1])
	pressure = 9*math.Sin(2*math.Pi*h/131+w.phase[2]) - 1.4*temperature
	return temperature, pressure
}

type fault uint8

const (
	faultNone fault = iota
	faultSpike
	faultStuck
	faultShift
	faultNoise
	faultDrift
	faultKinds
)

// A fault lasts faultMin to faultMax messages, a spike one.
const (
	faultMin = 60
	faultMax = 300
)

// values of one message.
type values struct {
	temperature, humidity, pressure, battery float64
}

// device is the state of one device. It is used by one goroutine.
type device struct {
	id    string
	topic string
	phase time.Duration // within the interval

	rng                *rand.Rand
	base, swing, peak  float64 // daily cycle: degrees C, half its height, hour of its maximum
	humidity, pressure float64 // of the site
	wander, moist      float64 // correlated noise
	charge, drain      float64 // battery in percent, percent per day
	at                 time.Time
	fault              fault
	sensor             int // that has it
	left, length       int // messages
	size               float64
	held               values
	firmware           int
	signal, messages   int
}

func newDevice(cfg *Config, i int) *device {
	r := rand.New(rand.NewPCG(cfg.Seed, uint64(i)+1))
	d := &device{
		id: deviceID(cfg.Prefix, i), rng: r,
		// The golden ratio spreads any number of phases evenly.
		phase: time.Duration(float64(cfg.Interval) * math.Mod(float64(i)*0.6180339887498949, 1)),
		base:  19 + 3*r.NormFloat64(), swing: 1.5 + 3*r.Float64(), peak: 14 + 2*r.Float64(),
		humidity: 48 + 8*r.NormFloat64(), pressure: 1013 - 45*r.Float64(),
		charge: 30 + 70*r.Float64(), drain: 0.4 + 0.8*r.Float64(),
		firmware: r.IntN(3), signal: -55 - r.IntN(35),
	}
	d.topic = "devices/" + d.id + "/telemetry"
	return d
}

// measure gives the values at t; perMessage is the chance of a new fault.
func (d *device) measure(w *weather, t time.Time, perMessage float64) values {
	step := t.Sub(d.at)
	if d.at.IsZero() || step < 0 {
		step = time.Second
	}
	d.at = t
	outside, pressure := w.at(t)
	d.wander = correlate(d.rng, d.wander, step, 10*time.Minute, 0.35)
	d.moist = correlate(d.rng, d.moist, step, 20*time.Minute, 1.1)
	hour := float64(t.UnixMilli()%86_400_000) / 3.6e6
	day := math.Cos(2 * math.Pi * (hour - d.peak) / 24)
	d.charge -= d.drain * step.Hours() / 24
	if d.charge < 15 {
		d.charge = 100 // somebody came with a new one
	}
	v := values{
		temperature: d.base + d.swing*day + outside + d.wander + 0.06*d.rng.NormFloat64(),
		pressure:    d.pressure + pressure + 0.12*d.rng.NormFloat64(),
		battery:     d.charge + 0.15*d.rng.NormFloat64(),
	}
	// Warm air of the same moisture is drier.
	v.humidity = clamp(d.humidity-2.4*(v.temperature-d.base)+d.moist+0.2*d.rng.NormFloat64(), 3, 100)
	v = d.misbehave(v, perMessage)
	v.battery = clamp(v.battery, 0, 100)
	d.messages++
	return v
}

// correlate is one step of an Ornstein-Uhlenbeck process.
func correlate(r *rand.Rand, x float64, step, memory time.Duration, sigma float64) float64 {
	a := math.Exp(-step.Seconds() / memory.Seconds())
	return a*x + sigma*math.Sqrt(1-a*a)*r.NormFloat64()
}

func clamp(x, low, high float64) float64 { return min(high, max(low, x)) }

// misbehave begins, continues and ends faults.
func (d *device) misbehave(v values, perMessage float64) values {
	if d.fault == faultNone {
		if d.rng.Float64() >= perMessage {
			return v
		}
		d.fault, d.sensor, d.held = fault(1+d.rng.IntN(int(faultKinds)-1)), d.rng.IntN(3), v
		d.length = faultMin + d.rng.IntN(faultMax-faultMin)
		if d.fault == faultSpike {
			d.length = 1
		}
		d.left, d.size = d.length, (6+6*d.rng.Float64())*float64(1-2*d.rng.IntN(2))
	}
	x, scale, held := d.pick(&v)
	switch d.fault {
	case faultSpike:
		*x += 2 * d.size * scale
	case faultStuck:
		*x = held
	case faultShift:
		*x += d.size * scale
	case faultNoise:
		*x += 0.5 * d.size * scale * d.rng.NormFloat64()
	case faultDrift:
		*x += d.size * scale * float64(d.length-d.left) / float64(d.length)
	}
	v.humidity = clamp(v.humidity, 0, 100)
	d.left--
	if d.left <= 0 {
		d.fault = faultNone
	}
	return v
}

// pick is the faulty sensor, the size of its usual deviations, and its value
// when the fault began.
func (d *device) pick(v *values) (x *float64, scale, held float64) {
	switch d.sensor {
	case 0:
		return &v.temperature, 1, d.held.temperature
	case 1:
		return &v.humidity, 2.5, d.held.humidity
	default:
		return &v.pressure, 2, d.held.pressure
	}
}

// appendMessage appends the JSON of one message, with as many digits as such
// sensors give.
func (d *device) appendMessage(b []byte, t time.Time, v values) []byte {
	b = append(b, `{"device_id":"`...)
	b = append(b, d.id...)
	b = append(b, `","timestamp":"`...)
	b = t.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, `","sensors":{"temperature":`...)
	b = strconv.AppendFloat(b, v.temperature, 'f', 2, 64)
	b = append(b, `,"humidity":`...)
	b = strconv.AppendFloat(b, v.humidity, 'f', 1, 64)
	b = append(b, `,"pressure":`...)
	b = strconv.AppendFloat(b, v.pressure, 'f', 1, 64)
	b = append(b, `,"battery":`...)
	b = strconv.AppendFloat(b, v.battery, 'f', 1, 64)
	b = append(b, `},"metadata":{"firmware_version":"1.2.`...)
	b = strconv.AppendInt(b, int64(d.firmware), 10)
	b = append(b, `","signal_strength":`...)
	b = strconv.AppendInt(b, int64(d.signal), 10)
	return append(b, `}}`...)
}
