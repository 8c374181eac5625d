package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
	"github.com/sluice-iot/sluice/telemetry"
)

// shared is the server of all tests that do not kill theirs, each of which has a
// database of its own.
var shared struct {
	sync.Once
	server *pgtest.Server
	err    error
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if shared.server != nil {
			if err := shared.server.Close(); err != nil {
				fmt.Println(err)
				code = max(code, 1)
			}
		}
		os.Exit(code)
	}))
}

func server(tb testing.TB) *pgtest.Server {
	tb.Helper()
	if _, err := pgtest.Find(); err != nil {
		tb.Skip(err)
	}
	shared.Do(func() { shared.server, shared.err = pgtest.New(pgtest.Options{}) })
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	return shared.server
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func config(url string) Config {
	return Config{URL: url, Cluster: func() string { return "c1" }}
}

func open(tb testing.TB, cfg Config) *DB {
	tb.Helper()
	db, err := Open(quiet(), nil, cfg)
	if err != nil {
		tb.Fatalf("open: %v", err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Errorf("close: %v", err)
		}
	})
	return db
}

// t0 is a Friday in 2026.
const t0 = int64(1_769_181_886_123_456)

// fleet makes a canonical batch of perSeries readings of 4 sensors of devices.
func fleet(shard telemetry.ShardID, from, to uint64, devices, perSeries int, begin int64) *telemetry.Batch {
	b := &telemetry.Batch{Shard: shard, From: from, To: to, Term: 3, Sensors: []string{"battery", "humidity", "pressure", "temperature"}}
	for d := range devices {
		id := fmt.Sprintf("sensor-%05d", d)
		b.Devices = append(b.Devices, id)
		for s := range b.Sensors {
			for i := range perSeries {
				t := begin + int64(i)*1_000_000
				b.Rows = append(b.Rows, telemetry.Row{
					Time: t, Received: t + 2500, Value: 20 + math.Sin(float64(d*7+s*3+i)), Device: uint32(d), Sensor: uint32(s), Score: float32(i%10) / 10,
				})
			}
		}
		b.Updates = append(b.Updates, telemetry.DeviceUpdate{
			Device: id, FirstSeen: begin, LastSeen: begin + int64(perSeries)*1_000_000,
			Attributes: []telemetry.Attribute{{Key: "firmware_version", Value: "1.2.3"}, {Key: "signal_strength", Value: "-61"}},
		})
	}
	b.Messages = uint64(devices * perSeries)
	return b
}

// points are the expected answers for one device of a batch.
func points(device string, batches ...*telemetry.Batch) []store.Point {
	var out []store.Point
	for _, b := range batches {
		for _, r := range b.Rows {
			if b.Devices[r.Device] == device {
				out = append(out, store.Point{Time: r.Time, Received: r.Received, Sensor: b.Sensors[r.Sensor], Value: r.Value, Score: r.Score, Quality: r.Quality})
			}
		}
	}
	slices.SortStableFunc(out, func(p, q store.Point) int { return p.Compare(&q) })
	return out
}

func samePoints(p, q []store.Point) bool {
	return slices.EqualFunc(p, q, func(a, b store.Point) bool {
		return a.Compare(&b) == 0 && a.Received == b.Received && math.Float32bits(a.Score) == math.Float32bits(b.Score) && a.Quality == b.Quality
	})
}

func all(device string) store.Query {
	return store.Query{Device: device, From: math.MinInt64, To: math.MaxInt64, Limit: 100_000}
}

func write(tb testing.TB, db *DB, b *telemetry.Batch) {
	tb.Helper()
	if err := db.Write(context.Background(), b); err != nil {
		tb.Fatalf("write %d..%d: %v", b.From, b.To, err)
	}
}

func read(tb testing.TB, db *DB, shard telemetry.ShardID, q store.Query) ([]store.Point, uint64) {
	tb.Helper()
	got, w, err := db.Read(context.Background(), shard, q)
	if err != nil {
		tb.Fatalf("read: %v", err)
	}
	return got, w.To[telemetry.LaneLive]
}

// live reads the watermark of a shard's live lane.
func live(ctx context.Context, db *DB, shard telemetry.ShardID) (uint64, error) {
	w, err := db.Watermarks(ctx, shard)
	return w.To[telemetry.LaneLive], err
}

// stands reads the watermark of a batch's lane. A drained gap stands at its end.
func stands(ctx context.Context, db *DB, b *telemetry.Batch) (uint64, error) {
	w, err := db.Watermarks(ctx, b.Shard)
	switch {
	case b.Lane != telemetry.LaneBacklog:
		return w.To[b.Lane], err
	case w.Gap.Open():
		return w.Gap.From, err
	}
	return b.GapEnd, err
}

// ask runs one query at a URL and returns the first column of all rows.
func ask[T any](tb testing.TB, url, sql string, args ...any) []T {
	tb.Helper()
	ctx := context.Background()
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		tb.Fatalf("connect: %v", err)
	}
	defer func() { _ = c.Close(ctx) }()
	rows, err := c.Query(ctx, sql, args...)
	if err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	return out
}

func one[T cmp.Ordered](tb testing.TB, url, sql string, args ...any) T {
	tb.Helper()
	v := ask[T](tb, url, sql, args...)
	if len(v) != 1 {
		tb.Fatalf("%s: %d rows", sql, len(v))
	}
	return v[0]
}

// mismatch returns the WatermarkError of a write that must fail so.
func mismatch(tb testing.TB, err error) *store.WatermarkError {
	tb.Helper()
	var w *store.WatermarkError
	if !errors.As(err, &w) {
		tb.Fatalf("got %v, want a WatermarkError", err)
	}
	return w
}

// eventually polls until ok or half a minute has passed.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("still not: %s", what)
		}
	}
}
