package anomaly

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"
)

// deviceAlarms counts the alerts of devices whose sensors are stationary noise,
// per device and 30 days. shared is how much of the noise all sensors have in
// common.
func deviceAlarms(p Params, g noise, devices, sensors int, shared float64, cadence int64, readings int) float64 {
	d := New(p)
	n := 0
	var row Row
	for dev := range devices {
		r := rand.New(rand.NewPCG(uint64(dev), 17))
		states := make([]State, sensors)
		for i := range states {
			states[i].SetSensors(sensors)
		}
		var s DeviceState
		for i := range readings {
			at := int64(i) * cadence
			row.Reset()
			c := g.next(r)
			for k := range states {
				d.Add(&row, &states[k], at, 50+shared*c+(1-shared)*g.next(r))
			}
			if d.Finish(&s, &row, at).Alert == Opened {
				n++
			}
		}
	}
	return float64(n) * month / (float64(devices) * float64(readings) * float64(cadence))
}

// The promise is per device: its sensors and the view of them together keep to
// the target, whether they are independent or move as one.
func TestFalseAlarmRateOfDevicesIsWithinTwiceTheTarget(t *testing.T) {
	cells := []struct {
		name             string
		target           float64
		devices, sensors int
		shared           float64
		cadence          int64
		readings         int
	}{
		{"two independent", 8, 12, 2, 0, 300 * second, 2 * 8640},
		{"five independent", 8, 6, 5, 0, 300 * second, 2 * 8640},
		{"five coupled", 8, 6, 5, 0.7, 300 * second, 2 * 8640},
		{"thirty independent", 30, 1, 30, 0, 600 * second, 2 * 4320},
		{"thirty coupled", 30, 1, 30, 0.5, 600 * second, 2 * 4320},
	}
	for _, c := range cells {
		p := DefaultParams()
		p.AlarmsPerDeviceMonth = c.target
		for _, g := range noises() {
			got := deviceAlarms(p, g, c.devices, c.sensors, c.shared, c.cadence, c.readings) / c.target
			t.Logf("%-22s %-18s %.2f of the target", c.name, g.name, got)
			if got > 2 || got < 0.3 {
				t.Errorf("%s, %s: %.2f of the target, want 0.3 to 2", c.name, g.name, got)
			}
		}
	}
}

// coupled steps a device of four sensors that follow one another; broken says
// from which message on the last one goes its own way.
func coupled(rep uint64, n, broken int) (first int, cause Cause, top int) {
	d := New(DefaultParams())
	r := rand.New(rand.NewPCG(rep, 23))
	var states [4]State
	var s DeviceState
	var row Row
	for i := range states {
		states[i].SetSensors(len(states))
	}
	common, own := 0.0, 0.0
	for i := range n {
		at := int64(i) * 300 * second
		common = 0.9*common + r.NormFloat64()
		own = 0.9*own + r.NormFloat64()
		row.Reset()
		for k := range states {
			x := float64(10*k) + common
			if k == 3 && i >= broken {
				x = float64(10*k) + own
			}
			d.Add(&row, &states[k], at, x+0.1*r.NormFloat64())
		}
		v := d.Finish(&s, &row, at)
		if v.Alert == Opened && i >= broken {
			return i - broken, v.Cause, v.Top
		}
	}
	return -1, CauseNone, -1
}

// A sensor that stays within its own range but no longer moves with the others
// is seen by nobody but the view of the device.
func TestDeviceSeesASensorThatNoLongerMovesWithTheOthers(t *testing.T) {
	found, named, pointed := 0, 0, 0
	const reps = 20
	for rep := range uint64(reps) {
		first, cause, top := coupled(rep, 5000, 4000)
		if first < 0 || first > 300 {
			continue
		}
		found++
		if cause == CauseDecoupled {
			named++
		}
		if top == 3 {
			pointed++
		}
	}
	t.Logf("found %d of %d, cause named %d, sensor named %d", found, reps, named, pointed)
	if found < reps*9/10 || named < found*8/10 || pointed < found*8/10 {
		t.Errorf("found %d of %d, cause named %d, sensor named %d", found, reps, named, pointed)
	}
}

// Five sensors that break together are one alert, and their shares add up.
func TestOneIncidentOfADeviceIsOneAlert(t *testing.T) {
	d := New(DefaultParams())
	opened := 0
	const reps = 20
	for rep := range uint64(reps) {
		r := rand.New(rand.NewPCG(rep, 29))
		var states [5]State
		var s DeviceState
		var row Row
		for i := range states {
			states[i].SetSensors(len(states))
		}
		closed := false
		for i := range 3400 {
			at := int64(i) * 300 * second
			row.Reset()
			for k := range states {
				x := r.NormFloat64()
				if i >= 3000 && i < 3020 {
					x += 20
				}
				d.Add(&row, &states[k], at, x)
			}
			v := d.Finish(&s, &row, at)
			if v.Alert == Opened && i >= 3000 {
				opened++
				sum := 0.0
				for k := range row.Len() {
					sum += row.Share(k)
				}
				if math.Abs(sum-1) > 1e-9 || v.Severity < 50 || row.Share(v.Top) < 0.15 {
					t.Errorf("shares add up to %v, severity %v, verdict %+v", sum, v.Severity, v)
				}
			}
			closed = closed || v.Alert == Closed
		}
		if !closed {
			t.Error("the alert did not close")
		}
	}
	if opened < reps || opened > reps+reps/2 {
		t.Errorf("%d alerts for %d incidents", opened, reps)
	}
}

func TestDeviceStateContinuesAfterDecoding(t *testing.T) {
	if got := unsafe.Sizeof(DeviceState{}); got > 256 {
		t.Errorf("a DeviceState takes %d bytes, want at most 256", got)
	}
	d := New(DefaultParams())
	r := rand.New(rand.NewPCG(1, 31))
	var a, b [3]State
	var sa, sb DeviceState
	var ra, rb Row
	for i := range 3000 {
		at := int64(i) * 60 * second
		ra.Reset()
		rb.Reset()
		for k := range a {
			x := r.NormFloat64()
			d.Add(&ra, &a[k], at, x)
			d.Add(&rb, &b[k], at, x)
		}
		if va, vb := d.Finish(&sa, &ra, at), d.Finish(&sb, &rb, at); va != vb {
			t.Fatalf("message %d: original %+v, decoded %+v", i, va, vb)
		}
		if i%100 != 0 {
			continue
		}
		wire := AppendDevice(nil, &sb)
		var back DeviceState
		if rest, err := DecodeDevice(append(wire, 7), &back); err != nil || !bytes.Equal(rest, []byte{7}) || back != sb {
			t.Fatalf("message %d: rest %x, error %v", i, rest, err)
		}
		sb = back
	}
	wire := AppendDevice(nil, &sa)
	for n := range wire {
		var into DeviceState
		if _, err := DecodeDevice(wire[:n], &into); !errors.Is(err, ErrState) {
			t.Fatalf("first %d bytes: %v", n, err)
		}
	}
}

func TestMessageAllocatesNothing(t *testing.T) {
	d := New(DefaultParams())
	var states [4]State
	var s DeviceState
	row := Row{sensors: make([]rowSensor, 0, len(states))}
	i := int64(0)
	got := testing.AllocsPerRun(2000, func() {
		i++
		row.Reset()
		for k := range states {
			d.Add(&row, &states[k], i*second, float64((i*int64(k+3))%17))
		}
		d.Finish(&s, &row, i*second)
	})
	if got != 0 {
		t.Errorf("%v allocations per message, want 0", got)
	}
}

// A message of four readings: four steps and the view of the device.
func BenchmarkMessageOfFour(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 7))
	var xs [4096]float64
	for i := range xs {
		xs[i] = 50 + r.NormFloat64()
	}
	d := New(DefaultParams())
	var states [4]State
	var s DeviceState
	var row Row
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		row.Reset()
		for k := range states {
			d.Add(&row, &states[k], int64(i)*10*second, xs[(i*4+k)&4095])
		}
		d.Finish(&s, &row, int64(i)*10*second)
		i++
	}
}
