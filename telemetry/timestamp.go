package telemetry

// timeEnd is 2263-01-01T00:00:00Z in microseconds: times must lie in
// [0, timeEnd), the years that int64 nanoseconds reach.
const timeEnd = 9246182400 * 1_000_000

// parseTime reads RFC 3339 ("2026-01-23T15:24:46.123456Z") into microseconds.
// Wider than the RFC: a space may stand for the T, and without a zone the time
// is UTC. Fractions have 1 to 9 digits and are truncated, not rounded; second
// 60 is the first of the next minute.
func parseTime(b []byte) (int64, bool) {
	if len(b) < len("2006-01-02T15:04:05") {
		return 0, false
	}
	minute, ok := parseMinute(b)
	if !ok {
		return 0, false
	}
	return parseSeconds(minute, b[minuteBytes:])
}

const minuteBytes = len("2006-01-02T15:04:")

// parseMinute reads the date, hour and minute at the beginning of b, up to and
// with the second colon, and returns microseconds of the minute's beginning.
func parseMinute(b []byte) (int64, bool) {
	_ = b[minuteBytes-1]
	if b[4] != '-' || b[7] != '-' || b[13] != ':' || b[16] != ':' || b[10] != 'T' && b[10] != ' ' && b[10] != 't' {
		return 0, false
	}
	century, ok0 := digits2(b, 0)
	year, ok1 := digits2(b, 2)
	month, ok2 := digits2(b, 5)
	day, ok3 := digits2(b, 8)
	hour, ok4 := digits2(b, 11)
	minute, ok5 := digits2(b, 14)
	if !(ok0 && ok1 && ok2 && ok3 && ok4 && ok5) || hour > 23 || minute > 59 || month < 1 || month > 12 {
		return 0, false
	}
	year += century * 100
	if day < 1 || day > daysIn(month, year) {
		return 0, false
	}
	return (daysTo(year, month, day)*24*60 + hour*60 + minute) * 60_000_000, true
}

// parseSeconds reads what follows the minute: seconds, fraction, zone.
func parseSeconds(minute int64, b []byte) (int64, bool) {
	seconds, ok := digits2(b, 0)
	if !ok || seconds > 60 {
		return 0, false
	}
	micros, i := int64(0), 2
	if i < len(b) && b[i] == '.' {
		unit, from := int64(100_000), 3
		for i = from; i < len(b) && b[i]-'0' <= 9; i++ {
			micros += int64(b[i]-'0') * unit
			unit /= 10 // 0 behind the sixth digit: truncated
		}
		if i == from || i-from > 9 {
			return 0, false
		}
	}
	offset, ok := parseZone(b[i:])
	t := minute + seconds*1_000_000 + micros - offset*60_000_000
	return t, ok && t >= 0 && t < timeEnd
}

// parseZone returns the minutes that local time is ahead of UTC.
func parseZone(b []byte) (int64, bool) {
	switch {
	case len(b) == 0:
		return 0, true
	case len(b) == 1:
		return 0, b[0] == 'Z' || b[0] == 'z'
	case len(b) != len("+01:00") || b[3] != ':' || b[0] != '+' && b[0] != '-':
		return 0, false
	}
	hours, ok1 := digits2(b, 1)
	minutes, ok2 := digits2(b, 4)
	if !ok1 || !ok2 || hours > 23 || minutes > 59 {
		return 0, false
	}
	if b[0] == '-' {
		return -(hours*60 + minutes), true
	}
	return hours*60 + minutes, true
}

func digits2(b []byte, i int) (int64, bool) {
	if len(b) < i+2 {
		return 0, false
	}
	tens, ones := b[i]-'0', b[i+1]-'0'
	return int64(tens)*10 + int64(ones), tens <= 9 && ones <= 9
}

func daysIn(month, year int64) int64 {
	switch {
	case month == 2 && year%4 == 0 && (year%100 != 0 || year%400 == 0):
		return 29
	case month == 2:
		return 28
	case month == 4 || month == 6 || month == 9 || month == 11:
		return 30
	}
	return 31
}

// daysTo counts the days from 1970-01-01 to a date of the Gregorian calendar,
// by days_from_civil of Howard Hinnant ("chrono-Compatible Low-Level Date
// Algorithms", 2013): years begin in March, so that leap days come last.
func daysTo(year, month, day int64) int64 {
	if month <= 2 {
		year--
		month += 12
	}
	return 365*year + year/4 - year/100 + year/400 + (153*(month-3)+2)/5 + day - 1 - 719468
}

// parseEpoch reads a number as time since the epoch: seconds below 1e11,
// milliseconds below 1e14, microseconds below 1e17, else nanoseconds; finer
// than microseconds is truncated. text must be valid by the JSON grammar. It
// works on the digits, because a float64 cannot hold microseconds exactly.
func parseEpoch(text []byte) (int64, bool) {
	var digits [20]byte    // the number is 0.digits * 10^point, without leading zeros
	n, point, i := 0, 0, 0 // digits beyond the 20th are only counted
	seen := false
	for ; i < len(text); i++ {
		c := text[i]
		if c == '.' {
			seen = true
			continue
		}
		if c-'0' > 9 {
			break
		}
		if n == 0 && c == '0' {
			if seen {
				point--
			}
			continue
		}
		if n < len(digits) {
			digits[n] = c - '0'
			n++
		}
		if !seen {
			point++
		}
	}
	exponent, ok := parseExponent(text[i:])
	if !ok {
		return 0, false
	}
	if n == 0 {
		return 0, true
	}
	point += exponent
	switch {
	case point <= 11:
		point += 6
	case point <= 14:
		point += 3
	case point <= 17:
	default:
		point -= 3
	}
	if point > 16 { // timeEnd has 16 digits
		return 0, false
	}
	t := int64(0)
	for i := range point {
		t *= 10
		if i < n {
			t += int64(digits[i])
		}
	}
	return t, t < timeEnd
}

// parseExponent reads "e+12"; "" is 0. It reports false for what is no exponent
// (a minus sign ended the mantissa) or is too large to be a time.
func parseExponent(b []byte) (int, bool) {
	if len(b) == 0 {
		return 0, true
	}
	if len(b) < 2 || b[0]|0x20 != 'e' {
		return 0, false
	}
	b = b[1:]
	negative := b[0] == '-'
	if negative || b[0] == '+' {
		b = b[1:]
	}
	e := 0
	for _, c := range b {
		if c-'0' > 9 {
			return 0, false
		}
		if e = e*10 + int(c-'0'); e > 1<<30 {
			e = 1 << 30 // decides every comparison and cannot overflow
		}
	}
	if negative {
		e = -e
	}
	return e, true
}
