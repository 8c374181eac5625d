package telemetry

import (
	"math"
	"strconv"
	"unsafe"
)

const (
	mantissaMax = 1 << 53 // integers up to here are float64s too, see Value.Float64
	scaleMax    = 18      // the largest power of ten in an int64
)

// parseNumber turns a JSON number into a value without loss. Integers and
// decimals without exponent whose digits make up at most 2^53, with at most 18
// decimals, keep their digits (21.50 keeps both decimals); all other numbers,
// and -0, become the float64 that strconv.ParseFloat gives. It reports false for
// a number outside the range of float64. text must be valid by the grammar.
func parseNumber(text []byte) (Value, bool) {
	var mantissa uint64
	scale, point := 0, false
	for i, c := range text {
		switch {
		case c == '-' && i == 0:
		case c == '.' && !point:
			point = true
		case c-'0' <= 9:
			mantissa = mantissa*10 + uint64(c-'0')
			if point {
				scale++
			}
			if mantissa > mantissaMax || scale > scaleMax {
				return parseFloat(text)
			}
		default:
			return parseFloat(text)
		}
	}
	if text[0] == '-' && mantissa == 0 {
		return FloatValue(math.Copysign(0, -1)), true
	}
	v := decimalValue(int64(mantissa), scale)
	if text[0] == '-' {
		v.Mantissa = -v.Mantissa
	}
	return v, true
}

func decimalValue(mantissa int64, scale int) Value {
	if scale == 0 {
		return Value{Kind: KindInt64, Mantissa: mantissa}
	}
	return Value{Kind: KindDecimal, Mantissa: mantissa, Scale: uint8(scale)}
}

func parseFloat(text []byte) (Value, bool) {
	// ParseFloat keeps no reference to its argument unless it returns an error,
	// which goes no further.
	f, err := strconv.ParseFloat(unsafe.String(unsafe.SliceData(text), len(text)), 64)
	if err != nil || math.IsInf(f, 0) {
		return Value{}, false
	}
	return FloatValue(f), true
}

// AppendDecimal appends mantissa / 10^scale with exactly scale decimals.
func AppendDecimal(dst []byte, mantissa int64, scale uint8) []byte {
	if scale == 0 {
		return strconv.AppendInt(dst, mantissa, 10)
	}
	magnitude := uint64(mantissa)
	if mantissa < 0 {
		dst = append(dst, '-')
		magnitude = -magnitude
	}
	var digits [24]byte
	d := strconv.AppendUint(digits[:0], magnitude, 10)
	for len(d) <= int(scale) {
		d = append(d, 0)
		copy(d[1:], d)
		d[0] = '0'
	}
	whole := len(d) - int(scale)
	dst = append(dst, d[:whole]...)
	dst = append(dst, '.')
	return append(dst, d[whole:]...)
}

// AppendJSON appends the value as its device wrote it: a decimal with all of its
// digits, null for what JSON has no number for.
func (v Value) AppendJSON(dst []byte) []byte {
	switch v.Kind {
	case KindBool:
		return strconv.AppendBool(dst, v.Mantissa != 0)
	case KindInt64, KindDecimal:
		return AppendDecimal(dst, v.Mantissa, v.Scale)
	case KindFloat64:
		if f := v.Float64(); !math.IsNaN(f) && !math.IsInf(f, 0) {
			return strconv.AppendFloat(dst, f, 'g', -1, 64)
		}
	}
	return append(dst, "null"...)
}
