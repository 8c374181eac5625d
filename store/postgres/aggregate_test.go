package postgres

import (
	"context"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// bucketsOf computes what Aggregate should answer.
func bucketsOf(q store.Aggregate, batches ...*telemetry.Batch) []store.Bucket {
	type key struct {
		start  int64
		sensor string
	}
	m := map[key]*store.Bucket{}
	for _, p := range points(q.Device, batches...) {
		if q.Matches(p.Time, p.Sensor) {
			k := key{q.BucketOf(p.Time), p.Sensor}
			if m[k] == nil {
				m[k] = &store.Bucket{Start: k.start, Sensor: k.sensor}
			}
			m[k].Add(p.Time, p.Value)
		}
	}
	var out []store.Bucket
	for _, b := range m {
		out = append(out, *b)
	}
	slices.SortFunc(out, func(a, b store.Bucket) int { return a.Compare(&b) })
	return out[:min(q.Limit, len(out))]
}

func sameBuckets(a, b []store.Bucket) bool {
	return slices.EqualFunc(a, b, func(x, y store.Bucket) bool {
		near := math.Abs(x.Sum-y.Sum) <= 1e-9*(1+math.Abs(y.Sum))
		x.Sum = y.Sum
		return near && x == y
	})
}

func aggregate(t *testing.T, db *DB, q store.Aggregate, batches ...*telemetry.Batch) []store.Bucket {
	t.Helper()
	got, at, err := db.Aggregate(context.Background(), 5, q)
	if err != nil {
		t.Fatalf("aggregate: %v", err)
	}
	if at.To[telemetry.LaneLive] != batches[len(batches)-1].To {
		t.Errorf("watermarks %v", at)
	}
	if want := bucketsOf(q, batches...); !sameBuckets(got, want) {
		t.Fatalf("%+v\ngot  %+v\nwant %+v", q, got[:min(3, len(got))], want[:min(3, len(want))])
	}
	return got
}

const (
	minute = 60_000_000
	hour   = 60 * minute
)

// askAggregates asks in all the ways that take other paths: views and edges,
// steps that no view has, one sensor, pages, open ends.
func askAggregates(t *testing.T, db *DB, batches ...*telemetry.Batch) {
	t.Helper()
	q := store.Aggregate{Device: "sensor-00007", From: t0 + 7*minute, To: t0 + 3*hour, StepMicros: minute, Limit: 1000}
	for _, step := range []int64{7_500_000, minute, 90_000_000, 5 * minute, hour, 24 * hour} {
		q.StepMicros = step
		aggregate(t, db, q, batches...)
	}
	q.Sensor, q.From, q.To, q.StepMicros = "humidity", math.MinInt64, math.MaxInt64, hour
	aggregate(t, db, q, batches...)
	q.Sensor, q.StepMicros, q.Limit = "", 10*minute, 7
	for pages := 0; ; pages++ {
		got := aggregate(t, db, q, batches...)
		if len(got) == 0 {
			if pages < 2 {
				t.Errorf("%d pages", pages)
			}
			return
		}
		q.After = &got[len(got)-1]
	}
}

func TestAggregateOfPlainTable(t *testing.T) {
	url := server(t).Database(t)
	db := open(t, config(url))
	a, b := hourly(5, 0, 40, t0), hourly(5, 40, 90, t0+2*hour+7_000_000)
	write(t, db, a)
	write(t, db, b)
	askAggregates(t, db, a, b)
	if n := one[int64](t, url, "select sum(count)::bigint from telemetry_1h where device_id = 'sensor-00007' and avg between min and max"); n != int64(len(points("sensor-00007", a, b))) {
		t.Errorf("the hourly view counts %d readings", n)
	}
	huge := &telemetry.Batch{Shard: 5, From: 90, To: 91, Term: 3, Devices: []string{"huge"}, Sensors: []string{"s"}, Rows: []telemetry.Row{
		{Time: t0, Value: math.MaxFloat64}, {Time: t0 + 1, Value: math.MaxFloat64}, {Time: t0 + 2, Value: 3}}}
	write(t, db, huge)
	got, _, err := db.Aggregate(context.Background(), 5, store.Aggregate{Device: "huge", From: 0, To: t0 + hour, StepMicros: hour, Limit: 1})
	if err != nil || len(got) != 1 || got[0].Count != 3 || got[0].Max != math.MaxFloat64 || got[0].Sum != 3 {
		t.Errorf("values that would overflow the sum: %+v, %v", got, err)
	}
}

// hourly is 3 devices with a reading per sensor every 30 s for a bit over two
// hours.
func hourly(shard telemetry.ShardID, from, to uint64, begin int64) *telemetry.Batch {
	b := fleet(shard, from, to, 9, 250, begin)
	for i := range b.Rows {
		b.Rows[i].Time = begin + (b.Rows[i].Time-begin)*30
	}
	return b
}

func TestRetentionDropsPartitions(t *testing.T) {
	url := server(t).Database(t)
	cfg := config(url)
	cfg.Retention = 30 * day
	db := open(t, cfg)
	now := time.Now()
	old, young := fleet(5, 0, 40, 3, 30, now.Add(-60*day).UnixMicro()), fleet(5, 40, 90, 3, 30, now.Add(-10*day).UnixMicro())
	write(t, db, old)
	write(t, db, young)
	if err := db.lookAfterPartitions(context.Background(), now); err != nil {
		t.Fatal(err)
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != int64(len(young.Rows)) {
		t.Errorf("%d rows left, want the %d young ones", n, len(young.Rows))
	}
	write(t, db, fleet(5, 90, 95, 3, 30, now.Add(-60*day).UnixMicro())) // the partition is made again
	if n := one[int64](t, url, "select count(*) from telemetry_default"); n != 0 {
		t.Errorf("%d rows in the default partition", n)
	}
	next := time.UnixMicro(now.Add(8 * day).UnixMicro()).UTC()
	if n := one[int64](t, url, "select count(*) from pg_class where relname like 'telemetry_2%' and relname > 'telemetry_' || to_char($1::timestamptz - interval '14 days', 'YYYYMMDD')", next); n < 2 {
		t.Errorf("%d partitions for now and next week", n)
	}
}

func TestHistoryOfAttributes(t *testing.T) {
	url := server(t).Database(t)
	db := open(t, config(url))
	set := func(from uint64, at int64, attributes ...telemetry.Attribute) {
		write(t, db, &telemetry.Batch{Shard: 1, From: from, To: from + 1, Term: 1, Updates: []telemetry.DeviceUpdate{
			{Device: "d", FirstSeen: t0, LastSeen: at, Attributes: attributes}}})
	}
	a := func(k, v string) telemetry.Attribute { return telemetry.Attribute{Key: k, Value: v} }
	set(0, t0, a("fw", "1"), a("site", "x"))
	set(1, t0+1e6, a("fw", "1"), a("site", "x"))
	set(2, t0+2e6, a("fw", "2"), a("site", "x"))
	set(3, t0+3e6, a("fw", "2"))
	got := ask[string](t, url, "select attribute || '=' || coalesce(value, '-') || '@' || (extract(epoch from changed) * 1000000)::bigint - $1 from device_changes order by changed, attribute", t0)
	if want := []string{"fw=1@0", "site=x@0", "fw=2@2000000", "site=-@3000000"}; !slices.Equal(got, want) {
		t.Errorf("history %q, want %q", got, want)
	}
	if got := one[string](t, url, "select attributes::text from devices"); got != `{"fw": "2"}` {
		t.Errorf("attributes %s", got)
	}
}
