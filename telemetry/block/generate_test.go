package block

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"

	"github.com/sluice-iot/sluice/telemetry"
)

// fleetShape says how generated messages differ from those of section 3.
type fleetShape struct {
	devices int    // that the shard has; each message comes from a random one
	id      string // format of a device id with one number, or uuid
	batch   int    // messages of one device in a row, 1 s apart (an array); 0 is 1
	millis  bool   // times in milliseconds
	floats  bool   // temperature has 17 digits
	faults  bool   // 1 % of temperatures are -999, 1 % of clocks are an hour late
}

var sectionThree = fleetShape{devices: 4096, id: "sensor-%06d"}

// generate makes n messages as a scanner returns them: a shard's share of a
// fleet of a million devices with one message per device and second.
func generate(n int, f fleetShape, seed uint64) []telemetry.Message {
	r := rand.New(rand.NewPCG(seed, 1))
	ids := make([]string, f.devices)
	for i := range ids {
		if ids[i] = fmt.Sprintf("%08x-%04x-4%03x-9%03x-%012x", r.Uint32(), r.IntN(1<<16), r.IntN(1<<12), r.IntN(1<<12), r.Uint64N(1<<48)); f.id != "uuid" {
			ids[i] = fmt.Sprintf(f.id, r.IntN(1_000_000))
		}
	}
	out := make([]telemetry.Message, n)
	received := int64(1_769_181_886_000_000)
	var device string
	left := 0
	for i := range out {
		if left == 0 {
			device, left = ids[r.IntN(f.devices)], max(f.batch, 1)
			received += int64(r.ExpFloat64() * 20) // 50,000 messages/s through this node for the shard
		}
		left--
		lag := int64(2_000 + r.ExpFloat64()*8_000) // network and queue
		m := &out[i]
		*m = telemetry.Message{Device: device, Received: received, Time: received - lag}
		if f.batch > 1 {
			m.Time = received - lag - int64(left)*1_000_000
		}
		if f.millis {
			m.Time = m.Time / 1000 * 1000
		}
		temperature := decimalOf(15+15*r.Float64(), 2)
		if f.floats {
			temperature = telemetry.FloatValue(15 + 15*r.Float64())
		}
		if f.faults && r.IntN(100) == 0 {
			temperature = decimalOf(-999, 1)
		}
		if f.faults && r.IntN(100) == 0 {
			m.Time -= 3_600_000_000
		}
		m.Readings = []telemetry.Reading{
			{Sensor: "temperature", Value: temperature},
			{Sensor: "humidity", Value: decimalOf(30+40*r.Float64(), 1)},
			{Sensor: "pressure", Value: decimalOf(1000+30*r.Float64(), 1)},
			{Sensor: "battery", Value: decimalOf(60+40*r.Float64(), 1)},
		}
		m.Attributes = []telemetry.Attribute{
			{Key: "firmware_version", Value: "1.2." + strconv.Itoa(r.IntN(3))},
			{Key: "signal_strength", Value: strconv.Itoa(-50 - r.IntN(40))},
		}
	}
	return out
}

// decimalOf rounds as a device does that prints at most n decimals, at least one.
func decimalOf(f float64, n uint8) telemetry.Value {
	m := int64(math.Round(f * math.Pow10(int(n))))
	for n > 1 && m%10 == 0 {
		m /= 10
		n--
	}
	return telemetry.Value{Kind: telemetry.KindDecimal, Mantissa: m, Scale: n}
}
