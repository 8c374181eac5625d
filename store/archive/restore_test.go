package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/telemetry"
)

// told is what messages say, each reading by how often it comes.
type told struct {
	readings   map[string]int
	attributes map[string]string
}

func newTold() told { return told{map[string]int{}, map[string]string{}} }

func (w *told) row(device, sensor string, time int64, value float64, isBool bool) {
	w.readings[fmt.Sprintf("%s %s %d %x %v", device, sensor, time, math.Float64bits(value), isBool)]++
}

func (w *told) batch(b *telemetry.Batch) {
	for i := range b.Rows {
		r := &b.Rows[i]
		w.row(b.Devices[r.Device], b.Sensors[r.Sensor], r.Time, r.Value, r.Quality&telemetry.QualityBool != 0)
	}
	for _, u := range b.Updates {
		for _, a := range u.Attributes {
			w.attributes[u.Device+" "+a.Key] = a.Value
		}
	}
}

// read takes lines as a node would.
func (w *told) read(t *testing.T, lines []byte) (messages int64) {
	t.Helper()
	scanner := telemetry.NewScanner()
	for line := range bytes.Lines(lines) {
		ms, err := scanner.Parse("", bytes.TrimSpace(line), 0, nil)
		if err != nil || len(ms) != 1 || ms[0].Reason != "" || ms[0].NoTime {
			t.Fatalf("%s: %+v, %v", line, ms, err)
		}
		messages++
		for _, r := range ms[0].Readings {
			w.row(ms[0].Device, r.Sensor, ms[0].Time, r.Value.Float64(), r.Value.Kind == telemetry.KindBool)
		}
		for _, a := range ms[0].Attributes {
			w.attributes[ms[0].Device+" "+a.Key] = a.Value
		}
	}
	return messages
}

// varied is a flush with what is not usual: a truth value, a zero below zero,
// several messages of one time, names that want quotes, attributes without rows.
func varied(shard telemetry.ShardID, i int) *telemetry.Batch {
	b := batch(shard, i)
	b.Sensors = append(b.Sensors, "t \"in\" °C", "u")
	at := t0 + int64(i)*3600e6
	odd := []telemetry.Row{
		{Device: 1, Sensor: 1, Time: at + 7, Received: at + 9, Value: 5e-324},
		{Device: 1, Sensor: 1, Time: at + 7, Received: at + 9, Value: math.Copysign(0, -1)},
		{Device: 1, Sensor: 1, Time: at + 7, Received: at + 10, Value: 0.1},
		{Device: 1, Sensor: 2, Time: at + 7, Received: at + 9, Value: 1, Quality: telemetry.QualityBool},
	}
	b.Rows = append(b.Rows, odd...)
	b.Updates = []telemetry.DeviceUpdate{
		{Device: "a", FirstSeen: t0, LastSeen: at, Attributes: []telemetry.Attribute{{Key: "fw", Value: fmt.Sprintf("v%d", i)}, {Key: "site", Value: "a\"b\\c"}}},
		{Device: "b", FirstSeen: t0, LastSeen: at},
		{Device: "c", FirstSeen: t0, LastSeen: at, Attributes: []telemetry.Attribute{{Key: "n", Value: "5"}}},
	}
	return b
}

// restored reads all objects of a source.
func restored(t *testing.T, src Source, prefix string) (told, []Object) {
	t.Helper()
	objects, err := Objects(t.Context(), src, prefix)
	if err != nil {
		t.Fatal(err)
	}
	got := newTold()
	for i := range objects {
		if objects[i].Covered(objects[:i]) {
			continue
		}
		var lines, again bytes.Buffer
		n, err := Messages(t.Context(), quiet(), src, &objects[i], objects[:i], t.TempDir(), &lines)
		if err != nil {
			t.Fatal(err)
		}
		if m := got.read(t, lines.Bytes()); m != n.Messages {
			t.Errorf("%s: %d messages are counted, %d are there", objects[i].Key, n.Messages, m)
		}
		if _, err := Messages(t.Context(), quiet(), src, &objects[i], objects[:i], t.TempDir(), &again); err != nil || !bytes.Equal(lines.Bytes(), again.Bytes()) {
			t.Errorf("%s gives other lines the second time: %v", objects[i].Key, err)
		}
	}
	return got, objects
}

// TestAnArchiveGivesItsMessagesBack: every row once, though two nodes have copied
// some of them, from the object store and from a directory.
func TestAnArchiveGivesItsMessagesBack(t *testing.T) {
	bucket, merged, single := server(t), open(t), open(t)
	want := newTold()
	for i := range 30 {
		for shard := range telemetry.ShardID(2) {
			b := varied(shard, i)
			b.Rows = slices.Clone(b.Rows)
			for d := range b.Devices {
				b.Devices[d] = fmt.Sprintf("%s%d", b.Devices[d], shard)
			}
			for d := range b.Updates {
				b.Updates[d].Device = fmt.Sprintf("%s%d", b.Updates[d].Device, shard)
			}
			for _, s := range []*parquet.Store{merged, single} {
				if _, err := s.Write(t.Context(), b); err != nil {
					t.Fatal(err)
				}
			}
			if i < 24 {
				want.batch(b)
			}
		}
	}
	for shard := range telemetry.ShardID(2) {
		for did := true; did; {
			var err error
			if did, err = merged.Compact(t.Context(), shard); err != nil {
				t.Fatal(err)
			}
		}
	}
	always := func(telemetry.ShardID) bool { return true }
	for prefix, f := range map[string]Files{"site/x/": merged, "site/y/": single} {
		a, err := New(quiet(), nil, Config{Prefix: func() string { return prefix }, Leads: always}, f, bucket)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Round(t.Context(), hours(30)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, got told) {
		t.Helper()
		if !maps.Equal(got.readings, want.readings) || !maps.Equal(got.attributes, want.attributes) {
			t.Errorf("%s gives %d readings and %v, want %d and %v", what, len(got.readings), got.attributes, len(want.readings), want.attributes)
		}
	}
	one, objects := restored(t, bucket, "site/x/")
	check("one archive", one)
	both, twice := restored(t, bucket, "site/")
	check("two archives of the same", both)
	if len(objects) >= len(twice)/2 {
		t.Errorf("%d and %d objects: nothing is merged or nothing is there twice", len(objects), len(twice))
	}
	dir := t.TempDir()
	for _, o := range twice {
		path := filepath.Join(dir, filepath.FromSlash(o.Key))
		var b bytes.Buffer
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), bucket.Get(t.Context(), o.Key, &b), os.WriteFile(path, b.Bytes(), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	local, _ := restored(t, Dir(dir), "")
	check("a directory", local)
}

func TestADamagedObjectIsNamed(t *testing.T) {
	files, dir := open(t), t.TempDir()
	seg, err := files.Write(t.Context(), varied(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := files.Open(0, seg.From, seg.To)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	data[len(data)/3] ^= 1
	key := parquet.FolderName(0) + "/" + parquet.Name(seg.Range())
	if err := errors.Join(os.Mkdir(filepath.Join(dir, parquet.FolderName(0)), 0o755), os.WriteFile(filepath.Join(dir, key), data, 0o600)); err != nil {
		t.Fatal(err)
	}
	objects, err := Objects(t.Context(), Dir(dir), "")
	if err != nil || len(objects) != 1 {
		t.Fatal(objects, err)
	}
	if _, err := Messages(t.Context(), quiet(), Dir(dir), &objects[0], nil, t.TempDir(), io.Discard); err == nil || !strings.Contains(err.Error(), key) {
		t.Errorf("a damaged object: %v", err)
	}
}
