package parquet

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func everything(device string) store.Query {
	return store.Query{Device: device, From: math.MinInt64, To: math.MaxInt64, Limit: math.MaxInt32}
}

// nasty is a batch of what is hard to keep: signed zeroes, extremes, several
// values at one time, long names, bytes that are no UTF-8 in attributes.
func nasty() *telemetry.Batch {
	b := batchOf(7, 0, 9, []reading{
		{"a", "s", t0, math.Copysign(0, -1)}, {"a", "s", t0, 0}, {"a", "s", t0, 5e-324}, {"a", "s", t0, -math.MaxFloat64},
		{"a", "s", -t0, math.MaxFloat64}, {"a", "\u00fc \"x\"", math.MaxInt64 - 1, 0.1}, {"a", strings.Repeat("l", 128), math.MinInt64, 1e300},
		{strings.Repeat("z", 128), "s", 0, 21.52},
	})
	b.Rows[0].Score, b.Rows[1].Score = math.MaxFloat32, math.SmallestNonzeroFloat32
	b.Updates = []telemetry.DeviceUpdate{
		{Device: "a", FirstSeen: -1, LastSeen: t0, Attributes: []telemetry.Attribute{{Key: "k", Value: "\xff\xfe<&>\u2028"}, {Key: "", Value: ""}}},
		{Device: "b"},
	}
	b.Anomalies = []telemetry.Anomaly{{
		ID: "7-3-0", Device: "a", Sensor: "s", Opened: t0, Severity: 99.5, Cause: "spike", Value: math.Copysign(0, -1),
		Expected: 0.1, Low: math.Inf(-1), High: math.Inf(1),
		Shares: "s 0.71, \u00fc \"x\" 0.29", Normal: true, Wave: "7-2-w0",
	}, {ID: "7-3-1"}}
	return b
}

func TestLoadReturnsTheWrittenBatchBitForBit(t *testing.T) {
	for name, b := range map[string]*telemetry.Batch{
		"nasty":               nasty(),
		"empty":               {Shard: 7, From: 5, To: 6, Messages: 3},
		"no rows but updates": {Shard: 7, From: 5, To: 6, Messages: 1, Updates: []telemetry.DeviceUpdate{{Device: "a", LastSeen: 1}}},
		"several pages":       fleet(7, 0, 10, 10, 1000, t0),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			seg, err := s.Write(t.Context(), b)
			if err != nil {
				t.Fatalf("write: %v", err)
			}
			if err := s.Verify(t.Context(), seg); err != nil {
				t.Fatalf("verify: %v", err)
			}
			got, err := s.Load(t.Context(), seg)
			if err != nil {
				t.Fatalf("load: %v", err)
			}
			if Digest(got) != seg.Digest || Digest(b) != seg.Digest {
				t.Errorf("digest of the loaded batch is %x, of the written one %x, of the segment %x", Digest(got), Digest(b), seg.Digest)
			}
			want := *b
			want.Term = 0
			if !reflect.DeepEqual(got, &want) { // -0 == 0 here; the digest knows the difference
				t.Errorf("loaded batch differs:\n got %.2000v\nwant %.2000v", got, &want)
			}
		})
	}
}

func TestBigBatchHasSeveralRowGroupsAndComesBack(t *testing.T) {
	b := &telemetry.Batch{To: 1, Sensors: []string{"s"}, Messages: 1}
	for i := range groupDevices + 5000 {
		b.Devices = append(b.Devices, "d"+string(rune('0'+i/100000))+strings.Repeat("0", 5-len(itoa(i%100000)))+itoa(i%100000))
		for k := range int64(2) {
			b.Rows = append(b.Rows, telemetry.Row{Device: uint32(i), Time: t0 + k, Value: float64(i) * math.Pi})
		}
	}
	s := newStore(t)
	seg, err := s.Write(t.Context(), b)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	if err := s.Verify(t.Context(), seg); err != nil {
		t.Fatalf("verify: %v", err)
	}
	f, err := s.file(t.Context(), &seg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer f.release()
	if len(f.groups) != 2 {
		t.Errorf("%d row groups, expected 2", len(f.groups))
	}
	for _, i := range []int{0, groupDevices - 1, groupDevices, groupDevices + 4999} {
		points, _, err := s.Read(t.Context(), 0, 1, everything(b.Devices[i]))
		if err != nil || len(points) != 2 || points[1].Value != float64(i)*math.Pi {
			t.Errorf("device %d: got %v, %v", i, points, err)
		}
	}
}

func itoa(i int) string {
	if i < 10 {
		return string(rune('0' + i))
	}
	return itoa(i/10) + string(rune('0'+i%10))
}

func TestWriteOfTheSameRangeWritesNothing(t *testing.T) {
	s := newStore(t)
	b := fleet(1, 10, 20, 3, 50, t0)
	first, err := s.Write(t.Context(), b)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	before, err := os.Stat(s.Path(first))
	if err != nil {
		t.Fatal(err)
	}
	b.Term = 99 // another leader flushes the same range
	again, err := s.Write(t.Context(), b)
	if err != nil || again != first {
		t.Fatalf("second write: got %+v, %v, want %+v", again, err, first)
	}
	after, err := os.Stat(s.Path(first))
	if err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("file was replaced: %v, %v, %v", before, after, err)
	}
	b.Rows[7].Value++
	var digest *DigestError
	if _, err := s.Write(t.Context(), b); !errors.As(err, &digest) || digest.Have != first.Digest {
		t.Errorf("write of other rows: got %v, want a DigestError", err)
	}
	for _, r := range []Range{{From: 9, To: 11}, {From: 19, To: 25}, {From: 12, To: 13}, {From: 0, To: 30}} {
		var overlap *OverlapError
		if _, err := s.Write(t.Context(), fleet(1, r.From, r.To, 1, 1, t0)); !errors.As(err, &overlap) {
			t.Errorf("write of %v: got %v, want an OverlapError", r, err)
		}
	}
	if list := files(t, s.cfg.Dir); len(list) != 1 {
		t.Errorf("files are %v, want one", list)
	}
}

func TestWriteRefusesBatchesThatAreNotCanonical(t *testing.T) {
	s := newStore(t)
	for name, spoil := range map[string]func(*telemetry.Batch){
		"namespace":       func(b *telemetry.Batch) { b.Namespace = 1 },
		"empty range":     func(b *telemetry.Batch) { b.To = b.From },
		"device order":    func(b *telemetry.Batch) { b.Devices[0], b.Devices[1] = b.Devices[1], b.Devices[0] },
		"unused device":   func(b *telemetry.Batch) { b.Devices = append(b.Devices, "zzz") },
		"unused sensor":   func(b *telemetry.Batch) { b.Sensors = append(b.Sensors, "zzz") },
		"skipped device":  func(b *telemetry.Batch) { b.Rows = b.Rows[4*5:] },
		"row order":       func(b *telemetry.Batch) { b.Rows[0], b.Rows[4] = b.Rows[4], b.Rows[0] },
		"device number":   func(b *telemetry.Batch) { b.Rows[len(b.Rows)-1].Device = 77 },
		"sensor number":   func(b *telemetry.Batch) { b.Rows[len(b.Rows)-1].Sensor = 77 },
		"update order":    func(b *telemetry.Batch) { slices.Reverse(b.Updates) },
		"anomaly repeats": func(b *telemetry.Batch) { b.Anomalies = make([]telemetry.Anomaly, 2) },
		"no rows":         func(b *telemetry.Batch) { b.Rows = nil },
	} {
		b := fleet(1, 0, 5, 3, 5, t0)
		spoil(b)
		var bad *BatchError
		if seg, err := s.Write(t.Context(), b); !errors.As(err, &bad) {
			t.Errorf("%s: got %+v, %v, want a BatchError", name, seg, err)
		}
	}
	if list := files(t, s.cfg.Dir); len(list) != 0 {
		t.Errorf("files are %v, want none", list)
	}
}

func TestReopenFindsSegmentsAndGaps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	var want []Segment
	for _, r := range []Range{{0, 4}, {4, 9}, {20, 21}, {9, 12}} {
		seg, err := s.Write(t.Context(), fleet(3, r.From, r.To, 2, int(r.To), t0+int64(r.From)*1e6))
		if err != nil {
			t.Fatalf("write %v: %v", r, err)
		}
		want = append(want, seg)
	}
	want[2], want[3] = want[3], want[2]
	check := func() {
		t.Helper()
		if got := s.Segments(3); !slices.Equal(got, want) {
			t.Errorf("segments are %+v, want %+v", got, want)
		}
		if got := s.Missing(3, 30); !slices.Equal(got, []Range{{12, 20}, {21, 30}}) {
			t.Errorf("missing up to 30 is %v", got)
		}
		if got := s.Missing(3, 12); got != nil {
			t.Errorf("missing up to 12 is %v", got)
		}
		if got := s.Missing(4, 1); !slices.Equal(got, []Range{{0, 1}}) {
			t.Errorf("missing of a shard without files is %v", got)
		}
		if u := s.Usage(); u.Segments != 4 || u.Shards != 1 || u.Rows != want[0].Rows+want[1].Rows+want[2].Rows+want[3].Rows {
			t.Errorf("usage is %+v", u)
		}
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	s = open(t, dir)
	check()
	var incomplete *IncompleteError
	if _, _, err := s.Read(t.Context(), 3, 21, everything("sensor-00000")); !errors.As(err, &incomplete) || !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("read over a gap: got %v, want an IncompleteError that is store.ErrUnavailable", err)
	}
	if points, _, err := s.Read(t.Context(), 3, EverythingHere, everything("sensor-00000")); err != nil || len(points) != 4*(4+9+12+21) {
		t.Errorf("read of everything: %d points, %v", len(points), err)
	}
	if points, covered, err := s.Read(t.Context(), 3, 4, everything("sensor-00000")); err != nil || covered != 12 || len(points) != 4*(4+9+12) {
		t.Errorf("read up to 4: %d points up to %d, %v", len(points), covered, err)
	}
}

func TestSecondStoreOnTheDirectoryIsRefused(t *testing.T) {
	s := newStore(t)
	if other, err := Open(quiet(), nil, Config{Dir: s.cfg.Dir}); err == nil {
		other.Close()
		t.Fatal("second store opened")
	} else if !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("error is %q", err)
	}
}

func TestDropRemovesTheShardAlone(t *testing.T) {
	s := newStore(t)
	for shard := range telemetry.ShardID(2) {
		if _, err := s.Write(t.Context(), fleet(shard, 0, 1, 1, 1, t0)); err != nil {
			t.Fatalf("write: %v", err)
		}
	}
	for range 2 { // a second time is nothing
		if err := s.Drop(0); err != nil {
			t.Fatalf("drop: %v", err)
		}
	}
	if got := files(t, s.cfg.Dir); len(got) != 1 || s.Segments(0) != nil || len(s.Segments(1)) != 1 {
		t.Errorf("files are %v, segments %v and %v", got, s.Segments(0), s.Segments(1))
	}
	if _, err := s.Write(t.Context(), fleet(0, 0, 1, 1, 1, t0)); err != nil {
		t.Errorf("write after drop: %v", err)
	}
}

func TestReadEqualsModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "sluice-parquet")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		s, err := Open(quiet(), nil, Config{Dir: dir, OpenFilesMax: rapid.IntRange(1, 4).Draw(rt, "open files")})
		if err != nil {
			rt.Fatal(err)
		}
		defer s.Close()
		var m model
		values := rapid.SampledFrom([]float64{0, math.Copysign(0, -1), 1, 2.5, -7, math.MaxFloat64})
		devices, sensors := rapid.SampledFrom([]string{"a", "b", "bb", "c"}), rapid.SampledFrom([]string{"p", "q", "r"})
		at := rapid.Int64Range(-30, 30)
		to := uint64(0)
		for range rapid.IntRange(1, 5).Draw(rt, "batches") {
			var list []reading
			for range rapid.IntRange(0, 60).Draw(rt, "rows") {
				list = append(list, reading{devices.Draw(rt, "device"), sensors.Draw(rt, "sensor"), at.Draw(rt, "time"), values.Draw(rt, "value")})
			}
			from := to
			to += rapid.Uint64Range(1, 5).Draw(rt, "length")
			b := batchOf(1, from, to, list)
			if _, err := s.Write(t.Context(), b); err != nil {
				rt.Fatalf("write: %v", err)
			}
			m.batches = append(m.batches, b)
			if list := s.Segments(1); len(list) > 1 && rapid.Bool().Draw(rt, "compact") {
				lo := rapid.IntRange(0, len(list)-2).Draw(rt, "first file")
				hi := rapid.IntRange(lo+2, len(list)).Draw(rt, "end")
				if _, err := s.merge(t.Context(), list[lo:hi]); err != nil {
					rt.Fatalf("merge: %v", err)
				}
			}
		}
		for range 10 {
			q := store.Query{
				Device: devices.Draw(rt, "device"), Sensor: rapid.SampledFrom([]string{"", "p", "q", "x"}).Draw(rt, "sensor"),
				From: at.Draw(rt, "from"), To: at.Draw(rt, "to"), Limit: rapid.IntRange(1, 70).Draw(rt, "limit"),
				Desc: rapid.Bool().Draw(rt, "descending"),
			}
			if rapid.Bool().Draw(rt, "open range") {
				q.From, q.To = math.MinInt64, math.MaxInt64
			}
			if rapid.Bool().Draw(rt, "cursor") {
				q.After = &store.Point{Time: at.Draw(rt, "after"), Sensor: sensors.Draw(rt, "after sensor"), Value: values.Draw(rt, "after value")}
			}
			upTo := m.batches[rapid.IntRange(0, len(m.batches)-1).Draw(rt, "up to")].To
			got, covered, err := s.Read(t.Context(), 1, upTo, q)
			if err != nil || covered != to {
				rt.Fatalf("read %+v up to %d gave rows up to %d: %v", q, upTo, covered, err)
			}
			if want := m.read(q, to); !samePoints(got, want) {
				rt.Fatalf("read %+v up to %d:\n got %+v\nwant %+v", q, upTo, got, want)
			}
			a := store.Aggregate{Device: q.Device, Sensor: q.Sensor, From: q.From, To: q.To, Limit: q.Limit, StepMicros: rapid.Int64Range(1, 40).Draw(rt, "step")}
			if q.After != nil {
				a.After = &store.Bucket{Start: a.BucketOf(q.After.Time), Sensor: q.After.Sensor}
			}
			buckets, _, err := s.Aggregate(t.Context(), 1, upTo, a)
			if err != nil {
				rt.Fatalf("aggregate %+v: %v", a, err)
			}
			if want := m.buckets(a, to); !slices.EqualFunc(buckets, want, sameBucket) {
				rt.Fatalf("aggregate %+v:\n got %+v\nwant %+v", a, buckets, want)
			}
		}
	})
}

func TestPagesJoinThroughCursors(t *testing.T) {
	s := newStore(t)
	var m model
	for i := range 6 {
		b := fleet(1, uint64(i), uint64(i+1), 5, 1500, t0+int64(i)*700e6) // ranges overlap in time
		if _, err := s.Write(t.Context(), b); err != nil {
			t.Fatalf("write: %v", err)
		}
		m.batches = append(m.batches, b)
	}
	q := everything("sensor-00003")
	want := m.read(q, 6)
	for _, limit := range []int{1000, 4999} {
		q.After, q.Limit = nil, limit
		var got []store.Point
		for {
			points, _, err := s.Read(t.Context(), 1, 6, q)
			if err != nil {
				t.Fatalf("read: %v", err)
			}
			got = append(got, points...)
			if len(points) < limit {
				break
			}
			q.After = &points[len(points)-1]
		}
		if !samePoints(got, want) {
			t.Errorf("limit %d: %d points, want %d", limit, len(got), len(want))
		}
	}
}

// sameBucket forgives the order of sums of numbers of very different size.
func sameBucket(a, b store.Bucket) bool {
	if math.Abs(a.Sum-b.Sum) <= 1e-9*math.Max(math.Abs(a.Sum), 1) || math.IsInf(a.Sum, 0) && math.IsInf(b.Sum, 0) {
		a.Sum, b.Sum = 0, 0
	}
	return a == b
}

func TestPagesJoinThroughCursorsBackwards(t *testing.T) {
	s := newStore(t)
	var m model
	for i := range uint64(6) {
		b := fleet(1, i, i+1, 3, 40, t0+int64(i)*40e6)
		if _, err := s.Write(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		m.batches = append(m.batches, b)
	}
	q := everything("sensor-00001")
	q.Desc = true
	want := m.read(q, 6)
	q.Limit = 7
	var got []store.Point
	for {
		points, _, err := s.Read(t.Context(), 1, 6, q)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, points...)
		if len(points) < q.Limit {
			break
		}
		q.After = &points[len(points)-1]
	}
	if !samePoints(got, want) {
		t.Errorf("%d points, want %d", len(got), len(want))
	}
}
