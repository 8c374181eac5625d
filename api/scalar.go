package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Time is microseconds since the Unix epoch; in JSON it is RFC 3339 in UTC with
// exactly six digits: "2026-01-23T15:24:46.123456Z".
type Time int64

const timeLayout = "2006-01-02T15:04:05.000000Z"

// AppendText appends the JSON spelling without quotes.
func (t Time) AppendText(b []byte) ([]byte, error) {
	// Written by hand for the years that occur (1970 to 9999): it is the dearest
	// part of a row otherwise.
	const dayUs = 86_400_000_000
	us := int64(t)
	if us < 0 || us >= 2_932_897*dayUs {
		return time.UnixMicro(us).UTC().AppendFormat(b, timeLayout), nil
	}
	year, month, day := civil(us / dayUs)
	us %= dayUs
	b = append2(append2(b, year/100), year%100)
	b = append2(append(b, '-'), month)
	b = append2(append(b, '-'), day)
	b = append2(append(b, 'T'), us/3_600_000_000)
	b = append2(append(b, ':'), us/60_000_000%60)
	b = append2(append(b, ':'), us/1_000_000%60)
	b = append2(append(b, '.'), us/10_000%100)
	b = append2(append2(b, us/100%100), us%100)
	return append(b, 'Z'), nil
}

// append2 appends two digits.
func append2(b []byte, n int64) []byte {
	return append(b, byte('0'+n/10), byte('0'+n%10))
}

// civil turns days since 1970-01-01 into a date of the Gregorian calendar, after
// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (civil_from_days);
// days >= 0.
func civil(days int64) (year, month, day int64) {
	days += 719_468 // since 0000-03-01, so that the leap day ends a year
	era := days / 146_097
	ofEra := days - era*146_097
	ofYear := (ofEra - ofEra/1460 + ofEra/36_524 - ofEra/146_096) / 365
	ofDay := ofEra - (365*ofYear + ofYear/4 - ofYear/100)
	m := (5*ofDay + 2) / 153 // from March
	year, month, day = ofYear+era*400, m+3, ofDay-(153*m+2)/5+1
	if month > 12 {
		year, month = year+1, month-12
	}
	return year, month, day
}

func (t Time) String() string {
	b, _ := t.AppendText(nil)
	return string(b)
}

// Time is the instant as the standard library knows it, in UTC.
func (t Time) Time() time.Time { return time.UnixMicro(int64(t)).UTC() }

// MarshalJSON writes the fixed form.
func (t Time) MarshalJSON() ([]byte, error) {
	b, _ := t.AppendText([]byte{'"'})
	return append(b, '"'), nil
}

// UnmarshalJSON reads what ParseTime reads, quoted or as a bare number of
// milliseconds; null leaves t alone.
func (t *Time) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		return nil
	}
	s := string(b)
	if len(b) > 0 && b[0] == '"' {
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
	}
	v, err := ParseTime(s)
	if err == nil {
		*t = v
	}
	return err
}

// Schema describes Time in the OpenAPI document.
func (Time) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date-time", Description: "RFC 3339, UTC, microseconds", Examples: []any{"2026-01-23T15:24:46.123456Z"}}
}

// ParseTime reads RFC 3339 (a fraction beyond microseconds is cut off) or whole
// milliseconds since the epoch. A space where the zone's + was, which is what an
// unescaped + in a URL becomes, is understood.
func ParseTime(s string) (Time, error) {
	if ms, err := strconv.ParseInt(s, 10, 64); err == nil {
		if ms > math.MaxInt64/1000 || ms < math.MinInt64/1000 {
			return 0, fmt.Errorf("%q is beyond the range of milliseconds since the epoch: divide what is microseconds or nanoseconds", s)
		}
		return Time(ms * 1000), nil
	}
	text := s
	if n := len(text) - len("00:00") - 1; n > 0 && text[n] == ' ' {
		text = text[:n] + "+" + text[n+1:]
	}
	v, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return 0, fmt.Errorf("%q is neither RFC 3339 (2026-01-23T15:24:46Z) nor milliseconds since the epoch: write it as one of these", s)
	}
	return Time(v.Unix()*1_000_000 + int64(v.Nanosecond())/1000), nil
}

// Float is a float64 in the shortest form that reads back to the same bits;
// what JSON cannot say (NaN, infinities) is null.
type Float float64

// MarshalJSON writes the shortest form.
func (f Float) MarshalJSON() ([]byte, error) {
	return appendFloat(nil, float64(f), 64), nil
}

// UnmarshalJSON reads a number, or null as NaN.
func (f *Float) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		*f = Float(math.NaN())
		return nil
	}
	v, err := strconv.ParseFloat(string(b), 64)
	if err == nil {
		*f = Float(v)
	}
	return err
}

// Schema describes Float in the OpenAPI document.
func (Float) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeNumber, Format: "double", Nullable: true}
}

// appendFloat writes v as encoding/json does: the shortest digits that read back
// to the same bits, an exponent only below 1e-6 and from 1e21 on.
func appendFloat(b []byte, v float64, bits int) []byte {
	abs := math.Abs(v)
	if !(abs <= math.MaxFloat64) {
		return append(b, "null"...)
	}
	if abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		b = strconv.AppendFloat(b, v, 'e', -1, bits)
		if n := len(b); b[n-4] == 'e' && b[n-3] == '-' && b[n-2] == '0' { // e-07 is e-7 to everybody else
			b[n-2] = b[n-1]
			b = b[:n-1]
		}
		return b
	}
	return strconv.AppendFloat(b, v, 'f', -1, bits)
}
