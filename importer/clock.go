package importer

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// clock reads the cells of the time column.
type clock struct {
	unit   string // "" or "auto", s, ms, us, ns
	layout string // "" is RFC 3339 and its relatives
	base   time.Time
	step   time.Duration
	last   int // layout that fitted last
}

// layouts without a zone are UTC.
var layouts = [...]string{
	time.RFC3339Nano, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999",
	"2006-01-02T15:04Z07:00", "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02",
	"2006-01-02 15:04:05 MST", "2006-01-02 15:04:05 -0700", "2006-01-02T15:04:05-0700",
	"2006/01/02 15:04:05", "2006/01/02 15:04", "2006/01/02", "2006/1/2 15:04:05", "2006/1/2 15:04",
	"02.01.2006 15:04:05", "02.01.2006 15:04", // a point is the day first, a slash the month first
	"1/2/2006 15:04:05", "1/2/2006 15:04", "1/2/2006",
}

var (
	errTimeEmpty = errors.New("time is empty")
	errTimeRange = errors.New("time is not within the years 1970 to 2262")
)

// timeMax is the end of what nanoseconds since 1970 can say, in microseconds.
const timeMax = math.MaxInt64 / 1000

// micros reads a cell as microseconds since the epoch.
func (c *clock) micros(cell string) (int64, error) {
	if cell == "" {
		return 0, errTimeEmpty
	}
	us, err := c.read(cell)
	if err != nil {
		return 0, err
	}
	if us < 0 || us > timeMax {
		return 0, errTimeRange
	}
	return us, nil
}

func (c *clock) read(cell string) (int64, error) {
	if c.step > 0 {
		return c.count(cell)
	}
	if c.layout != "" {
		t, err := time.Parse(c.layout, cell)
		if err != nil {
			return 0, fmt.Errorf("time %q does not have the form %q", cell, c.layout)
		}
		return microsOf(t)
	}
	if strings.IndexByte("0123456789+-.", cell[0]) >= 0 && !strings.ContainsAny(cell[1:], ":-TZ ") {
		return epoch(cell, c.unit)
	}
	for i := range layouts {
		at := (c.last + i) % len(layouts)
		if t, err := time.Parse(layouts[at], cell); err == nil {
			c.last = at
			return microsOf(t)
		}
	}
	return 0, fmt.Errorf("time %q is neither RFC 3339 nor a number: describe it with --time-layout", cell)
}

// microsOf refuses what UnixMicro would wrap.
func microsOf(t time.Time) (int64, error) {
	if y := t.Year(); y < 1969 || y > 2263 {
		return 0, errTimeRange
	}
	return t.UnixMicro(), nil
}

// count is base + cell * step.
func (c *clock) count(cell string) (int64, error) {
	n, err := strconv.ParseFloat(cell, 64)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
		return 0, fmt.Errorf("counter %q is not a number", cell)
	}
	if math.Abs(n)*float64(c.step) > math.MaxInt64/2 {
		return 0, errTimeRange
	}
	if n == math.Trunc(n) {
		return microsOf(c.base.Add(time.Duration(n) * c.step))
	}
	return microsOf(c.base.Add(time.Duration(n * float64(c.step))))
}

// epoch reads a decimal number of units since 1970 without going through a
// float, whose 53 bits do not hold microseconds and a fraction.
func epoch(cell, unit string) (int64, error) {
	whole, fraction, _ := strings.Cut(cell, ".")
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || strings.ContainsAny(fraction, "eE") {
		f, err := strconv.ParseFloat(cell, 64)
		if err != nil || math.Abs(f) > math.MaxInt64/2 {
			return 0, fmt.Errorf("time %q is neither RFC 3339 nor a number: describe it with --time-layout", cell)
		}
		n, fraction = int64(f), ""
	}
	digits := 0 // between the unit and the microsecond
	switch unitOf(n, unit) {
	case "s":
		digits = 6
	case "ms":
		digits = 3
	case "ns":
		return n / 1000, nil
	}
	scale := int64(math.Pow10(digits))
	if n > timeMax/scale || n < 0 {
		return 0, errTimeRange
	}
	us, err := decimals(fraction, digits)
	if err != nil {
		return 0, fmt.Errorf("time %q is not a number", cell)
	}
	return n*scale + us, nil
}

// unitOf guesses the unit of a number from its size.
func unitOf(n int64, unit string) string {
	if unit != "" && unit != "auto" {
		return unit
	}
	switch {
	case n < 1e11:
		return "s"
	case n < 1e14:
		return "ms"
	case n < 1e17:
		return "us"
	}
	return "ns"
}

// decimals reads the first n digits behind the point.
func decimals(fraction string, n int) (int64, error) {
	for _, r := range fraction {
		if r < '0' || r > '9' {
			return 0, errors.New("not a digit")
		}
	}
	fraction = (fraction + "000000")[:n]
	if n == 0 {
		return 0, nil
	}
	return strconv.ParseInt(fraction, 10, 64)
}
