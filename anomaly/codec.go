package anomaly

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// stateVersion is the first byte of a serialised State; FORMAT.md draws it.
const stateVersion = 4

// stateFirst is the oldest version that DecodeState still reads, so that a new
// detector starts warm: 1 lacks what walkSecond visits, 2 what walkThird does, 3
// what walkFourth does.
const stateFirst = 1

// ErrState marks bytes that are not a State that AppendState wrote.
var ErrState = errors.New("not a detector state")

// AppendState appends the serialised s to dst. Equal states give equal bytes.
func AppendState(dst []byte, s *State) []byte {
	e := encoder{dst: append(dst, stateVersion)}
	walk(&e, s)
	walkSecond(&e, s)
	walkThird(&e, s)
	walkFourth(&e, s)
	return e.dst
}

// DecodeState reads one State from the front of b and returns the rest. It
// refuses anything that a detector cannot have left behind: unknown versions,
// short input, numbers that are not finite, fields out of range.
func DecodeState(b []byte, s *State) (rest []byte, err error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: empty", ErrState)
	}
	if b[0] < stateFirst || b[0] > stateVersion {
		return nil, fmt.Errorf("%w: version %d, this build reads versions %d to %d", ErrState, b[0], stateFirst, stateVersion)
	}
	var got State
	d := decoder{src: b[1:]}
	walk(&d, &got)
	if b[0] > stateFirst {
		walkSecond(&d, &got)
	} else {
		got.noiseHigh, got.noiseLow = float32(got.noise), float32(got.noise)
	}
	if b[0] >= 3 {
		walkThird(&d, &got)
	}
	if b[0] == stateVersion {
		walkFourth(&d, &got)
	}
	if d.bad != "" {
		return nil, fmt.Errorf("%w: %s at byte %d", ErrState, d.bad, len(b)-len(d.src))
	}
	if err := got.check(); err != nil {
		return nil, err
	}
	*s = got
	return d.src, nil
}

// coder visits the fields of a State in the order of the format; the encoder
// and the decoder cannot disagree because they take the same walk.
type coder interface {
	i64(*int64)
	u32(*uint32)
	u16(*uint16)
	u8(*uint8)
	flag(*bool)
	f64(*float64)
	f32(*float32)
}

func walk[C coder](c C, s *State) {
	c.i64(&s.last)
	c.f64(&s.cadence)
	c.u32(&s.n)
	c.u16(&s.sensors)
	c.u16(&s.rising)
	c.u32(&s.run)
	for _, f := range []*float64{&s.level, &s.prev, &s.dprev, &s.cov, &s.vr, &s.bias, &s.noise,
		&s.plain, &s.seasonal, &s.hi, &s.lo, &s.binSum, &s.daySum} {
		c.f64(f)
	}
	c.u32(&s.binN)
	c.u32(&s.dayN)
	day, side := uint32(s.day), uint16(s.side)
	c.u32(&day)
	c.u16(&side)
	s.day, s.side = int32(day), int16(side)
	c.u8(&s.bin)
	for i := range s.profile {
		c.f32(&s.profile[i])
	}
	for i := range s.week {
		c.f32(&s.week[i])
	}
	for i := range s.seen {
		c.u8(&s.seen[i])
	}
	for i := range s.weekSeen {
		c.u8(&s.weekSeen[i])
	}
	c.f32(&s.memory)
	c.f32(&s.short)
	c.f32(&s.spread)
	c.f32(&s.long)
	for j := range features {
		c.f32(&s.q[j])
		c.f32(&s.ex[j])
	}
	walkTail(c, &s.tail)
	walkAlarm(c, &s.alarm)
}

func walkTail[C coder](c C, t *tail) {
	c.f64(&t.q)
	c.f32(&t.mean)
	c.f32(&t.sq)
	c.f32(&t.top)
	c.u32(&t.count)
	c.f32(&t.pi)
	c.f32(&t.step)
	c.u16(&t.calm)
	c.flag(&t.in)
}

func walkAlarm[C coder](c C, a *alarm) {
	for _, f := range []*float32{&a.target, &a.earn, &a.bar, &a.habit, &a.fade, &a.peak, &a.worst} {
		c.f32(f)
	}
	c.u16(&a.quiet)
	c.flag(&a.open)
	c.u8((*uint8)(&a.causeOf))
}

// walkThird visits what version 3 added.
func walkThird[C coder](c C, s *State) {
	c.f32(&s.grain)
	c.u8(&s.moves)
}

// walkFourth visits what version 4 added.
func walkFourth[C coder](c C, s *State) { c.f32(&s.lasting) }

// walkSecond visits what version 2 added.
func walkSecond[C coder](c C, s *State) {
	for _, f := range []*float32{&s.noiseHigh, &s.noiseLow, &s.load, &s.resid} {
		c.f32(f)
	}
	for j := range s.excused {
		c.u8(&s.excused[j])
	}
}

// check refuses values that would make Step divide by zero or index outside of
// its arrays; a State from AppendState always passes.
func (s *State) check() error {
	ok := s.bin < hours && s.n <= countCap && s.run <= countCap && s.tail.count <= tailCount && s.cadence >= 0 &&
		s.noise >= 0 && s.plain >= 0 && s.seasonal >= 0 && s.hi >= s.lo && s.spread >= 0 && s.target >= 0 && s.bar >= 0 &&
		s.causeOf <= causeLast && s.side >= -1000 && s.side <= 1000 && s.vr >= 0 && s.peak >= 0 && s.memory >= 0 && s.noiseHigh >= 0 && s.noiseLow >= 0 && s.resid >= 0 && s.grain >= 0 && s.moves <= grainAfter && s.lastingOK() && s.binN <= countCap && s.dayN <= countCap
	if s.n > 0 {
		for j := range s.ex {
			ok = ok && s.ex[j] > 0 && s.q[j] >= 0
		}
	}
	for _, k := range s.excused {
		ok = ok && k <= excuseMax
	}
	ok = ok && s.tail.ok()
	if !ok {
		return fmt.Errorf("%w: field out of range", ErrState)
	}
	return nil
}

func (s *alarm) lastingOK() bool { return s.lasting >= 0 && s.lasting <= 1 }

func (t *tail) ok() bool {
	return t.count <= tailCount && (t.count == 0 || t.mean > 0 && t.sq >= 0 && t.q > 0)
}

type encoder struct{ dst []byte }

func (e *encoder) i64(v *int64)  { e.dst = binary.LittleEndian.AppendUint64(e.dst, uint64(*v)) }
func (e *encoder) u32(v *uint32) { e.dst = binary.LittleEndian.AppendUint32(e.dst, *v) }
func (e *encoder) u16(v *uint16) { e.dst = binary.LittleEndian.AppendUint16(e.dst, *v) }
func (e *encoder) u8(v *uint8)   { e.dst = append(e.dst, *v) }
func (e *encoder) flag(v *bool) {
	b := byte(0)
	if *v {
		b = 1
	}
	e.dst = append(e.dst, b)
}
func (e *encoder) f64(v *float64) {
	e.dst = binary.LittleEndian.AppendUint64(e.dst, math.Float64bits(*v))
}
func (e *encoder) f32(v *float32) {
	e.dst = binary.LittleEndian.AppendUint32(e.dst, math.Float32bits(*v))
}

type decoder struct {
	src []byte
	bad string // the first problem
}

// take returns the next n bytes, or zeroes once anything was wrong.
func (d *decoder) take(n int) []byte {
	if d.bad == "" && len(d.src) < n {
		d.bad = "too short"
	}
	if d.bad != "" {
		var zero [8]byte
		return zero[:n]
	}
	b := d.src[:n]
	d.src = d.src[n:]
	return b
}

func (d *decoder) i64(v *int64)  { *v = int64(binary.LittleEndian.Uint64(d.take(8))) }
func (d *decoder) u32(v *uint32) { *v = binary.LittleEndian.Uint32(d.take(4)) }
func (d *decoder) u16(v *uint16) { *v = binary.LittleEndian.Uint16(d.take(2)) }
func (d *decoder) u8(v *uint8)   { *v = d.take(1)[0] }
func (d *decoder) flag(v *bool) {
	b := d.take(1)[0]
	if b > 1 && d.bad == "" {
		d.bad = "flag is neither 0 nor 1"
	}
	*v = b == 1
}
func (d *decoder) f64(v *float64) {
	*v = math.Float64frombits(binary.LittleEndian.Uint64(d.take(8)))
	if *v-*v != 0 && d.bad == "" {
		d.bad = "number is not finite"
	}
}
func (d *decoder) f32(v *float32) {
	*v = math.Float32frombits(binary.LittleEndian.Uint32(d.take(4)))
	if *v-*v != 0 && d.bad == "" {
		d.bad = "number is not finite"
	}
}
