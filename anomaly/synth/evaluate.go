package synth

import (
	"math"
	"slices"

	"github.com/sluice-iot/sluice/anomaly"
)

// month is the month of the false-alarm target, us.
const month = 30 * day

// Result is what the detector made of one kind of fault.
type Result struct {
	Fault       Fault          `json:"fault"`
	Devices     int            `json:"devices"`
	Found       int            `json:"found"`        // devices with an alert between the fault's beginning and an eighth of a day behind its end
	Recall      float64        `json:"recall"`       // Found / Devices
	DelayRows   float64        `json:"delay_rows"`   // median, messages from the fault's beginning to the alert
	DelayHours  float64        `json:"delay_hours"`  // median
	Sensor      float64        `json:"sensor"`       // share of the found in which the broken sensor has the largest share
	FalseAlarms int            `json:"false_alarms"` // alerts elsewhere, behind the warm-up and a day away from the fault
	Months      float64        `json:"months"`       // device-months in which there could be false alarms
	Rate        float64        `json:"rate"`         // false alarms per device-month
	Causes      map[string]int `json:"causes"`       // of the found
	// Precision is the average precision of the rows of the fault among all rows of
	// its device, ranked by severity; mean over the devices.
	Precision float64 `json:"average_precision"`
}

// Evaluate runs devices with seeds first, first+1, ... through the detector, so
// many of every fault, and as many healthy ones.
func Evaluate(p anomaly.Params, first uint64, devices int) []Result {
	out := make([]Result, 0, len(Faults())+1)
	for _, f := range append([]Fault{None}, Faults()...) {
		r := Result{Fault: f, Devices: devices, Causes: map[string]int{}}
		var rows, hours []float64
		fits := 0
		for i := range devices {
			d := Generate(first+uint64(i), f)
			o := run(p, d)
			r.FalseAlarms += o.falseAlarms
			r.Months += o.months
			r.Precision += o.precision / float64(devices)
			if o.delay < 0 {
				continue
			}
			r.Found++
			r.Causes[o.cause.String()]++
			rows = append(rows, float64(o.delay))
			hours = append(hours, float64(o.delay)*float64(d.Cadence)/hour)
			if o.sensor {
				fits++
			}
		}
		if f != None {
			r.Recall = float64(r.Found) / float64(devices)
			r.DelayRows, r.DelayHours = median(rows), median(hours)
			r.Sensor = float64(fits) / math.Max(1, float64(r.Found))
		}
		r.Rate = float64(r.FalseAlarms) / math.Max(r.Months, 1e-9)
		out = append(out, r)
	}
	return out
}

type outcome struct {
	delay       int // messages; -1 when it was not found
	cause       anomaly.Cause
	sensor      bool
	falseAlarms int
	months      float64
	precision   float64
}

// run plays one device.
func run(p anomaly.Params, d *Device) outcome {
	det := anomaly.New(p)
	states := make([]anomaly.State, len(d.Sensors))
	for i := range states {
		states[i].SetSensors(len(states))
	}
	var dev anomaly.DeviceState
	var row anomaly.Row
	perDay := int(day / d.Cadence)
	o := outcome{delay: -1}
	counted := 0
	severity, broken := make([]float64, len(d.Times)), make([]bool, len(d.Times))
	for i, t := range d.Times {
		row.Reset()
		var members []int
		for k, x := range d.Values[i] {
			if x == x {
				det.Add(&row, &states[k], t, x)
				members = append(members, k)
			}
		}
		v := det.Finish(&dev, &row, t)
		severity[i], broken[i] = v.Severity, i >= d.From && i < d.To
		near := d.From < len(d.Times) && i >= d.From && i < d.To+perDay/8
		away := i < d.From || i >= d.To+perDay
		if away && !v.Warmup {
			counted++
		}
		if v.Alert != anomaly.Opened {
			continue
		}
		switch {
		case near && o.delay < 0:
			o.delay, o.cause = i-d.From, v.Cause
			o.sensor = v.Top >= 0 && slices.Contains(d.Broken, members[v.Top])
		case away:
			o.falseAlarms++
		}
	}
	o.precision = averagePrecision(severity, broken)
	o.months = float64(counted) * float64(d.Cadence) / month
	return o
}

func median(x []float64) float64 {
	if len(x) == 0 {
		return 0
	}
	slices.Sort(x)
	return x[len(x)/2]
}
