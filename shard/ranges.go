package shard

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/sluice-iot/sluice/internal/wire"
)

// Range is what a sensor can measure, on every device: a value outside of it is
// an anomaly, however often it comes.
type Range struct {
	Sensor string
	Min    float64
	Max    float64
}

// rangesMax bounds what every reading is compared with and every snapshot holds.
const rangesMax = 1024

// ranges are those of a shard, by the number of the sensor's name: the list is
// as long as the largest number needs, so that a reading costs one comparison
// where there are none.
type ranges struct {
	list []bounds
	set  int
}

type bounds struct {
	min, max float64
	set      bool
}

// outside reports whether x is out of the range of a sensor, and that range.
func (r *ranges) outside(sensor uint32, x float64) (bounds, bool) {
	if int(sensor) >= len(r.list) {
		return bounds{}, false
	}
	b := r.list[sensor]
	return b, b.set && (x < b.min || x > b.max)
}

func (r *ranges) has(sensor uint32) bool { return int(sensor) < len(r.list) && r.list[sensor].set }

func (r *ranges) put(sensor uint32, b bounds) {
	if int(sensor) >= len(r.list) {
		r.list = append(r.list, make([]bounds, int(sensor)+1-len(r.list))...)
	}
	if r.list[sensor].set {
		r.set--
	}
	if b.set {
		r.set++
	}
	r.list[sensor] = b
}

// named lists the ranges by the names of the sensors, in their order.
func (r *ranges) named(names []string) []Range {
	out := make([]Range, 0, r.set)
	for i, b := range r.list {
		if b.set {
			out = append(out, Range{Sensor: names[i], Min: b.min, Max: b.max})
		}
	}
	slices.SortFunc(out, func(a, b Range) int { return cmp.Compare(a.Sensor, b.Sensor) })
	return out
}

func (r *ranges) append(b []byte) []byte {
	b = wire.AppendUint(b, uint64(r.set))
	for i, x := range r.list {
		if x.set {
			b = wire.AppendUint(b, uint64(i))
			b = wire.AppendFloat(wire.AppendFloat(b, x.min), x.max)
		}
	}
	return b
}

// rangeSensorMax refuses numbers of sensors that no snapshot of ours holds.
const rangeSensorMax = 1 << 24

func (r *ranges) decode(w *wire.Reader) error {
	*r = ranges{}
	for range w.Count(17) {
		sensor := w.Uint()
		b := bounds{min: w.Float(), max: w.Float(), set: true}
		if sensor >= rangeSensorMax || w.Err() != nil {
			return fmt.Errorf("ranges: %w", wire.ErrShort)
		}
		r.put(uint32(sensor), b)
	}
	return nil
}

// rangeEntry sets what a sensor can measure; without set it is unknown again.
func rangeEntry(x Range, set bool) []byte {
	b := wire.AppendString(append(appendControl(nil, EntryWatch), watchRange), x.Sensor)
	return wire.AppendBool(wire.AppendFloat(wire.AppendFloat(b, x.Min), x.Max), set)
}

// Validate names what is wrong with a range.
func (x *Range) Validate() error {
	switch {
	case x.Sensor == "" || len(x.Sensor) > 128:
		return fmt.Errorf("%w: the name of a sensor has 1 to 128 bytes", errInvalidPut)
	case !(x.Min < x.Max) || x.Min-x.Min != 0 || x.Max-x.Max != 0:
		return fmt.Errorf("%w: the range %v to %v of %s is empty: min must be below max, both numbers", errInvalidPut, x.Min, x.Max, x.Sensor)
	}
	return nil
}

// applyRange applies a range entry behind its operation.
func (m *machine) applyRange(index uint64, r *wire.Reader) any {
	x := Range{Sensor: r.String(), Min: r.Float(), Max: r.Float()}
	set := r.Bool()
	if r.Err() != nil {
		return fmt.Errorf("decode watch entry %d: %w", index, r.Err())
	}
	if set {
		if err := x.Validate(); err != nil {
			return err
		}
		if old, ok := m.registry.byName[x.Sensor]; m.ranges.set >= rangesMax && !(ok && m.ranges.has(old)) {
			return fmt.Errorf("%w: %d sensors have a range already, clear one first", errInvalidPut, rangesMax)
		}
	} else if _, ok := m.registry.byName[x.Sensor]; !ok {
		return nil
	}
	m.ranges.put(m.registry.name(x.Sensor), bounds{min: x.Min, max: x.Max, set: set})
	return nil
}
