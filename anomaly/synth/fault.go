package synth

import (
	"math"
	"math/rand/v2"
)

// Fault is a way to break.
type Fault string

// The faults. Sizes are drawn per device, from barely visible to plain.
const (
	None           Fault = "none"
	Spike          Fault = "spike"           // one to three readings far away
	Stuck          Fault = "stuck"           // the last value again and again
	Drift          Fault = "drift"           // slowly away over a day and more
	Dropout        Fault = "dropout"         // zero instead of a value
	LevelShift     Fault = "level shift"     // another level from one reading to the next
	UnitChange     Fault = "unit change"     // Fahrenheit instead of Celsius, thousands instead of ones
	Variance       Fault = "variance"        // much more noise
	SeasonalChange Fault = "seasonal change" // the day's curve stops or is shifted
	CounterReset   Fault = "counter reset"   // the meter begins at zero
	Decoupled      Fault = "decoupled"       // a sensor no longer moves with the one it followed
)

// Faults lists all but None.
func Faults() []Fault {
	return []Fault{Spike, Stuck, Drift, Dropout, LevelShift, UnitChange, Variance, SeasonalChange, CounterReset, Decoupled}
}

// breakIt writes the fault over the last third.
func (d *Device) breakIt(signals []signal, r *rand.Rand) {
	rows := len(d.Times)
	d.From = rows*2/3 + r.IntN(rows/6)
	perDay := int(day / d.Cadence)
	length := perDay/4 + r.IntN(perDay)
	b := r.IntN(len(signals))
	switch d.Fault {
	case Spike:
		length = 1 + r.IntN(3)
	case Drift:
		length = perDay + r.IntN(2*perDay)
	case SeasonalChange:
		length, b = 2*perDay, 0
	case CounterReset:
		length, b = 1, 0
	case Dropout:
		length = 1 + r.IntN(perDay/2)
	case Decoupled:
		b = d.follower(signals)
	}
	d.To = min(d.From+length, rows)
	d.Broken = []int{b}
	if d.Fault == CounterReset {
		base := d.Values[d.From][0]
		if math.IsNaN(base) {
			base = d.Values[d.From-1][0]
		}
		for i := d.From; i < rows; i++ {
			d.Values[i][0] -= base
		}
		return
	}
	size := (4 + 8*r.Float64()) * signals[b].scale()
	if r.Float64() < 0.5 {
		size = -size
	}
	c := change{d: d, sensor: b, size: size, wild: r.Float64() < 0.5, spread: signals[b].scale() * (3 + 4*r.Float64())}
	for i := range rows {
		c.healthy = append(c.healthy, d.Values[i][b])
		if x := d.Values[i][b]; i < d.From && x == x {
			c.held = x
		}
	}
	for i := d.From; i < d.To; i++ {
		d.Values[i][b] = c.value(i, d.Values[i][b], r)
	}
}

// follower is the first sensor that follows another, the last sensor when none
// does.
func (d *Device) follower(signals []signal) int {
	for i, s := range signals {
		if _, ok := s.(*follower); ok {
			return i
		}
	}
	return len(signals) - 1
}

type change struct {
	d            *Device
	sensor       int
	size, spread float64
	wild         bool
	held         float64
	healthy      []float64
}

// value is what the broken sensor says instead of x in row i.
func (c *change) value(i int, x float64, r *rand.Rand) float64 {
	d := c.d
	done := float64(i-d.From+1) / float64(d.To-d.From)
	switch d.Fault {
	case Spike:
		return x + 2*c.size
	case Stuck:
		return c.held
	case Drift:
		return x + c.size*done
	case Dropout:
		return 0
	case LevelShift:
		return x + c.size
	case UnitChange:
		if c.wild {
			return 1000 * x
		}
		return 32 + 1.8*x
	case Variance:
		return x + c.spread*r.NormFloat64()
	case SeasonalChange, Decoupled: // the value of half a day ago
		return c.healthy[max(i-int(day/d.Cadence)/2, 0)]
	}
	return x
}
