package anomaly

import "math"

// The features of a device's message, in the order of DeviceState.q and ex.
const (
	jointSum    = 0 // sum of the sensors' surprises, nats
	jointEnergy = 1 // short mean of the sensors' mean |deviation|
	jointBroken = 2 // short mean of what the common motion does not explain
	jointFeats  = 3

	loadMemory  = 0.002 // of the loadings: about 500 messages
	loadAfter   = 200   // messages before the common motion is believed
	jointCap    = 12.0  // nats of one sensor that count
	partnersMin = 2     // sensors in a message below which there is no joint view
	partFrom    = 2.0   // nats from which a sensor takes part in a surprise: one reading in seven has so many
	jointWarmup = 200   // messages more before its tail is believed
)

// DeviceState is what the detector knows of a device as a whole: how surprising
// its sensors are together, and its alert. The zero value is a fresh device.
type DeviceState struct {
	last    int64
	cadence float64 // mean time between messages with two sensors and more, us
	n       uint32  // such messages since all their sensors were warm, saturating

	energy, broken float32 // short means
	q, ex          [jointFeats]float32
	tail           tail  // of the sensors together
	whole          crest // of the most surprising of sensors and joint view
	alarm                // of the whole

	any  bool    // the device's alert is open: that of the whole, or of a sensor that reports alone
	calm uint16  // messages without an open sensor while it is
	top  float32 // its worst score

	excused [jointFeats]uint8 // as in State
}

// DeviceVerdict is what a message is worth.
type DeviceVerdict struct {
	// Score and Severity are as in Verdict, for the message as a whole: the most
	// surprising of its sensors, or the sensors together, if that is rarer.
	Score    float32
	Severity float64
	Cause    Cause
	// Top is the index (in the order of Row.Add) of the sensor with the largest
	// share, -1 for an empty row.
	Top int
	// Alert is the transition of the device's alert: opened by the first sensor or
	// by the joint view, updated when it gets worse, closed when all is quiet. One
	// incident of a device is one alert, however many sensors it has.
	Alert  Transition
	Open   bool
	Warmup bool

	nats float64 // -ln of the rate of devices' messages at least this surprising
}

// Probability estimates how often, per message of this device on stationary
// data, a separate episode at least this surprising begins.
func (v *DeviceVerdict) Probability() float64 { return exp(-v.nats) }

// Row gathers the verdicts of one message. It is scratch memory: reuse it from
// message to message, for one goroutine at a time.
type Row struct {
	sensors []rowSensor
	limit   int     // of the first sensor out of its physical range, counted from 1; 0 for none
	apart   Verdict // of the newest reading that is no part of the message
}

type rowSensor struct {
	state *State
	v     Verdict
	part  float64 // of the surprise
	rest  float64 // |deviation| that the common motion does not explain, in its usual size
}

// Reset empties the row for the next message.
func (r *Row) Reset() { r.sensors, r.limit = r.sensors[:0], 0 }

// Add scores a reading as Step does and makes it part of the message. The verdict
// is the row's: it is good until the next Add or Reset.
func (d *Detector) Add(r *Row, s *State, t int64, x float64) *Verdict {
	if x-x != 0 || s.n > 0 && t < s.last {
		d.step(s, t, x, &r.apart)
		return &r.apart
	}
	n := len(r.sensors)
	if n < cap(r.sensors) {
		r.sensors = r.sensors[:n+1]
	} else {
		r.sensors = append(r.sensors, rowSensor{})
	}
	y := &r.sensors[n]
	y.state, y.part, y.rest = s, 0, 0
	d.step(s, t, x, &y.v)
	return &y.v
}

// Exceed says that the i-th sensor is outside of its physical range, low to high:
// Finish then raises the device's alert, whatever the detectors know or think.
func (r *Row) Exceed(i int, low, high float64) {
	if i < 0 || i >= len(r.sensors) {
		return
	}
	r.sensors[i].v.Low, r.sensors[i].v.High = low, high
	if r.limit == 0 {
		r.limit = i + 1
	}
}

// Share is the part of the i-th sensor in the surprise of the message, 0 to 1;
// the shares add up to 1 when anything was surprising at all.
func (r *Row) Share(i int) float64 {
	sum := 0.0
	for k := range r.sensors {
		sum += r.sensors[k].part
	}
	if sum == 0 || i < 0 || i >= len(r.sensors) {
		return 0
	}
	return r.sensors[i].part / sum
}

// Len is the number of sensors in the row.
func (r *Row) Len() int { return len(r.sensors) }

// Verdict is that of the i-th sensor added.
func (r *Row) Verdict(i int) *Verdict { return &r.sensors[i].v }

// State is the state of the i-th sensor added.
func (r *Row) State(i int) *State { return r.sensors[i].state }

// Finish scores the message as a whole and moves the device's alert.
func (d *Detector) Finish(s *DeviceState, r *Row, t int64) DeviceVerdict {
	out := DeviceVerdict{Top: -1}
	if len(r.sensors) == 0 {
		out.Open = s.any
		return out
	}
	var tr Transition
	jointNats := 0.0
	s.tick(t)
	if len(r.sensors) >= partnersMin {
		jointNats = d.together(s, r, t, &out)
	}
	r.parts(&out, jointNats)
	if len(r.sensors) >= partnersMin {
		tr = d.judgeWhole(s, r, &out, jointNats)
	} else {
		d.alone(r, &out)
		tr = r.sensors[0].v.Alert
	}
	if r.limit > 0 {
		r.exceeded(&out)
	}
	d.incident(s, r, &out, tr)
	return out
}

// exceeded makes the message as severe as can be.
func (r *Row) exceeded(out *DeviceVerdict) {
	out.Cause, out.Top, out.Score, out.Severity = CauseLimit, r.limit-1, 1, 100
	r.sensors[out.Top].part += jointCap
}

// tick learns the cadence of the messages.
func (s *DeviceState) tick(t int64) {
	if dt := float64(t - s.last); s.last != 0 && dt > 0 {
		if s.cadence == 0 {
			s.cadence = dt
		}
		s.cadence = toward(s.cadence, smaller(dt, mul(gapFactor, s.cadence)), 1.0/64)
	}
	s.last = max(s.last, t)
}

// judgeWhole turns the most surprising of the message's sensors and their joint
// view into score, severity and alert. That maximum has a tail of its own: how
// many sensors there are, how far they move as one, and what all their tails
// have wrong in common is in it, and needs no formula.
func (d *Detector) judgeWhole(s *DeviceState, r *Row, out *DeviceVerdict, jointNats float64) Transition {
	u, most, learned := jointNats, 0.0, 0
	cause, sensor := out.Cause, CauseNone
	for i := range r.sensors {
		x := &r.sensors[i]
		learned = max(learned, int(x.state.n))
		if n := float64(x.v.fit); n > u {
			u, cause = n, x.v.Cause
		}
		if n := float64(x.v.nats); n > most && !x.v.Warmup {
			most, sensor = n, x.v.Cause
		}
	}
	sensors := max(int(r.sensors[0].state.sensors), len(r.sensors))
	own := 0.0
	if most > 0 {
		own = larger(most-lnCount(sensors), 0) // as if all sensors went their own ways
	}
	nats := own
	if s.whole.count >= crestReady {
		nats = s.whole.nats(u)
	} else {
		cause = sensor
	}
	if learned > d.p.Warmup+crestAfter {
		s.whole.learn(u, sensors)
	}
	if s.target == 0 || s.whole.count%renew == 0 {
		d.aimDevice(s)
	}
	aim := float64(s.target)
	peak := float64(s.peak) - mul(float64(s.peak), float64(s.fade))
	s.peak = float32(peak)
	out.Warmup, out.Cause = learned <= d.p.Warmup, cause
	if out.Warmup {
		return None
	}
	tr := d.alertStep(&s.alarm, nats, aim, peak, habitDevice, cause)
	s.show(out, larger(own, nats), nats >= aim, nats > peak+worseBy)
	if nats > peak+worseBy {
		s.peak = float32(nats)
	}
	return tr
}

// show writes score and severity: the order of messages follows the sensors'
// own account, which stays comparable over years, and the half of the scale the
// device's tail, which says how rare such a message is.
func (s *DeviceState) show(out *DeviceVerdict, nats float64, rare, news bool) {
	out.nats = nats
	score := 0.0
	if nats > 0 {
		score = 1 - exp(-mul(math.Ln2, nats)/float64(s.target))
		if !rare {
			score *= 0.5
		}
		out.Score = grade(score)
	}
	lasting := s.recent(score)
	if news {
		out.Severity = mul(100, score)
	} else {
		out.Severity = told(s.open, score, lasting)
	}
}

// together is the joint view of a message with several sensors.
func (d *Detector) together(s *DeviceState, r *Row, t int64, out *DeviceVerdict) float64 {
	if s.ex[0] == 0 {
		s.begin()
	}
	var v [jointFeats]float64
	sum, energy, warm := 0.0, 0.0, false
	for i := range r.sensors {
		x := &r.sensors[i]
		warm = warm || x.v.Warmup
		sum += smaller(float64(x.v.nats), jointCap)
		energy += math.Abs(float64(x.v.dev))
	}
	if warm {
		return 0 // a sensor's tails are not known: its surprise means nothing yet
	}
	if s.n < countCap {
		s.n++
	}
	energy = toward(float64(s.energy), energy/float64(len(r.sensors)), shortMean)
	broken := toward(float64(s.broken), s.decouple(r), shortMean)
	s.energy, s.broken = float32(energy), float32(broken)
	v = [jointFeats]float64{sum, energy, broken}
	if s.n <= loadAfter {
		return 0
	}
	u, top := s.surprise(&v)
	nats := 0.0
	if u > 0 {
		nats = s.tail.nats(u, 0)
	}
	s.tail.learn(u)
	if s.tail.count < jointWarmup {
		return 0
	}
	out.Cause = CauseJoint
	if top == jointBroken {
		out.Cause = CauseDecoupled
	}
	return nats
}

var jointExcessMin = [jointFeats]float32{0.3, 0.03, 0.03}

// surprise combines the features of a message, and teaches them to their tails.
func (s *DeviceState) surprise(v *[jointFeats]float64) (u float64, top int) {
	l := usual.of(young(s.n - loadAfter + learnTailsAfter))
	var m mixture
	for j := range v {
		if over := v[j] - float64(s.q[j]); over > 0 {
			m.add(j, over/float64(s.ex[j]), 1, 1, s.excused[j])
		}
		l.learn(v[j], 1, &s.q[j], &s.ex[j], jointExcessMin[j])
	}
	return m.surprise(), m.top
}

func (s *DeviceState) begin() {
	for j := range s.q {
		s.q[j], s.ex[j] = 1, larger32(0.5, jointExcessMin[j])
	}
}

func larger32(a, b float32) float32 {
	if a > b {
		return a
	}
	return b
}

// decouple splits the sensors' deviations into a common motion and what is left,
// and learns each sensor's part in it (Oja 1982: the first principal component,
// one sensor at a time). It returns the largest rest, in its usual size, of a
// sensor that usually moves with the others.
func (s *DeviceState) decouple(r *Row) float64 {
	num, den := 0.0, 0.0
	for i := range r.sensors {
		x := &r.sensors[i]
		l := float64(x.state.load)
		num += mul(l, float64(x.v.dev))
		den += mul(l, l)
	}
	common := 0.0
	if den > 0.05 {
		common = num / den
	} else { // nothing learned yet: begin with the plain mean
		for i := range r.sensors {
			common += float64(r.sensors[i].v.dev) / float64(len(r.sensors))
		}
	}
	worst := 0.0
	for i := range r.sensors {
		x := &r.sensors[i]
		l, usual := float64(x.state.load), float64(x.state.resid)
		dev := float64(x.v.dev)
		rest := math.Abs(dev - mul(l, common))
		x.rest = rest / (usual + 0.05)
		if s.n > loadAfter && usual > 0 {
			// a sensor that the common motion explains well says most by leaving it
			tied := larger(1-usual, 0)
			worst = max(worst, mul(x.rest, tied)) // which is the largest is random: no branch
		}
		a := loadMemory
		if s.n < loadAfter {
			a = 2 / float64(s.n+4)
		}
		c := clip(common, 4)
		x.state.load = float32(clip(l+mul(a, mul(c, clip(dev, 4)-mul(l, c))), 4))
		x.state.resid = float32(toward(usual, smaller(rest, 3*(usual+0.05)), a))
	}
	return worst
}

// aimDevice is aim for the message as a whole.
func (d *Detector) aimDevice(s *DeviceState) {
	c := s.cadence
	if !(c > 0) {
		c = second
	}
	s.fade = float32(1 / smaller(larger(peakHours*hour/c, peakShort), peakLong))
	aim := larger(ln(larger(month/c, 1)/d.p.AlarmsPerDeviceMonth), aimMin)
	s.target, s.earn, s.bar = float32(aim), float32(exp(-aim)), 1
}

// parts shares the surprise out over the sensors.
func (r *Row) parts(out *DeviceVerdict, jointNats float64) {
	best := -1.0
	for i := range r.sensors {
		x := &r.sensors[i]
		n := float64(x.v.nats)
		x.part = larger(n-partFrom, 0) + mul(0.05, n) // the little keeps shares where no sensor stands out
		if out.Cause == CauseDecoupled && jointNats > 0 {
			x.part += mul(0.5, mul(x.rest, x.rest))
		}
		if x.part > best {
			best, out.Top = x.part, i
		}
	}
}

// alone takes over what the only sensor of a message says.
func (d *Detector) alone(r *Row, out *DeviceVerdict) {
	v := &r.sensors[0].v
	out.Warmup, out.Cause, out.Score, out.Severity = v.Warmup, v.Cause, v.Score, v.Severity
	if !v.Warmup {
		out.nats = float64(v.nats)
	}
}

// incident moves the device's alert: one for all its sensors, whether they
// report together or each by itself.
func (d *Detector) incident(s *DeviceState, r *Row, out *DeviceVerdict, tr Transition) {
	first := r.sensors[0].state
	lone := len(r.sensors) < partnersMin && first.sensors > 1
	switch {
	case !s.any:
		if tr == Opened || r.limit > 0 {
			s.any, s.calm, s.top = true, 0, out.Score
			out.Alert = Opened
		}
	case s.open || lone && first.open || r.limit > 0:
		s.calm = 0
		if (tr == Opened || tr == Updated || r.limit > 0) && out.Score > s.top {
			s.top = out.Score
			out.Alert = Updated
		}
	default:
		s.calm++
		if int(s.calm) >= d.p.CloseAfter || tr == Closed && (!lone || first.sensors < partnersMin) {
			s.any, s.calm, s.top = false, 0, 0
			out.Alert = Closed
		}
	}
	out.Open = s.any
}
