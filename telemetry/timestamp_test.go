package telemetry

import (
	"fmt"
	"math/big"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestRFC3339IsReadAsTimeDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		instant := time.Unix(rapid.Int64Range(-1<<33, 1<<34).Draw(t, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanoseconds"))
		offset := rapid.IntRange(-14*60, 14*60).Draw(t, "offset")
		instant = instant.In(time.FixedZone("", offset*60))
		layout := rapid.SampledFrom([]string{"2006-01-02T15:04:05Z07:00", "2006-01-02 15:04:05.000Z07:00", "2006-01-02T15:04:05.000000Z07:00", "2006-01-02T15:04:05.999999999Z07:00", "2006-01-02T15:04:05.0000000-07:00"}).Draw(t, "layout")
		text := instant.Format(layout)
		written, err := time.Parse(layout, text)
		if err != nil {
			t.Fatal(err)
		}
		want := written.Unix()*1_000_000 + int64(written.Nanosecond()/1000)
		wantOK := want >= 0 && written.UTC().Year() <= 2262
		got, ok := parseTime([]byte(text))
		if ok != wantOK || ok && got != want {
			t.Fatalf("%s: got %d, %v, want %d, %v", text, got, ok, want, wantOK)
		}
	})
}

func TestTimestampsOfEveryForm(t *testing.T) {
	const day = int64(1_769_126_400_000_000) // 2026-01-23
	at := func(h, m, s, micros int64) int64 { return day + ((h*60+m)*60+s)*1_000_000 + micros }
	for text, want := range map[string]int64{
		`"2026-01-23T15:24:46.123456"`:      at(15, 24, 46, 123456),
		`"2026-01-23 15:24:46"`:             at(15, 24, 46, 0),
		`"2026-01-23t15:24:46z"`:            at(15, 24, 46, 0),
		`"2026-01-23T15:24:46.1234569Z"`:    at(15, 24, 46, 123456),
		`"2026-01-23T15:24:46.1+05:30"`:     at(9, 54, 46, 100000),
		`"2026-01-23T23:59:60Z"`:            at(24, 0, 0, 0),
		`"1970-01-01T00:00:00Z"`:            0,
		`"2262-12-31T23:59:59.999999999Z"`:  timeEnd - 1,
		`1769126400`:                        day,
		`1769126400.000001`:                 day + 1,
		`1769126400.0000019`:                day + 1,
		`1769126400001`:                     day + 1_000,
		`1769126400001.5`:                   day + 1_500,
		`1769126400000001`:                  day + 1,
		`1769126400000001999`:               day + 1,
		`1.7691264e9`:                       day,
		`17691264e2`:                        day,
		`0`:                                 0,
		`99999999999`:                       -1,                  // year 5138
		`100000000000`:                      100_000_000_000_000, // ms from here on
		`9246182399999`:                     9246182399999_000,
		`9246182400000`:                     -1,
		`-1`:                                -1,
		`1e300`:                             -1,
		`1e-300`:                            0,
		`"2026-01-23T15:24:46.1234567890Z"`: -1,
		`"2026-02-30T15:24:46Z"`:            -1,
		`"2263-01-01T00:00:00Z"`:            -1,
		`"1970-01-01T00:00:00+00:01"`:       -1,
		`"1769126400"`:                      -1,
		`true`:                              -1,
		`[]`:                                -1,
	} {
		m := parseOne(t, fmt.Sprintf(`{"timestamp":%s,"sensors":{"a":1}}`, text))
		switch {
		case want < 0 && m.Reason != string(badTime):
			t.Errorf("%s: got time %d and reason %q, want it quarantined", text, m.Time, m.Reason)
		case want >= 0 && (m.Reason != "" || m.Time != want || m.NoTime):
			t.Errorf("%s: got time %d, reason %q, want %d", text, m.Time, m.Reason, want)
		}
	}
	for _, text := range []string{`{"sensors":{"a":1}}`, `{"timestamp":null,"sensors":{"a":1}}`} {
		if m := parseOne(t, text); !m.NoTime || m.Time != m.Received || m.Reason != "" {
			t.Errorf("%s: got %+v, want the receive time", text, m)
		}
	}
}

func TestEpochNumbersAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`(0|[1-9][0-9]{0,19})(\.[0-9]{1,12})?([eE][-+]?[0-9]{1,2})?`).Draw(t, "number")
		n, ok := new(big.Rat).SetString(text)
		if !ok {
			t.Fatal(text)
		}
		micros := new(big.Rat).Set(n)
		limit := func(e int64) bool {
			return n.Cmp(new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(e), nil))) < 0
		}
		switch {
		case limit(11):
			micros.Mul(n, big.NewRat(1_000_000, 1))
		case limit(14):
			micros.Mul(n, big.NewRat(1_000, 1))
		case limit(17):
		default:
			micros.Quo(n, big.NewRat(1_000, 1))
		}
		want := new(big.Int).Quo(micros.Num(), micros.Denom())
		wantOK := want.Cmp(big.NewInt(timeEnd)) < 0
		got, ok := parseEpoch([]byte(text))
		if ok != wantOK || ok && got != want.Int64() {
			t.Fatalf("%s: got %d, %v, want %s, %v", text, got, ok, want, wantOK)
		}
	})
}
