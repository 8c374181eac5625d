package postgres

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/store/postgres/pgtest"
	"github.com/sluice-iot/sluice/telemetry"
)

func cpuTime(b *testing.B) int64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkWrite measures rows per second into one server that fsyncs: Write,
// and for comparison a loop of pgx.CopyFrom of the same rows into the same kind
// of table (one commit each, no watermark, no devices), both with and without
// the device index.
func BenchmarkWrite(b *testing.B) {
	s := pgtest.Start(b, pgtest.Options{Durable: true})
	for _, devices := range []int{250, 2500} {
		const perSeries = 10
		rows := devices * 4 * perSeries
		measure := func(name string, put func(b *testing.B) func(i uint64) error) {
			b.Run(fmt.Sprintf("rows=%d/%s", rows, name), func(b *testing.B) {
				f := put(b)
				i, cpu := uint64(0), cpuTime(b)
				b.ReportAllocs()
				for b.Loop() {
					if err := f(i); err != nil {
						b.Fatal(err)
					}
					i++
				}
				n := float64(rows) * float64(b.N)
				b.ReportMetric(n/b.Elapsed().Seconds()/1e3, "krows/s")
				b.ReportMetric(float64(cpuTime(b)-cpu)/n, "client-cpu-ns/row")
				b.ReportMetric(0, "ns/op")
			})
		}
		measure("Write", func(b *testing.B) func(uint64) error {
			db := open(b, config(s.Database(b)))
			write(b, db, fleet(1, 0, 1, devices, perSeries, t0))
			batch := fleet(1, 0, 1, devices, perSeries, t0)
			return func(i uint64) error {
				batch.From, batch.To = i+1, i+2
				later(batch)
				return db.Write(context.Background(), batch)
			}
		})
		for _, index := range []bool{true, false} {
			measure(fmt.Sprintf("pgx.CopyFrom/indexes=%v", index), func(b *testing.B) func(uint64) error {
				return bareCopy(b, s, fleet(1, 0, 1, devices, perSeries, t0), index)
			})
		}
	}
}

// later moves a batch's readings behind those that it held.
func later(b *telemetry.Batch) {
	for i := range b.Rows {
		b.Rows[i].Time += 10_000_000
		b.Rows[i].Received += 10_000_000
	}
}

func bareCopy(b *testing.B, s *pgtest.Server, batch *telemetry.Batch, index bool) func(uint64) error {
	b.Helper()
	url := s.Database(b)
	if err := Migrate(b.Context(), quiet(), Config{URL: url}); err != nil {
		b.Fatal(err)
	}
	s.Exec(b, url, "select telemetry_partition('2026-01-19Z', '2026-01-26Z'), telemetry_partition('2026-01-26Z', '2026-02-02Z')")
	if !index {
		s.Exec(b, url, "drop index telemetry_device_idx", "drop index telemetry_time_idx")
	}
	c, err := pgx.Connect(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close(context.Background()) })
	columns := []string{"time", "device_id", "sensor", "value", "score", "received", "quality"}
	return func(uint64) error {
		later(batch)
		n, err := c.CopyFrom(context.Background(), pgx.Identifier{"telemetry"}, columns, pgx.CopyFromSlice(len(batch.Rows), func(i int) ([]any, error) {
			r := &batch.Rows[i]
			return []any{time.UnixMicro(r.Time), batch.Devices[r.Device], batch.Sensors[r.Sensor], r.Value, r.Score, time.UnixMicro(r.Received), int16(r.Quality)}, nil
		}))
		if err == nil && n != int64(len(batch.Rows)) {
			return fmt.Errorf("%d rows copied", n)
		}
		return err
	}
}

// BenchmarkRead asks for one device's last hour among two million rows.
func BenchmarkRead(b *testing.B) {
	db := open(b, config(server(b).Database(b)))
	for i := range uint64(20) {
		write(b, db, fleet(1, i, i+1, 1000, 25, t0+int64(i)*25_000_000))
	}
	for _, limit := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("limit=%d", limit), func(b *testing.B) {
			q := all("sensor-00500")
			q.Limit = limit
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				points, _ := read(b, db, 1, q)
				n = len(points)
			}
			b.ReportMetric(float64(n), "points")
		})
	}
}
