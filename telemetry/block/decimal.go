package block

import "strconv"

// parseDecimal reads text that is exactly how formatDecimal writes some mantissa
// and scale: no leading zeros or plus, no exponent, no minus zero, at most 15
// digits.
func parseDecimal(text string) (mantissa int64, scale uint8, ok bool) {
	digits := text
	if len(digits) > 0 && digits[0] == '-' {
		digits = digits[1:]
	}
	if len(digits) == 0 || len(digits) > 16 || digits[0]-'0' > 9 || digits[0] == '0' && len(digits) > 1 && digits[1] != '.' {
		return 0, 0, false
	}
	point := -1
	for i := 0; i < len(digits); i++ {
		switch c := digits[i]; {
		case c-'0' <= 9:
			mantissa = mantissa*10 + int64(c-'0')
		case c == '.' && point < 0:
			point = i
		default:
			return 0, 0, false
		}
	}
	if point >= 0 {
		scale = uint8(len(digits) - point - 1)
		if scale == 0 {
			return 0, 0, false
		}
	} else if len(digits) > 15 {
		return 0, 0, false
	}
	if len(digits) < len(text) {
		if mantissa == 0 {
			return 0, 0, false
		}
		mantissa = -mantissa
	}
	return mantissa, scale, true
}

// formatDecimal appends mantissa / 10^scale with exactly scale decimals.
func formatDecimal(dst []byte, mantissa int64, scale uint8) []byte {
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
