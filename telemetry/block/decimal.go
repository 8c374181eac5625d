package block

// parseDecimal reads text that is exactly how telemetry.AppendDecimal writes some mantissa
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
