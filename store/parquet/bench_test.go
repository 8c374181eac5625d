package parquet

import (
	"fmt"
	"math"
	"syscall"
	"testing"

	"github.com/sluice-iot/sluice/store"
)

// BenchmarkWrite flushes 100 devices x 4 sensors; the name says how many rows of
// each series a flush holds.
func BenchmarkWrite(b *testing.B) {
	for _, perSeries := range []int{5, 60, 600, 5000} {
		b.Run(fmt.Sprintf("rows=%d", perSeries), func(b *testing.B) {
			s := newStore(b)
			batch := fleet(1, 0, 1, 100, perSeries, t0)
			b.ReportAllocs()
			var bytes int64
			began := cpuTime(b)
			for b.Loop() {
				batch.From, batch.To = batch.To, batch.To+1
				seg, err := s.Write(b.Context(), batch)
				if err != nil {
					b.Fatal(err)
				}
				bytes = seg.Bytes
			}
			rows := float64(len(batch.Rows))
			b.ReportMetric(float64(cpuTime(b)-began)/rows/float64(b.N), "cpu-ns/sample")
			b.ReportMetric(rows*float64(b.N)/b.Elapsed().Seconds()/1e6, "Msamples/s")
			b.ReportMetric(float64(bytes)/rows, "B/sample")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkEncode is the part of BenchmarkWrite that makes the bytes.
func BenchmarkEncode(b *testing.B) {
	for _, perSeries := range []int{60, 600} {
		b.Run(fmt.Sprintf("rows=%d", perSeries), func(b *testing.B) {
			batch := fleet(1, 0, 1, 100, perSeries, t0)
			e, err := newEncoder()
			if err != nil {
				b.Fatal(err)
			}
			size, began := 0, cpuTime(b)
			for b.Loop() {
				out, err := e.encode(batch, &metadata{Segment: Segment{Rows: uint64(len(batch.Rows))}})
				if err != nil {
					b.Fatal(err)
				}
				size = len(out)
			}
			n := float64(len(batch.Rows))
			b.ReportMetric(float64(cpuTime(b)-began)/n/float64(b.N), "cpu-ns/sample")
			b.ReportMetric(float64(size)/n, "B/sample")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpuTime is what the process has used in nanoseconds: steadier than the clock
// where others work on the same cores.
func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

func BenchmarkDigest(b *testing.B) {
	batch := fleet(1, 0, 1, 100, 600, t0)
	for b.Loop() {
		Digest(batch)
	}
	b.ReportMetric(float64(len(batch.Rows)*b.N)/b.Elapsed().Seconds()/1e6, "Msamples/s")
}

// BenchmarkReadLastHour asks for one device's last hour out of 10 M samples of
// 100 devices x 4 sensors, flushed in equal parts.
func BenchmarkReadLastHour(b *testing.B) {
	for _, parts := range []int{1, 25, 417} {
		b.Run(fmt.Sprintf("files=%d", parts), func(b *testing.B) {
			s := newStore(b)
			perSeries := 25000 / parts
			for i := range parts {
				if _, err := s.Write(b.Context(), fleet(1, uint64(i), uint64(i+1), 100, perSeries, t0+int64(i*perSeries)*1e6)); err != nil {
					b.Fatal(err)
				}
			}
			end := t0 + int64(parts*perSeries)*1e6
			for _, limit := range []int{math.MaxInt32, 1000} {
				for _, opened := range []string{"warm", "cold"} {
					b.Run(fmt.Sprintf("limit=%d/%s", limit, opened), func(b *testing.B) {
						q := store.Query{Device: "sensor-00042", From: end - 3600e6, To: math.MaxInt64, Limit: limit}
						b.ReportAllocs()
						points := 0
						for b.Loop() {
							if opened == "cold" {
								s.cache.close()
							}
							list, _, err := s.Read(b.Context(), 1, uint64(parts), q)
							if err != nil {
								b.Fatal(err)
							}
							points = len(list)
						}
						b.ReportMetric(float64(points), "points")
					})
				}
			}
		})
	}
}

// BenchmarkOpen reads the footers of a thousand small segments.
func BenchmarkOpen(b *testing.B) {
	s := newStore(b)
	for i := range uint64(1000) {
		if _, err := s.Write(b.Context(), fleet(1, i, i+1, 4, 5, t0)); err != nil {
			b.Fatal(err)
		}
	}
	s.Close()
	for b.Loop() {
		again, err := Open(quiet(), nil, s.cfg)
		if err != nil {
			b.Fatal(err)
		}
		if err := again.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCompact merges 16 flushes of 100 devices x 4 sensors into one file.
func BenchmarkCompact(b *testing.B) {
	for _, perSeries := range []int{5, 60, 600} {
		b.Run(fmt.Sprintf("rows=%d", perSeries), func(b *testing.B) {
			const inputs = 16
			s := newStore(b)
			s.compactPace = newPace(1 << 40)
			at, cpu, before, after, rows := uint64(0), int64(0), int64(0), int64(0), uint64(0)
			for b.Loop() {
				b.StopTimer()
				var list []Segment
				before = 0
				for i := range int64(inputs) {
					seg, err := s.Write(b.Context(), fleet(1, at, at+1, 100, perSeries, t0+i*int64(perSeries)*1e6))
					if err != nil {
						b.Fatal(err)
					}
					at++
					before += seg.Bytes
					list = append(list, seg)
				}
				began := cpuTime(b)
				b.StartTimer()
				seg, err := s.merge(b.Context(), list)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				cpu += cpuTime(b) - began
				after, rows = seg.Bytes, seg.Rows
				b.StartTimer()
			}
			b.ReportMetric(float64(cpu)/float64(rows)/float64(b.N), "cpu-ns/sample")
			b.ReportMetric(float64(before)/float64(rows), "B/sample-before")
			b.ReportMetric(float64(after)/float64(rows), "B/sample")
			b.ReportMetric(0, "ns/op")
		})
	}
}
