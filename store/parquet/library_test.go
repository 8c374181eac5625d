package parquet

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	pq "github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
)

// row is what a user of the Go library declares for our files.
type row struct {
	Time     int64   `parquet:"time,timestamp(microsecond)"`
	Device   string  `parquet:"device_id"`
	Sensor   string  `parquet:"sensor"`
	Value    float64 `parquet:"value"`
	Score    float32 `parquet:"score"`
	Received int64   `parquet:"received,timestamp(microsecond)"`
	Quality  int16   `parquet:"quality"`
}

// BenchmarkLibraryWriter writes the rows of BenchmarkWrite with the library's
// own writer, into memory and without digest or checks: what our pages are
// measured against.
func BenchmarkLibraryWriter(b *testing.B) {
	type encoded struct {
		Time     int64   `parquet:"time,delta,timestamp(microsecond)"`
		Device   string  `parquet:"device_id,dict"`
		Sensor   string  `parquet:"sensor,dict"`
		Value    float64 `parquet:"value,dict"`
		Score    float32 `parquet:"score,dict"`
		Received int64   `parquet:"received,delta,timestamp(microsecond)"`
		Quality  int16   `parquet:"quality,dict"`
	}
	for _, perSeries := range []int{60, 600} {
		b.Run(fmt.Sprintf("rows=%d", perSeries), func(b *testing.B) {
			batch := fleet(1, 0, 1, 100, perSeries, t0)
			rows := make([]encoded, len(batch.Rows))
			var out bytes.Buffer
			w := pq.NewGenericWriter[encoded](&out, pq.Compression(&zstd.Codec{Level: zstd.SpeedFastest}))
			began := cpuTime(b)
			for b.Loop() {
				for i := range batch.Rows {
					r := &batch.Rows[i]
					rows[i] = encoded{r.Time, batch.Devices[r.Device], batch.Sensors[r.Sensor], r.Value, r.Score, r.Received, int16(r.Quality)}
				}
				out.Reset()
				w.Reset(&out)
				if _, err := w.Write(rows); err != nil {
					b.Fatal(err)
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
			}
			n := float64(len(rows))
			b.ReportMetric(float64(cpuTime(b)-began)/n/float64(b.N), "cpu-ns/sample")
			b.ReportMetric(float64(out.Len())/n, "B/sample")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func TestFilesAreOrdinaryParquet(t *testing.T) {
	s := newStore(t)
	b := fleet(1, 0, 7, 7, 800, t0)
	b.Rows[5].Value = math.Copysign(0, -1)
	seg, err := s.Write(t.Context(), b)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	f, err := os.Open(s.Path(seg))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file, err := pq.OpenFile(f, seg.Bytes)
	if err != nil {
		t.Fatalf("open with the library: %v", err)
	}
	const schema = `message telemetry {
	required int64 time (TIMESTAMP(isAdjustedToUTC=true,unit=MICROS)) = 1;
	required binary device_id (STRING) = 2;
	required binary sensor (STRING) = 3;
	required double value = 4;
	required float score = 5;
	required int64 received (TIMESTAMP(isAdjustedToUTC=true,unit=MICROS)) = 6;
	required int32 quality (INT(16,true)) = 7;
}`
	if got := file.Schema().String(); got != schema {
		t.Errorf("schema is\n%s", got)
	}
	for key, want := range map[string]string{keyFormat: "3", keyShard: "1", keyFrom: "0", keyTo: "7", keyMessages: fmt.Sprint(b.Messages), keyDigest: fmt.Sprintf("%x", seg.Digest)} {
		if got, ok := file.Lookup(key); !ok || got != want {
			t.Errorf("metadata %s is %q, want %q", key, got, want)
		}
	}
	rows, err := pq.Read[row](f, seg.Bytes)
	if err != nil || len(rows) != len(b.Rows) {
		t.Fatalf("read with the library: %d rows, %v", len(rows), err)
	}
	for i, got := range rows {
		r := &b.Rows[i]
		want := row{Time: r.Time, Device: b.Devices[r.Device], Sensor: b.Sensors[r.Sensor], Value: r.Value, Score: r.Score, Received: r.Received, Quality: int16(r.Quality)}
		if got != want || math.Signbit(got.Value) != math.Signbit(want.Value) {
			t.Fatalf("row %d is %+v, want %+v", i, got, want)
		}
	}
	for _, group := range file.RowGroups() {
		var sorted []string
		for _, c := range group.SortingColumns() {
			sorted = append(sorted, strings.Join(c.Path(), "."))
		}
		if fmt.Sprint(sorted) != "[device_id sensor time]" {
			t.Errorf("sorting columns are %v", sorted)
		}
		for c, chunk := range group.ColumnChunks() {
			index, err := chunk.ColumnIndex()
			if err != nil || index.NumPages() != len(b.Rows)/pageRows+1 {
				t.Errorf("column %s: %v pages in its index, %v", columnNames()[c], index, err)
			}
		}
	}
}
