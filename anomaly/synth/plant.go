package synth

import (
	"math"
	"math/rand/v2"
	"strconv"
)

const (
	plantCadence = 60 * second
	plantDays    = 20
	plantRows    = plantDays * int(day/plantCadence)
	plantFaults  = 6
	plantHealthy = plantRows / 2 // rows before the first fault
)

// The sensors of a plant, in the order of its columns. The last are constant
// columns, of which every logger has some.
const (
	plantLevel = iota
	plantInflow
	plantOutflow
	plantPressure
	plantTemperature
	plantCurrent
	plantPump
	plantValve
	plantMode
	plantSetpoint
	plantConstant
	plantSensors = plantConstant + 3
)

// Span is a fault of a plant: the rows from From up to To.
type Span struct {
	Fault    string
	From, To int
}

// Plant is a tank with a pump that a float switches on and off, a valve, two
// modes of operation that change several times a day, a set point that is moved
// slowly now and then, and what is measured of it: correlated, binary and
// constant columns. It breaks six times in the second half of its twenty days.
type Plant struct {
	Device
	Faults   []Span
	Switches []int // rows at which the mode changed
}

// NewPlant makes the plant of a seed.
func NewPlant(seed uint64) *Plant {
	r := rand.New(rand.NewPCG(seed, 0x91a27))
	p := &Plant{Device: Device{Cadence: plantCadence, From: plantRows, To: plantRows}}
	p.Sensors = []string{"level", "inflow", "outflow", "pressure", "temperature", "current", "pump", "valve", "mode", "setpoint"}
	for i := plantConstant; i < plantSensors; i++ {
		p.Sensors = append(p.Sensors, "constant"+strconv.Itoa(i))
	}
	kinds := []string{"leak", "stuck level", "pump", "valve", "blockage", "offset"}
	r.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	for i := range plantFaults {
		from := plantHealthy + i*plantRows/2/plantFaults + r.IntN(600)
		p.Faults = append(p.Faults, Span{kinds[i], from, from + 60 + r.IntN(240)})
	}
	p.play(r)
	return p
}

// play runs the tank.
func (p *Plant) play(r *rand.Rand) {
	level, pump, mode, until := 50.0, 1.0, 0.0, 0
	set, goal, heat, held := 60.0, 60.0, 30.0, 0.0
	demand := [2]float64{8 + 4*r.Float64(), 16 + 6*r.Float64()}
	strength := demand[1] * (1.2 + 0.3*r.Float64())
	for i := range plantRows {
		fault := p.faultAt(i)
		if i >= until {
			until = i + 120 + r.IntN(360)
			mode = 1 - mode
			p.Switches = append(p.Switches, i)
		}
		if r.Float64() < 0.0004 {
			goal = 55 + 10*r.Float64()
		}
		set += math.Max(-0.02, math.Min(0.02, goal-set))
		switch {
		case level < set-12:
			pump = 1
		case level > set+12:
			pump = 0
		}
		in := pump * strength
		valve := mode
		out := demand[int(mode)] * (0.7 + 0.3*level/60)
		switch fault {
		case "pump":
			in *= 0.35
		case "valve":
			valve, out = 1-mode, demand[1-int(mode)]*(0.7+0.3*level/60)
		case "blockage":
			out *= 0.2
		}
		lost := 0.0
		if fault == "leak" {
			lost = 6
		}
		level = math.Max(0, level+(in-out-lost)/6)
		heat += 0.02*(25+0.8*in-heat) + 0.03*r.NormFloat64()
		shown := level + 0.15*r.NormFloat64()
		if fault == "stuck level" {
			shown = held
		}
		held = shown
		temperature := heat + 0.1*r.NormFloat64()
		if fault == "offset" {
			temperature += 6
		}
		current := pump*(12+0.1*strength) + 0.1*math.Abs(r.NormFloat64())
		row := make([]float64, plantSensors)
		row[plantLevel], row[plantInflow], row[plantOutflow] = shown, in+0.2*r.NormFloat64(), out+0.2*r.NormFloat64()
		row[plantPressure], row[plantTemperature], row[plantCurrent] = 1+0.1*level+0.02*r.NormFloat64(), temperature, current
		row[plantPump], row[plantValve], row[plantMode], row[plantSetpoint] = pump, valve, mode, quantise(set, 0.1)
		for k := plantConstant; k < plantSensors; k++ {
			row[k] = float64(k)
		}
		p.Times = append(p.Times, int64(startTime)+int64(i)*plantCadence)
		p.Values = append(p.Values, row)
	}
}

func (p *Plant) faultAt(i int) string {
	for _, f := range p.Faults {
		if i >= f.From && i < f.To {
			return f.Fault
		}
	}
	return ""
}
