package anomaly

import "fmt"

// deviceVersion is the first byte of a serialised DeviceState; of those from
// deviceFirst on what still means the same is read, so that a new detector starts
// warm: 1 had another alert and no tail of the whole, 2 lacks what walkThirdDevice visits,
// 3 what walkFourthDevice does.
const (
	deviceVersion = 4
	deviceFirst   = 1
)

// AppendDevice appends the serialised s to dst. Equal states give equal bytes.
func AppendDevice(dst []byte, s *DeviceState) []byte {
	e := encoder{dst: append(dst, deviceVersion)}
	walkDevice(&e, s)
	walkThirdDevice(&e, s)
	walkFourthDevice(&e, s)
	return e.dst
}

// DecodeDevice reads one DeviceState from the front of b and returns the rest; it
// refuses what DecodeState refuses.
func DecodeDevice(b []byte, s *DeviceState) (rest []byte, err error) {
	if len(b) == 0 || b[0] < deviceFirst || b[0] > deviceVersion {
		return nil, fmt.Errorf("%w: a device's state begins with a version from %d to %d: upgrade this node", ErrState, deviceFirst, deviceVersion)
	}
	var got DeviceState
	d := decoder{src: b[1:]}
	if b[0] == deviceFirst {
		walkFirstDevice(&d, &got)
	} else {
		walkDevice(&d, &got)
	}
	if b[0] >= 3 {
		walkThirdDevice(&d, &got)
	}
	if b[0] == deviceVersion {
		walkFourthDevice(&d, &got)
	}
	if d.bad != "" {
		return nil, fmt.Errorf("%w: %s at byte %d of a device's", ErrState, d.bad, len(b)-len(d.src))
	}
	if err := got.check(); err != nil {
		return nil, err
	}
	*s = got
	return d.src, nil
}

// walkFirstDevice visits version 1, whose alert was that of the sensors together.
func walkFirstDevice[C coder](c C, s *DeviceState) {
	var a alarm
	var shown float32
	walkTogether(c, s)
	walkAlarm(c, &a)
	c.flag(&s.any)
	c.u16(&s.calm)
	c.f32(&s.top)
	c.f32(&shown)
	for j := range s.excused {
		c.u8(&s.excused[j])
	}
}

func walkTogether[C coder](c C, s *DeviceState) {
	c.i64(&s.last)
	c.f64(&s.cadence)
	c.u32(&s.n)
	c.f32(&s.energy)
	c.f32(&s.broken)
	for j := range jointFeats {
		c.f32(&s.q[j])
		c.f32(&s.ex[j])
	}
	walkTail(c, &s.tail)
}

func walkDevice[C coder](c C, s *DeviceState) {
	walkTogether(c, s)
	walkCrest(c, &s.whole)
	walkAlarm(c, &s.alarm)
	c.flag(&s.any)
	c.u16(&s.calm)
	c.f32(&s.top)
	for j := range s.excused {
		c.u8(&s.excused[j])
	}
}

// walkThirdDevice visits what version 3 added.
func walkThirdDevice[C coder](c C, s *DeviceState) { c.u16(&s.whole.over) }

// walkFourthDevice visits what version 4 added.
func walkFourthDevice[C coder](c C, s *DeviceState) { c.f32(&s.lasting) }

func (s *DeviceState) check() error {
	ok := s.lastingOK() && s.cadence >= 0 && s.n <= countCap && s.energy >= 0 && s.broken >= 0 && s.tail.ok() && s.whole.ok() && s.target >= 0 && s.causeOf <= causeLast
	for _, k := range s.excused {
		ok = ok && k <= excuseMax
	}
	if s.n > 0 {
		for j := range s.ex {
			ok = ok && s.ex[j] > 0 && s.q[j] >= 0
		}
	}
	if !ok {
		return fmt.Errorf("%w: field of a device out of range", ErrState)
	}
	return nil
}

func walkCrest[C coder](c C, t *crest) {
	c.f64(&t.q)
	for _, f := range []*float32{&t.mean, &t.sq, &t.rate, &t.top} {
		c.f32(f)
	}
	c.u32(&t.count)
	c.u16(&t.eps)
	c.u16(&t.calm)
	c.u16(&t.long)
	c.flag(&t.in)
}

func (t *crest) ok() bool {
	return t.count <= countCap && t.eps <= episodesMax && (t.count == 0 || t.mean > 0 && t.sq >= 0 && t.q > 0 && t.rate > 0)
}
