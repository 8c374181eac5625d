package api_test

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/internal/memory"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestCSVIsWhatItAlwaysWas(t *testing.T) {
	n := start(t, api.Config{})
	fill(n)
	golden, err := os.ReadFile(filepath.Join("testdata", "readings.csv"))
	if err != nil {
		t.Fatal(err)
	}
	path := "/api/v1/devices/pump-7/readings"
	for _, r := range []reply{n.get(path + "?format=csv"), n.get(path, "Accept", "text/csv"), n.get(path, "Accept", "application/json;q=0.5, text/csv"), n.get(path+"?format=csv", "Accept", "application/json")} {
		if r.status != 200 || r.body != string(golden) || !strings.HasPrefix(r.header.Get("Content-Type"), "text/csv") {
			t.Errorf("got %d %s\n%swant\n%s", r.status, r.header.Get("Content-Type"), r.body, golden)
		}
	}
	for _, accept := range []string{"", "*/*", "application/json, text/csv;q=0.9", "text/html", "text/csv;q=0"} {
		if r := n.get(path, "Accept", accept); r.header.Get("Content-Type") != "application/json" {
			t.Errorf("Accept %q gave %s", accept, r.header.Get("Content-Type"))
		}
	}
	rows, err := csv.NewReader(strings.NewReader(string(golden))).ReadAll()
	if err != nil || len(rows) != 5 || rows[1][1] != `door, "front"` {
		t.Errorf("the standard reader finds %q, %v", rows, err)
	}
}

func TestNextIsGivenInBothForms(t *testing.T) {
	n := start(t, api.Config{})
	fill(n)
	path := "/api/v1/devices/pump-7/readings?limit=3&from=1769181886000"
	page := n.get(path)
	list := decode[api.ReadingList](t, page)
	if len(list.Readings) != 3 || list.Next == "" {
		t.Fatalf("first page: %s", page.body)
	}
	link := n.get(path, "Accept", "text/csv").header.Get("Link")
	if link != page.header.Get("Link") || !strings.HasSuffix(link, `>; rel="next"`) {
		t.Errorf("Link of CSV %q, of JSON %q", link, page.header.Get("Link"))
	}
	next, _, _ := strings.Cut(link[1:], ">")
	last := n.get(next)
	list2 := decode[api.ReadingList](t, last)
	if len(list2.Readings) != 1 || list2.Next != "" || last.header.Get("Link") != "" {
		t.Errorf("last page: %s", last.body)
	}
	// A page that ends exactly at the end is the last one.
	if r := n.get("/api/v1/devices/pump-7/readings?limit=4"); strings.Contains(r.body, "next") {
		t.Errorf("a page beyond the end is promised: %s", r.body)
	}
	wantProblem(t, n.get("/api/v1/devices/pump-8/readings?cursor="+list.Next), 400, "not given for this list")
}

var paged = rapid.Custom(func(t *rapid.T) store.Point {
	// Few values, so that times, sensors and values coincide often.
	return store.Point{
		Time: rapid.Int64Range(0, 6).Draw(t, "time"), Sensor: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "sensor"),
		Value: rapid.SampledFrom([]float64{0, 1, -1, 0.5}).Draw(t, "value"),
	}
})

// TestPagesNeverRepeatNorSkip walks a device in pages while rows keep arriving
// anywhere: what was there at the start comes exactly once, nothing comes twice.
func TestPagesNeverRepeatNorSkip(t *testing.T) {
	n := start(t, api.Config{})
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		device := fmt.Sprintf("d%d", run)
		before := rapid.SliceOfN(paged, 1, 40).Draw(t, "before")
		n.cluster.Insert(device, before...)
		q := url.Values{"limit": {fmt.Sprint(rapid.IntRange(1, 7).Draw(t, "limit"))}}
		seen := map[string]int{}
		for {
			list := decode[api.ReadingList](n.t, n.get("/api/v1/devices/"+device+"/readings?"+q.Encode()))
			for _, r := range list.Readings {
				seen[fmt.Sprint(int64(r.Time), r.Sensor, r.Value)]++
			}
			if list.Next == "" {
				break
			}
			q.Set("cursor", list.Next)
			n.cluster.Insert(device, rapid.SliceOfN(paged, 0, 3).Draw(t, "meanwhile")...)
		}
		for _, p := range before {
			if k := fmt.Sprint(p.Time, p.Sensor, p.Value); seen[k] != 1 {
				t.Fatalf("%s came %d times", k, seen[k])
			}
		}
		for k, times := range seen {
			if times != 1 {
				t.Fatalf("%s came %d times", k, times)
			}
		}
	})
}

func TestPagesOfOtherListsNeverRepeatNorSkip(t *testing.T) {
	n := start(t, api.Config{})
	want := map[string][]string{}
	for i := range 25 {
		id := fmt.Sprintf("0-%d-0", i)
		n.cluster.AddAnomaly(api.EventOpened, telemetry.Anomaly{ID: id, Device: "d", Opened: int64(i / 4)})
		n.cluster.Insert(fmt.Sprintf("d%02d", i), store.Point{Sensor: "s"})
		want["anomalies"] = append(want["anomalies"], id)
		want["devices"] = append(want["devices"], fmt.Sprintf("d%02d", i))
	}
	n.do("POST", "/api/v1/telemetry", strings.NewReader(strings.Repeat("{}\n", 25)), "Content-Type", ndjson)
	for i := range 25 {
		want["quarantine"] = append(want["quarantine"], fmt.Sprint(i+1))
	}
	for name, ids := range want {
		for limit := 1; limit <= 26; limit += 5 {
			var got []string
			next := ""
			for {
				r := n.get(fmt.Sprintf("/api/v1/%s?limit=%d&cursor=%s", name, limit, next))
				list := decode[map[string]any](t, r)
				entries, _ := list[name].([]any)
				for _, e := range entries {
					got = append(got, e.(map[string]any)["id"].(string))
				}
				if len(entries) > limit {
					t.Fatalf("%d %s on a page of %d", len(entries), name, limit)
				}
				if next, _ = list["next"].(string); next == "" {
					break
				}
			}
			slices.Sort(got)
			slices.Sort(ids)
			if !slices.Equal(got, ids) {
				t.Errorf("%s in pages of %d: got %v, want %v", name, limit, got, ids)
			}
		}
	}
}

// discard is a client that reads everything and keeps nothing.
type discard struct {
	*httptest.ResponseRecorder
	n, writes, largest int
}

func (d *discard) Write(b []byte) (int, error) {
	d.n, d.writes, d.largest = d.n+len(b), d.writes+1, max(d.largest, len(b))
	return len(b), nil
}

func manyPoints(n int) []store.Point {
	points := make([]store.Point, n)
	for i := range points {
		points[i] = store.Point{Time: 1769181886123456 + int64(i)*1000, Sensor: []string{"temperature", "humidity"}[i%2], Value: 20 + float64(i%1000)/100, Score: 0.125}
	}
	return points
}

func TestAnswerOf100kRowsIsNeverBuiltAsText(t *testing.T) {
	n := start(t, api.Config{})
	points := manyPoints(100_001)
	n.cluster.Hook(memory.Hooks{Readings: func(_ context.Context, q store.Query) ([]store.Point, error) {
		return points[:min(q.Limit, len(points))], nil
	}})
	for _, format := range []string{"json", "csv"} {
		req := httptest.NewRequest("GET", "/api/v1/devices/d/readings?limit=100000&format="+format, nil)
		w := &discard{ResponseRecorder: httptest.NewRecorder()}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n.server.Handler().ServeHTTP(w, req)
		runtime.ReadMemStats(&after)
		allocated := after.TotalAlloc - before.TotalAlloc
		if w.n < 4<<20 || w.largest > 64<<10 || allocated > 512<<10 {
			t.Errorf("%s: %d bytes in %d writes, the largest %d, with %d bytes allocated", format, w.n, w.writes, w.largest, allocated)
		}
	}
	list := decode[api.ReadingList](t, n.get("/api/v1/devices/d/readings?limit=100000"))
	if len(list.Readings) != 100_000 || list.Next == "" {
		t.Errorf("%d readings, next %q", len(list.Readings), list.Next)
	}
}

func TestQueriesWaitForTheirPlace(t *testing.T) {
	n := start(t, api.Config{ReadsMax: 1})
	began, end := make(chan struct{}, 2), make(chan struct{})
	n.cluster.Hook(memory.Hooks{Readings: func(context.Context, store.Query) ([]store.Point, error) {
		began <- struct{}{}
		<-end
		return nil, nil
	}})
	answers := make(chan reply, 2)
	for range 2 {
		go func() { answers <- n.get("/api/v1/devices/d/readings") }()
	}
	<-began
	select {
	case <-began:
		t.Error("two queries at a time")
	case <-time.After(50 * time.Millisecond):
	}
	close(end)
	for range 2 {
		if r := <-answers; r.status != 200 {
			t.Errorf("got %d %s", r.status, r.body)
		}
	}
}

func BenchmarkReadingsJSON(b *testing.B) { benchmarkReadings(b, "json") }
func BenchmarkReadingsCSV(b *testing.B)  { benchmarkReadings(b, "csv") }

func benchmarkReadings(b *testing.B, format string) {
	cluster, err := memory.New()
	if err != nil {
		b.Fatal(err)
	}
	points := manyPoints(10_000)
	cluster.Hook(memory.Hooks{Readings: func(context.Context, store.Query) ([]store.Point, error) { return points, nil }})
	srv, err := api.New(quiet(), nil, api.Config{}, cluster.Backend())
	if err != nil {
		b.Fatal(err)
	}
	req := httptest.NewRequest("GET", "/api/v1/devices/d/readings?limit=10000&format="+format, nil)
	b.ReportAllocs()
	for b.Loop() {
		w := &discard{ResponseRecorder: httptest.NewRecorder()}
		srv.Handler().ServeHTTP(w, req)
		b.SetBytes(int64(w.n))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/10_000, "ns/row")
}

func BenchmarkPublish(b *testing.B) {
	cluster, err := memory.New()
	if err != nil {
		b.Fatal(err)
	}
	cluster.Hook(memory.Hooks{Publish: func(_ *telemetry.Publish, done func(telemetry.Result)) bool {
		done(telemetry.Result{Applied: 1})
		return true
	}})
	srv, err := api.New(quiet(), nil, api.Config{}, cluster.Backend())
	if err != nil {
		b.Fatal(err)
	}
	body := goodLines(10_000)
	for _, media := range []string{ndjson, "application/json"} {
		b.Run(media, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				req := httptest.NewRequest("POST", "/api/v1/telemetry", io.NopCloser(strings.NewReader(body)))
				req.Header.Set("Content-Type", media)
				w := httptest.NewRecorder()
				srv.Handler().ServeHTTP(w, req)
				if w.Code != 200 {
					b.Fatal(w.Body)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/10_000, "ns/message")
		})
	}
}
