package anomaly

import (
	"math/rand/v2"
	"testing"
)

// alarms counts the alerts of devices with so many sensors each over a time of
// stationary noise, and returns them per device and 30 days.
func alarms(p Params, g noise, devices, sensors int, cadence int64, readings int) float64 {
	d := New(p)
	n := 0
	for dev := range devices * sensors {
		r := rand.New(rand.NewPCG(uint64(dev), 7))
		var s State
		s.SetSensors(sensors)
		for i := range readings {
			if d.Step(&s, int64(i)*cadence, 50+g.next(r)).Alert == Opened {
				n++
			}
		}
	}
	return float64(n) * month / (float64(devices) * float64(readings) * float64(cadence))
}

// The target rate of false alarms is honoured within a factor of two by every
// series alone, for every distribution, cadence and number of sensors. Sample
// sizes give 50 to 500 expected alarms per cell.
func TestFalseAlarmRateIsWithinTwiceTheTarget(t *testing.T) {
	cells := []struct {
		name             string
		target           float64
		devices, sensors int
		cadence          int64
		readings         int
	}{
		{"one sensor, 5 min, 3 months, 1 a month", 1, 30, 1, 300 * second, 3 * 8640},
		{"one sensor, 5 min, a month, 30 a month", 30, 10, 1, 300 * second, 8640},
		{"eight sensors, 5 min, 2 months, 4 a month", 4, 8, 8, 300 * second, 2 * 8640},
		{"thirty sensors, 10 min, 2 months, 30 a month", 30, 1, 30, 600 * second, 2 * 4320},
		{"one sensor, 10 s, a month, 30 a month", 30, 2, 1, 10 * second, 259200},
	}
	for _, c := range cells {
		p := DefaultParams()
		p.AlarmsPerDeviceMonth = c.target
		for _, g := range noises() {
			got := alarms(p, g, c.devices, c.sensors, c.cadence, c.readings) / c.target
			t.Logf("%-45s %-18s %.2f of the target", c.name, g.name, got)
			if got < 0.5 || got > 2 {
				t.Errorf("%s, %s: %.2f of the target, want 0.5 to 2", c.name, g.name, got)
			}
		}
	}
}
