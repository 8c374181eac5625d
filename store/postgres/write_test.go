package postgres

import (
	"context"
	"math"
	"slices"
	"testing"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestWriteAndReadBack(t *testing.T) {
	url := server(t).Database(t)
	db := open(t, config(url))
	first, second := fleet(5, 0, 40, 20, 30, t0), fleet(5, 40, 90, 20, 30, t0+30_000_000)
	write(t, db, first)
	write(t, db, second)
	got, w := read(t, db, 5, all("sensor-00007"))
	if want := points("sensor-00007", first, second); w != 90 || !samePoints(got, want) {
		t.Fatalf("watermark %d, %d points, want 90 and %d", w, len(got), len(want))
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != int64(len(first.Rows)+len(second.Rows)) {
		t.Fatalf("%d rows stored", n)
	}
	backwards := all("sensor-00007")
	backwards.Desc, backwards.Limit = true, 11
	var down []store.Point
	for {
		page, _ := read(t, db, 5, backwards)
		down = append(down, page...)
		if len(page) < backwards.Limit {
			break
		}
		backwards.After = &page[len(page)-1]
	}
	if slices.Reverse(down); !samePoints(down, got) {
		t.Fatalf("the latest first: %d points, want %d", len(down), len(got))
	}
	if w, err := live(context.Background(), db, 5); err != nil || w != 90 {
		t.Fatalf("watermark %d, %v", w, err)
	}
	if w, err := live(context.Background(), db, 6); err != nil || w != 0 {
		t.Fatalf("watermark of a shard without rows: %d, %v", w, err)
	}
	if err := db.Health(); err != nil {
		t.Fatalf("health: %v", err)
	}
}

// TestRepeatedWriteStoresNothing: the answer to a write may be lost, and then
// the leader or its successor writes the same range again.
func TestRepeatedWriteStoresNothing(t *testing.T) {
	url := server(t).Database(t)
	db := open(t, config(url))
	b := fleet(1, 0, 10, 3, 5, t0)
	write(t, db, b)
	for range 3 {
		if w := mismatch(t, db.Write(context.Background(), b)); w.Have != 10 || w.Want != 0 || w.HaveTerm != 3 {
			t.Fatalf("got %+v", w)
		}
	}
	ahead := fleet(1, 12, 20, 3, 5, t0)
	if w := mismatch(t, db.Write(context.Background(), ahead)); w.Have != 10 || w.Want != 12 {
		t.Fatalf("a gap: got %+v", w)
	}
	never := fleet(2, 12, 20, 3, 5, t0)
	if w := mismatch(t, db.Write(context.Background(), never)); w.Have != 0 {
		t.Fatalf("a shard without watermark: got %+v", w)
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != int64(len(b.Rows)) {
		t.Fatalf("%d rows stored, want %d", n, len(b.Rows))
	}
}

func TestLowerTermIsRefused(t *testing.T) {
	db := open(t, config(server(t).Database(t)))
	b := fleet(1, 0, 10, 1, 1, t0)
	b.Term = 7
	write(t, db, b)
	b = fleet(1, 10, 20, 1, 1, t0)
	b.Term = 6
	if w := mismatch(t, db.Write(context.Background(), b)); w.Have != 10 || w.HaveTerm != 7 || w.WantTerm != 6 {
		t.Fatalf("got %+v", w)
	}
	b.Term = 8
	write(t, db, b)
}

// TestValuesRoundTrip writes every kind of double, time and text there is.
func TestValuesRoundTrip(t *testing.T) {
	url := server(t).Database(t)
	db := open(t, config(url))
	values := []float64{0, math.Copysign(0, -1), 1, -1, math.MaxFloat64, -math.MaxFloat64, math.SmallestNonzeroFloat64, -math.SmallestNonzeroFloat64,
		0x1p-1022, 0.1, 1.0 / 3, math.Inf(1), math.Inf(-1), 1e300, -1e-300, math.Pi}
	times := []int64{0, 1, 999_999, t0, 946_684_799_999_999, 946_684_800_000_000, 9_246_182_399_999_999 /* end of 2262 */, -1}
	b := &telemetry.Batch{Shard: 1, To: 1, Term: 1, Devices: []string{"a:b@c=d~e-f._"}, Sensors: []string{"A", "a", "ä", "z", "Ω\u2028\"'\\,\t", "🌡"}}
	slices.Sort(b.Sensors)
	for s := range b.Sensors {
		for _, at := range times {
			for i, v := range values {
				b.Rows = append(b.Rows, telemetry.Row{Time: at, Received: at + int64(i), Value: v, Sensor: uint32(s), Score: float32(i) / 16, Quality: telemetry.Quality(i)})
			}
		}
	}
	write(t, db, b)
	want := points(b.Devices[0], b)
	got, _ := read(t, db, 1, all(b.Devices[0]))
	if !samePoints(got, want) {
		for i := range min(len(got), len(want)) {
			if !samePoints(got[i:i+1], want[i:i+1]) {
				t.Fatalf("point %d is %+v, want %+v", i, got[i], want[i])
			}
		}
		t.Fatalf("%d points, want %d", len(got), len(want))
	}
	if text := one[string](t, url, "select to_char(min(time) filter (where time > '2200-01-01') at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') from telemetry"); text != "2262-12-31 23:59:59.999999" {
		t.Fatalf("SQL says %s", text)
	}
	pages(t, db, all(b.Devices[0]), want, 7)
	one := store.Query{Device: b.Devices[0], Sensor: "ä", From: 0, To: t0, Limit: 1000}
	want = slices.DeleteFunc(want, func(p store.Point) bool { return !one.Matches(&p) })
	pages(t, db, one, want, 5)
}

// pages reads with cursors and compares.
func pages(t *testing.T, db *DB, q store.Query, want []store.Point, limit int) {
	t.Helper()
	var got []store.Point
	for q.Limit = limit; ; {
		page, _ := read(t, db, 1, q)
		if got = append(got, page...); len(page) < limit {
			break
		}
		q.After = &page[len(page)-1]
	}
	if len(want) == 0 || !samePoints(got, want) {
		t.Fatalf("pages hold %d points, want %d", len(got), len(want))
	}
}

func TestEmptyBatchMovesTheWatermark(t *testing.T) {
	url := server(t).Database(t)
	db := open(t, config(url))
	write(t, db, &telemetry.Batch{Shard: 3, From: 0, To: 5, Term: 1, Updates: []telemetry.DeviceUpdate{{Device: "d", FirstSeen: 5, LastSeen: 9}}})
	write(t, db, &telemetry.Batch{Shard: 3, From: 5, To: 6, Term: 1})
	if w, err := live(context.Background(), db, 3); err != nil || w != 6 {
		t.Fatalf("watermark %d, %v", w, err)
	}
	if n := one[int64](t, url, "select count(*) from devices"); n != 1 {
		t.Fatalf("%d devices", n)
	}
}

func TestDevicesAndAnomaliesKeepTheirLastState(t *testing.T) {
	url := server(t).Database(t)
	db := open(t, config(url))
	b := &telemetry.Batch{Shard: 3, From: 0, To: 5, Term: 1,
		Updates: []telemetry.DeviceUpdate{{Device: "d", FirstSeen: t0, LastSeen: t0 + 10, Attributes: []telemetry.Attribute{{Key: "a", Value: "<\"1\">"}, {Key: "b", Value: "ü"}}}},
		Anomalies: []telemetry.Anomaly{{ID: "3-4-0", Device: "d", Sensor: "s", Opened: t0, Severity: 50, Cause: "spike", Value: 9, Expected: 1, Low: 0, High: 2, Shares: "s 0.71, t 0.29"},
			{ID: "3-4-1", Device: "d", Sensor: "t", Opened: t0, Severity: 20, Cause: "level", Value: math.MaxFloat64, Expected: math.Inf(-1), Low: -1, High: 1}}}
	write(t, db, b)
	b.From, b.To = 5, 9
	b.Updates[0].FirstSeen, b.Updates[0].LastSeen, b.Updates[0].Attributes = t0+5, t0+5, []telemetry.Attribute{{Key: "a", Value: "2"}}
	b.Anomalies = b.Anomalies[:1]
	b.Anomalies[0].Closed, b.Anomalies[0].Severity = t0+60_000_000, 70
	b.Anomalies[0].Wave, b.Anomalies[0].Normal = "3-8-w1", true
	write(t, db, b)
	if got := ask[string](t, url, `select format('%s %s %s', attributes->>'a', attributes ? 'b', extract(epoch from last_seen - first_seen) * 1000000) from devices`); len(got) != 1 || got[0] != "2 f 10.000000" {
		t.Fatalf("devices: %q", got)
	}
	got := ask[string](t, url, `select format('%s %s %s %s (%s) %s %s', id, severity, extract(epoch from closed - opened)::int, cause, shares, normal, coalesce(wave, 'none')) from anomalies order by id`)
	if want := []string{"3-4-0 70 60 spike (s 0.71, t 0.29) t 3-8-w1", "3-4-1 20  level () f none"}; !slices.Equal(got, want) {
		t.Fatalf("anomalies: %q, want %q", got, want)
	}
}
