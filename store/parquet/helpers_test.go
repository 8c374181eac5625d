package parquet

import (
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(quiet(), nil, Config{Dir: dir})
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

func newStore(t testing.TB) *Store { return open(t, filepath.Join(t.TempDir(), "store")) }

// reading is one input of batchOf.
type reading struct {
	device, sensor string
	time           int64
	value          float64
}

// batchOf makes a canonical batch of readings given in log order.
func batchOf(shard telemetry.ShardID, from, to uint64, list []reading) *telemetry.Batch {
	b := &telemetry.Batch{Shard: shard, From: from, To: to, Term: 3, Messages: uint64(len(list))}
	for _, r := range list {
		b.Devices = append(b.Devices, r.device)
		b.Sensors = append(b.Sensors, r.sensor)
	}
	slices.Sort(b.Devices)
	slices.Sort(b.Sensors)
	b.Devices, b.Sensors = slices.Compact(b.Devices), slices.Compact(b.Sensors)
	for i, r := range list {
		device, _ := slices.BinarySearch(b.Devices, r.device)
		sensor, _ := slices.BinarySearch(b.Sensors, r.sensor)
		b.Rows = append(b.Rows, telemetry.Row{
			Time: r.time, Received: r.time + int64(i%7)*1000, Value: r.value, Device: uint32(device), Sensor: uint32(sensor),
			Score: float32(i%100) / 100, Quality: telemetry.Quality(i % 3),
		})
	}
	slices.SortStableFunc(b.Rows, func(p, q telemetry.Row) int {
		switch {
		case p.Device != q.Device:
			return int(p.Device) - int(q.Device)
		case p.Sensor != q.Sensor:
			return int(p.Sensor) - int(q.Sensor)
		case p.Time < q.Time:
			return -1
		case p.Time > q.Time:
			return 1
		}
		return 0
	})
	return b
}

const t0 = int64(1_769_180_686_123_456)

// fleet is realistic telemetry: devices with four sensors that send decimals
// once a second with jitter, rows per series as asked.
func fleet(shard telemetry.ShardID, from, to uint64, devices, perSeries int, start int64) *telemetry.Batch {
	rng := rand.New(rand.NewPCG(uint64(start), uint64(shard)))
	b := &telemetry.Batch{Shard: shard, From: from, To: to, Messages: uint64(devices * perSeries), Sensors: []string{"battery", "humidity", "pressure", "temperature"}}
	level, step, scale := []float64{93.5, 48, 1013, 21.5}, []float64{0.01, 0.2, 0.1, 0.03}, []float64{10, 10, 10, 100}
	times, received := make([]int64, perSeries), make([]int64, perSeries)
	b.Rows = make([]telemetry.Row, 0, devices*perSeries*4)
	for d := range devices {
		b.Devices = append(b.Devices, fmt.Sprintf("sensor-%05d", d))
		phase := rng.Int64N(1_000_000)
		for i := range times {
			times[i] = start + phase + int64(i)*1_000_000 + rng.Int64N(2000)
			received[i] = times[i] + 2000 + int64(rng.ExpFloat64()*2000)
		}
		for s := range b.Sensors {
			v := level[s] + rng.NormFloat64()
			for i := range times {
				v += rng.NormFloat64() * step[s]
				b.Rows = append(b.Rows, telemetry.Row{
					Time: times[i], Received: received[i], Value: math.Round(v*scale[s]) / scale[s],
					Device: uint32(d), Sensor: uint32(s), Score: float32(rng.IntN(64)) / 64,
				})
			}
		}
		b.Updates = append(b.Updates, telemetry.DeviceUpdate{
			Device: b.Devices[d], FirstSeen: start, LastSeen: received[perSeries-1],
			Attributes: []telemetry.Attribute{{Key: "firmware_version", Value: "1.2.3"}, {Key: "signal_strength", Value: "-61"}},
		})
	}
	return b
}

// model answers queries by looking at every row of every batch.
type model struct{ batches []*telemetry.Batch }

func (m *model) read(q store.Query, upTo uint64) []store.Point {
	var points []store.Point
	for _, b := range m.batches {
		if b.To > upTo {
			continue
		}
		for _, r := range b.Rows {
			p := store.Point{Time: r.Time, Received: r.Received, Sensor: b.Sensors[r.Sensor], Value: r.Value, Score: r.Score, Quality: r.Quality}
			if b.Devices[r.Device] == q.Device && q.Matches(&p) {
				points = append(points, p)
			}
		}
	}
	slices.SortStableFunc(points, func(a, b store.Point) int { return q.Compare(&a, &b) })
	points = slices.CompactFunc(points, func(a, b store.Point) bool { return a.Compare(&b) == 0 })
	return points[:min(len(points), q.Limit)]
}

// buckets does the same for buckets.
func (m *model) buckets(q store.Aggregate, upTo uint64) []store.Bucket {
	var list []store.Bucket
	for _, p := range m.read(store.Query{Device: q.Device, From: q.From, To: q.To, Limit: math.MaxInt}, upTo) {
		if !q.Matches(p.Time, p.Sensor) {
			continue
		}
		i, ok := slices.BinarySearchFunc(list, store.Bucket{Start: q.BucketOf(p.Time), Sensor: p.Sensor}, func(a, b store.Bucket) int { return a.Compare(&b) })
		if !ok {
			list = slices.Insert(list, i, store.Bucket{Start: q.BucketOf(p.Time), Sensor: p.Sensor})
		}
		list[i].Add(p.Time, p.Value)
	}
	return list[:min(len(list), q.Limit)]
}

// samePoints compares bit for bit.
func samePoints(a, b []store.Point) bool {
	return slices.EqualFunc(a, b, func(p, q store.Point) bool {
		same := math.Float64bits(p.Value) == math.Float64bits(q.Value) && math.Float32bits(p.Score) == math.Float32bits(q.Score)
		p.Value, q.Value, p.Score, q.Score = 0, 0, 0, 0
		return same && p == q
	})
}

// files lists what is in a directory, with paths relative to it.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != lockName {
			list = append(list, strings.TrimPrefix(path, dir+string(filepath.Separator)))
		}
		return err
	})
	if err != nil {
		t.Fatalf("list %s: %v", dir, err)
	}
	return list
}
