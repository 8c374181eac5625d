package parquet

import (
	"fmt"
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/store"
)

// largeEnv is a directory that BenchmarkLastHourOfLarge builds its store in and
// finds it again, because building takes minutes. Without it the benchmark is
// skipped.
const largeEnv = "SLUICE_BENCH_STORE"

// BenchmarkLastHourOfLarge asks for one device's last hour out of 100 M samples of
// 1,000 devices x 4 sensors in one shard, flushed every 100 s and compacted. Every
// question is about another device.
func BenchmarkLastHourOfLarge(b *testing.B) {
	dir := os.Getenv(largeEnv)
	if dir == "" {
		b.Skip("set " + largeEnv + " to a directory with room for 300 MB")
	}
	const devices, perFlush, flushes = 1000, 100, 250 // 400,000 rows each
	s, err := Open(quiet(), nil, Config{Dir: dir, CompactBytesPerSecond: 1 << 40})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	start := int64(1_769_126_400_000_000) // midnight, so that all is one window
	build := time.Now()
	written := int64(0)
	for i := range uint64(flushes) {
		if len(s.Missing(1, i+1)) == 0 {
			continue
		}
		batch := fleet(1, i, i+1, devices, perFlush, start+int64(i)*perFlush*1e6)
		began := time.Now()
		if _, err := s.Write(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
		written += int64(time.Since(began))
	}
	if written > 0 {
		b.Logf("written in %v (%v with making the rows)", time.Duration(written), time.Since(build))
	}
	began := time.Now()
	for {
		did, err := s.Compact(b.Context(), 1)
		if err != nil {
			b.Fatal(err)
		}
		if !did {
			break
		}
	}
	if err := s.reap(b.Context()); err != nil {
		b.Fatal(err)
	}
	u := s.Usage()
	b.Logf("compacted in %v: %d files, %d rows, %.2f bytes a row", time.Since(began), u.Segments, u.Rows, float64(u.Bytes)/float64(u.Rows))
	end := start + flushes*perFlush*1e6
	for _, c := range []struct {
		name string
		cold bool
		run  func(device string) (int, error)
	}{
		{"warm", false, func(d string) (int, error) { return lastHour(b, s, d, end, false) }},
		{"cold", true, func(d string) (int, error) { return lastHour(b, s, d, end, false) }},
		{"latest1000", false, func(d string) (int, error) { return lastHour(b, s, d, end, true) }},
		{"minutes", false, func(d string) (int, error) {
			list, _, err := s.Aggregate(b.Context(), 1, flushes, store.Aggregate{Device: d, From: end - 3600e6, To: math.MaxInt64, StepMicros: 60e6, Limit: 1 << 20})
			return len(list), err
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			points, n, cpu := 0, 0, cpuTime(b)
			var took []time.Duration
			for b.Loop() {
				if c.cold {
					s.cache.close()
				}
				n++
				began := time.Now()
				got, err := c.run(fmt.Sprintf("sensor-%05d", n*7919%devices))
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
				points = got
			}
			b.ReportMetric(float64(cpuTime(b)-cpu)/1e6/float64(n), "cpu-ms")
			slices.Sort(took)
			b.ReportMetric(took[0].Seconds()*1e3, "min-ms")
			b.ReportMetric(float64(points), "points")
			b.ReportMetric(took[len(took)/2].Seconds()*1e3, "p50-ms")
			b.ReportMetric(took[len(took)*99/100].Seconds()*1e3, "p99-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func lastHour(b *testing.B, s *Store, device string, end int64, latest bool) (int, error) {
	q := store.Query{Device: device, From: end - 3600e6, To: math.MaxInt64, Limit: math.MaxInt32}
	if latest {
		q = store.Query{Device: device, From: math.MinInt64, To: math.MaxInt64, Limit: 1000, Desc: true}
	}
	list, _, err := s.Read(b.Context(), 1, 250, q)
	return len(list), err
}
