package shard

import (
	"runtime"
	"testing"
)

// BenchmarkMemoryOfSeries is what a series takes in a replica, measured as the
// growth of the heap while a shard hears of 50,000 devices of four sensors: state
// of detectors, latest values, indexes, names, and the device's own parts, shared
// out over its four series.
func BenchmarkMemoryOfSeries(b *testing.B) {
	const devices = 50_000
	live := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		before := live()
		c := newCrowd(b, devices)
		after := live()
		series := float64(c.registry.series.n)
		if series != 4*devices {
			b.Fatalf("%v series, want %d", series, 4*devices)
		}
		grown := float64(after - before)
		b.ReportMetric(grown/series, "B/series")
		b.ReportMetric(grown/series*1e6/(1<<20), "MiB/million-series")
		b.ReportMetric(float64(c.registry.series.n)/devices, "series/device")
		runtime.KeepAlive(c)
	}
}
