package api

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/store"
)

func TestCursorReturnsToTheSamePlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		device := rapid.StringMatching(`[a-z0-9]{1,12}`).Draw(t, "device")
		p := store.Point{
			Time: rapid.Int64().Draw(t, "time"), Sensor: rapid.String().Draw(t, "sensor"),
			Value: math.Float64frombits(rapid.Uint64().Draw(t, "bits")),
		}
		c := encodeReadingCursor(&store.Query{Device: device}, &p)
		got, err := decodeReadingCursor(&store.Query{Device: device}, c)
		if err != nil || got.Compare(&p) != 0 {
			t.Fatalf("%+v became %+v, %v", p, got, err)
		}
		if _, err := decodeReadingCursor(&store.Query{Device: device + "x"}, c); err == nil {
			t.Fatalf("the cursor of %q is taken for %q", device, device+"x")
		}
		if _, err := decodePosition(c); err == nil {
			t.Fatal("a cursor of readings is taken for one of anomalies")
		}
		pos := Position{Time: p.Time, ID: p.Sensor}
		if got, err := decodePosition(encodePosition(pos)); err != nil || got != pos {
			t.Fatalf("%+v became %+v, %v", pos, got, err)
		}
		if got, err := decodeDeviceCursor(encodeDeviceCursor(device)); err != nil || got != device {
			t.Fatalf("%q became %q, %v", device, got, err)
		}
	})
}

func TestDamagedCursorIsRefused(t *testing.T) {
	c := encodeReadingCursor(&store.Query{Device: "d"}, &store.Point{Time: 5, Sensor: "s", Value: 1})
	for i := range c {
		for _, damaged := range []string{c[:i], c[:i] + "!" + c[i+1:], c[:i] + swap(c[i]) + c[i+1:]} {
			if p, err := decodeReadingCursor(&store.Query{Device: "d"}, damaged); err == nil {
				t.Errorf("%q (made from %q) is taken for %+v", damaged, c, p)
			}
		}
	}
}

func swap(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

// FuzzCursor looks for panics; what is accepted must come back the same.
func FuzzCursor(f *testing.F) {
	f.Add(encodeReadingCursor(&store.Query{Device: "d"}, &store.Point{Time: 5, Sensor: "s", Value: 1}))
	f.Add(encodePosition(Position{Time: -1, ID: "0-7-1"}))
	f.Add(encodeDeviceCursor("pump-7"))
	f.Add("AQE")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := decodeReadingCursor(&store.Query{Device: "d"}, s); err == nil {
			if again, err := decodeReadingCursor(&store.Query{Device: "d"}, encodeReadingCursor(&store.Query{Device: "d"}, p)); err != nil || again.Compare(p) != 0 {
				t.Fatalf("%q: %+v became %+v, %v", s, p, again, err)
			}
		}
		_, _ = decodePosition(s)
		_, _ = decodeDeviceCursor(s)
	})
}

func TestTimeKeepsMicrosecondsInBothDirections(t *testing.T) {
	for in, want := range map[string]string{
		`"2026-01-23T15:24:46.123456Z"`:       `"2026-01-23T15:24:46.123456Z"`,
		`"2026-01-23T15:24:46Z"`:              `"2026-01-23T15:24:46.000000Z"`,
		`"2026-01-23T16:24:46.1234569+01:00"`: `"2026-01-23T15:24:46.123456Z"`,
		`"2026-01-23T16:24:46 01:00"`:         `"2026-01-23T15:24:46.000000Z"`,
		`1769181886123`:                       `"2026-01-23T15:24:46.123000Z"`,
		`"-1"`:                                `"1969-12-31T23:59:59.999000Z"`,
	} {
		var v Time
		if err := json.Unmarshal([]byte(in), &v); err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if got, _ := json.Marshal(v); string(got) != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
	for _, in := range []string{"", "yesterday", "2026-01-23", "9223372036854775807", "2026-13-01T00:00:00Z"} {
		if v, err := ParseTime(in); err == nil {
			t.Errorf("%q is taken for %v", in, v)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		v := Time(rapid.Int64Range(0, 9214646400000000).Draw(t, "us")) // 1970 to 2262
		if got, err := ParseTime(v.String()); err != nil || got != v || len(v.String()) != len("2026-01-23T15:24:46.123456Z") {
			t.Fatalf("%d became %q and %d, %v", v, v, got, err)
		}
	})
}

func TestTimeIsSpelledAsTheStandardLibraryWould(t *testing.T) {
	check := func(us int64) {
		if got, want := Time(us).String(), time.UnixMicro(us).UTC().Format(timeLayout); got != want {
			t.Fatalf("%d: got %s, want %s", us, got, want)
		}
	}
	const day = 86_400_000_000
	for d := int64(-3); d < 157_100; d++ { // every day of 430 years, which is more than a cycle of leap years
		check(d*day + d)
	}
	for d := int64(157_100); d < 2_932_900; d += 89 { // beyond the year 10000
		check(d*day + day - 1)
	}
	for _, us := range []int64{math.MinInt64, -1, 0, 1, math.MaxInt64} {
		check(us)
	}
	rapid.Check(t, func(t *rapid.T) { check(rapid.Int64().Draw(t, "us")) })
}

// TestRowsEqualTheirStructs: what writeReadings appends by hand is what
// encoding/json makes of the wire types.
func TestRowsEqualTheirStructs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		points := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) store.Point {
			return store.Point{
				Time:   rapid.Int64Range(0, 9214646400000000).Draw(t, "time"),
				Sensor: rapid.String().Draw(t, "sensor"), Value: rapid.Float64().Draw(t, "value"),
				Score: rapid.Float32Range(0, 1).Draw(t, "score"),
			}
		}), 0, 5).Draw(t, "points")
		list := ReadingList{Readings: []Reading{}, Next: rapid.SampledFrom([]string{"", "abc"}).Draw(t, "next")}
		for i := range points {
			points[i].Quality = 0
			list.Readings = append(list.Readings, ReadingOf(&points[i]))
		}
		want, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		if err := writeReadings(&got, points, list.Next); err != nil || strings.TrimSuffix(got.String(), "\n") != string(want) {
			t.Fatalf("got  %s (%v)\nwant %s", got.String(), err, want)
		}
		var back ReadingList
		if err := json.Unmarshal([]byte(got.String()), &back); err != nil {
			t.Fatal(err)
		}
		for i := range points {
			if math.Float64bits(float64(back.Readings[i].Value)) != math.Float64bits(points[i].Value) || back.Readings[i].Score != points[i].Score {
				t.Fatalf("point %+v came back as %+v", points[i], back.Readings[i])
			}
		}
	})
}

func TestNumbersThatJSONLacksAreNull(t *testing.T) {
	for _, f := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		b, err := json.Marshal(Float(f))
		if err != nil || string(b) != "null" {
			t.Errorf("%v became %s, %v", f, b, err)
		}
		var out strings.Builder
		_ = writeCSV(&out, []store.Point{{Sensor: "s", Value: f}})
		if want := csvHeader + "1970-01-01T00:00:00.000000Z,s,,0,0\n"; out.String() != want {
			t.Errorf("CSV of %v: got %q, want %q", f, out.String(), want)
		}
	}
}
