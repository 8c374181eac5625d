package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/api/internal/memory"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a real server; front sees every request first and may answer it.
type node struct {
	*memory.Cluster
	client *client.Client
	ts     *httptest.Server
	direct http.Handler // the server without front

	mu    sync.Mutex
	front func(http.ResponseWriter, *http.Request) bool
	seen  []*http.Request
}

func start(t *testing.T) *node {
	t.Helper()
	cluster, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Cluster: cluster}
	srv, err := api.New(slog.New(slog.DiscardHandler), nil, api.Config{Node: "n0", MessageBytesMax: 1024, Middleware: n.middleware}, cluster.Backend())
	if err != nil {
		t.Fatal(err)
	}
	n.ts = httptest.NewServer(srv.Handler())
	n.client, err = client.New(client.Config{URL: n.ts.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.client.Close()
		cluster.Close()
		n.ts.Close()
	})
	return n
}

func (n *node) middleware(next http.Handler) http.Handler {
	n.direct = next
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.mu.Lock()
		n.seen = append(n.seen, r)
		front := n.front
		n.mu.Unlock()
		if front == nil || !front(w, r) {
			next.ServeHTTP(w, r)
		}
	})
}

func (n *node) intercept(front func(http.ResponseWriter, *http.Request) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.front, n.seen = front, nil
}

func (n *node) requests() []*http.Request {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.seen)
}

func all[T any](t *testing.T, seq iter.Seq2[T, error]) []T {
	t.Helper()
	var got []T
	for v, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v)
	}
	return got
}

func lines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"device_id":"d%d","timestamp":"2026-01-23T15:24:46Z","sensors":{"a":%d}}`+"\n", i%3, i)
	}
	return b.String()
}

func TestEveryCallReachesItsRoute(t *testing.T) {
	n, ctx := start(t), t.Context()
	c := n.client
	n.Insert("d", store.Point{Time: 1_000_000, Received: 2_000_000, Sensor: "a", Value: 1.5, Score: 0.25})
	n.AddAnomaly(api.EventOpened, telemetry.Anomaly{ID: "0-1-0", Device: "d", Opened: 1_000_000})
	if err := errors.Join(c.Health(ctx), c.Ready(ctx), c.Drain(ctx, "n0"), c.EndDrain(ctx, "n0")); err != nil {
		t.Error(err)
	}
	if s, err := c.Init(ctx, api.InitRequest{Shards: 24}); err != nil || s.ClusterID != "c1" {
		t.Errorf("init: %+v, %v", s, err)
	}
	if s, err := c.Status(ctx); err != nil || len(s.Nodes) != 1 || s.Shards[0].BacklogBytes != 99 {
		t.Errorf("status: %+v, %v", s, err)
	}
	if counts, err := c.Publish(ctx, []byte(lines(3)), ""); err != nil || counts.Applied != 3 {
		t.Errorf("publish: %+v, %v", counts, err)
	}
	if counts, err := c.PublishStream(ctx, strings.NewReader(lines(3)), "k"); err != nil || counts.Duplicate != 3 {
		t.Errorf("stream: %+v, %v", counts, err)
	}
	if l, err := c.Ledger(ctx); err != nil || l.Totals.Received != 6 || l.Shards[0].Applied != 3 {
		t.Errorf("ledger: %+v, %v", l, err)
	}
	if d, err := c.Device(ctx, "d"); err != nil || len(d.Latest) != 1 || d.Latest[0].Value != 1.5 || len(d.Anomalies) != 1 {
		t.Errorf("device: %+v, %v", d, err)
	}
	if got := all(t, c.Devices(ctx, "")); len(got) != 4 {
		t.Errorf("devices: %+v", got)
	}
	open := true
	if got := all(t, c.Anomalies(ctx, client.ListQuery{Device: "d", Open: &open})); len(got) != 1 || got[0].Closed != nil {
		t.Errorf("anomalies: %+v", got)
	}
	counts, err := c.Publish(ctx, []byte("{bad\n"), "")
	if !errors.Is(err, api.ErrInvalid) || counts.Quarantined != 1 || len(counts.Errors) != 1 {
		t.Errorf("bad message: %+v, %v", counts, err)
	}
	q := all(t, c.Quarantine(ctx, client.ListQuery{}))
	if len(q) != 1 || string(q[0].Payload) != "{bad" {
		t.Fatalf("quarantine: %+v", q)
	}
	if counts, err := c.Replay(ctx, q[0].ID, nil); err == nil || counts.Quarantined != 1 {
		t.Errorf("replay of a bad message: %+v, %v", counts, err)
	}
	if counts, err := c.Replay(ctx, q[0].ID, []byte(`{"device_id":"d","sensors":{"b":2}}`)); err != nil || counts.Applied != 1 {
		t.Errorf("replay: %+v, %v", counts, err)
	}
	if err := c.Drop(ctx, q[0].ID); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("drop of what is gone: %v", err)
	}
	if b, err := c.OpenAPI(ctx); err != nil || !bytes.Contains(b, []byte("3.1.0")) {
		t.Errorf("openapi: %v", err)
	}
	if _, err := c.Metrics(ctx); err != nil {
		t.Errorf("metrics: %v", err)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	n, ctx := start(t), t.Context()
	_, err := n.client.Device(ctx, "nobody")
	if !errors.Is(err, api.ErrNotFound) || errors.Is(err, api.ErrInvalid) || !strings.Contains(err.Error(), "GET /api/v1/devices/nobody: 404 Not Found") {
		t.Errorf("got %v", err)
	}
	if _, err := n.client.Device(ctx, "a b/c"); !errors.Is(err, api.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	_, _ = n.client.Init(ctx, api.InitRequest{Shards: 1})
	if _, err := n.client.Init(ctx, api.InitRequest{Shards: 1}); !errors.Is(err, api.ErrConflict) {
		t.Errorf("got %v", err)
	}
	n.intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "<html>proxy", http.StatusForbidden)
		return true
	})
	if _, err := n.client.Status(ctx); err == nil || !strings.Contains(err.Error(), "check the address") {
		t.Errorf("got %v", err)
	}
	n.ts.Close()
	nobody, _ := client.New(client.Config{URL: n.ts.URL, Retries: -1})
	if _, err := nobody.Status(ctx); err == nil || !strings.Contains(err.Error(), "is the node running") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"", "localhost:8080", "ftp://x", "http://", "http://[::1"} {
		if _, err := client.New(client.Config{URL: bad}); err == nil || !strings.Contains(err.Error(), "http://HOST:PORT") {
			t.Errorf("address %q: %v", bad, err)
		}
	}
}

// failing answers the first n requests with a transient error.
func failing(n int, status int) func(http.ResponseWriter, *http.Request) bool {
	var mu sync.Mutex
	return func(w http.ResponseWriter, _ *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if n--; n < 0 {
			return false
		}
		if status == 0 {
			panic(http.ErrAbortHandler) // the connection breaks
		}
		w.WriteHeader(status)
		return true
	}
}

func TestHarmlessCallsAreRepeated(t *testing.T) {
	n, ctx := start(t), t.Context()
	for _, status := range []int{0, 429, 502, 503, 504} {
		n.intercept(failing(2, status))
		if _, err := n.client.Status(ctx); err != nil {
			t.Errorf("after two times %d: %v", status, err)
		}
		n.intercept(failing(2, status))
		if counts, err := n.client.Publish(ctx, []byte(lines(1)), ""); err != nil || counts.Received != 1 {
			t.Errorf("publish after two times %d: %+v, %v", status, counts, err)
		}
		key := ""
		for _, r := range n.requests() {
			k := r.Header.Get("Idempotency-Key")
			if k == "" || key != "" && k != key {
				t.Errorf("a repeat came with key %q after %q", k, key)
			}
			key = k
		}
	}
	n.intercept(failing(1, 503))
	if err := n.client.Ready(ctx); !errors.Is(err, api.ErrUnavailable) || len(n.requests()) != 1 {
		t.Errorf("ready: %v after %d requests", err, len(n.requests()))
	}
	n.intercept(failing(1, 503))
	if _, err := n.client.Init(ctx, api.InitRequest{Shards: 1}); err == nil || len(n.requests()) != 1 {
		t.Errorf("init: %v after %d requests", err, len(n.requests()))
	}
	n.intercept(failing(99, 503))
	patient, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := n.client.Status(patient); !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("the last answer must be told when the time is up: %v", err)
	}
}

func TestRetryAfterIsRespected(t *testing.T) {
	n := start(t)
	first := true
	n.intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		if !first {
			return false
		}
		first = false
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(503)
		return true
	})
	begin := time.Now()
	if _, err := n.client.Status(t.Context()); err != nil || time.Since(begin) < time.Second {
		t.Errorf("%v after %s", err, time.Since(begin))
	}
}

func TestReadingsWalkAllPages(t *testing.T) {
	n, ctx := start(t), t.Context()
	var want []store.Point
	for i := range 25 {
		p := store.Point{Time: int64(i/3) * 1_000_000, Sensor: []string{"a", "b", "c"}[i%3], Value: float64(i) / 7}
		want = append(want, p)
		n.Insert("d", p)
	}
	for _, page := range []int{1, 2, 5, 24, 25, 26, 0} {
		q := client.ReadingsQuery{Device: "d", Page: page}
		got := all(t, n.client.Readings(ctx, q))
		if len(got) != len(want) {
			t.Fatalf("pages of %d: %d readings", page, len(got))
		}
		for i, p := range want {
			if got[i] != api.ReadingOf(&p) {
				t.Errorf("pages of %d, reading %d: got %+v, want %+v", page, i, got[i], p)
			}
		}
		var text bytes.Buffer
		rows, err := n.client.ReadingsCSV(ctx, q, &text)
		if err != nil || rows != 25 || strings.Count(text.String(), "\n") != 26 || strings.Count(text.String(), "time,") != 1 {
			t.Errorf("CSV in pages of %d: %d rows, %v\n%s", page, rows, err, text.String())
		}
	}
	q := client.ReadingsQuery{Device: "d", Sensor: "b", From: time.Unix(2, 0), To: time.Unix(4, 0).Add(time.Microsecond)}
	if got := all(t, n.client.Readings(ctx, q)); len(got) != 3 {
		t.Errorf("a part: %+v", got)
	}
	for range n.client.Readings(ctx, client.ReadingsQuery{Device: "d", Page: 1}) {
		break // leaving early must not ask for more
	}
	for _, err := range n.client.Readings(ctx, client.ReadingsQuery{Device: "x"}) {
		if !errors.Is(err, api.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	}
}

func TestUploadSettlesEveryLine(t *testing.T) {
	for _, cfg := range []client.UploadConfig{{}, {Lines: 7, Concurrency: 1}, {Lines: 7, Concurrency: 5, Compress: true}} {
		n := start(t)
		body := lines(20) + "{bad\n\n" + strings.Repeat("x", 2000) + "\n" + lines(40)[len(lines(20)):] + strings.Repeat("{}\n", 20)
		var rejected, progress []int64
		cfg.Rejected = func(line int64, _ string) { rejected = append(rejected, line) }
		cfg.Progress = func(l int64, _ api.Counts) { progress = append(progress, l) }
		total, err := n.client.Upload(t.Context(), strings.NewReader(body), cfg)
		if err != nil || total.Received != 62 || total.Applied != 40 || total.Quarantined != 21 || total.Refused != 1 {
			t.Errorf("%+v: %+v, %v", cfg, total, err)
		}
		if len(rejected) != 22 || rejected[0] != 21 || rejected[1] != 23 || rejected[2] != 44 || !slices.IsSorted(rejected) {
			t.Errorf("rejected lines %v", rejected)
		}
		if !slices.IsSorted(progress) || progress[len(progress)-1] != 63 {
			t.Errorf("progress %v", progress)
		}
	}
}

func TestUploadResumesWhereItBroke(t *testing.T) {
	n := start(t)
	failed := make(chan struct{})
	n.Hook(memory.Hooks{Publish: func(p *telemetry.Publish, done func(telemetry.Result)) bool {
		if bytes.Contains(p.Payload, []byte(`"a":25}`)) {
			select {
			case <-failed:
			default:
				done(telemetry.Result{Refused: 1, Refusal: telemetry.RefusalQuota})
				return true
			}
		}
		return false
	}})
	impatient, err := client.New(client.Config{URL: n.ts.URL, Retries: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer impatient.Close()
	settled := int64(0)
	cfg := client.UploadConfig{Lines: 10, Concurrency: 3, Key: "file-1", Progress: func(l int64, _ api.Counts) { settled = l }}
	total, err := impatient.Upload(t.Context(), strings.NewReader(lines(60)), cfg)
	if !errors.Is(err, api.ErrUnavailable) || !strings.Contains(err.Error(), "lines 21 to 30") || settled != 20 || total.Applied != 20 {
		t.Fatalf("settled %d, %+v, %v", settled, total, err)
	}
	close(failed)
	cfg.Skip = settled
	total, err = impatient.Upload(t.Context(), strings.NewReader(lines(60)), cfg)
	if err != nil || settled != 60 || total.Received != 40 {
		t.Errorf("settled %d, %+v, %v", settled, total, err)
	}
	if l, _ := n.Ledger(t.Context()); l.Totals.Applied != 60 {
		t.Errorf("ledger %+v", l.Totals)
	}
	if _, err := impatient.Upload(t.Context(), io.MultiReader(strings.NewReader("{}\n"), errReader{}), client.UploadConfig{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a broken file: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := impatient.Upload(gone, strings.NewReader(lines(60)), client.UploadConfig{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrNoProgress }

func TestEventsGoOnAfterABreak(t *testing.T) {
	n := start(t)
	publish := func(i int) {
		n.AddAnomaly(api.EventOpened, telemetry.Anomaly{ID: fmt.Sprint(i), Device: "d", Sensor: "s", Opened: int64(i)})
	}
	next, stop := iter.Pull2(n.client.Events(t.Context(), client.EventsQuery{Device: "d"}))
	defer stop()
	arrived, repeated := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(repeated)
		for { // nobody can tell from outside when the stream is subscribed
			publish(1)
			select {
			case <-arrived:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	e, err, ok := next()
	close(arrived)
	<-repeated
	if err != nil || !ok || e.Kind != api.EventOpened || e.Anomaly.ID != "1" || e.ID == "" {
		t.Fatalf("got %+v, %v, %v", e, err, ok)
	}
	n.ts.CloseClientConnections()
	publish(2)
	publish(3)
	for _, want := range []string{"2", "3"} {
		e, err, ok := next()
		for err == nil && ok && e.Anomaly.ID == "1" {
			e, err, ok = next()
		}
		if err != nil || !ok || e.Anomaly.ID != want {
			t.Fatalf("got %+v, %v, %v, want %s", e, err, ok, want)
		}
	}
	last := n.requests()[len(n.requests())-1]
	if last.Header.Get("Last-Event-ID") == "" {
		t.Error("the stream was not resumed but begun again")
	}
}

func TestEventsEndWhereNoRepeatHelps(t *testing.T) {
	n := start(t)
	count := 0
	for _, err := range n.client.Events(t.Context(), client.EventsQuery{Device: "a b"}) {
		if count++; !errors.Is(err, api.ErrInvalid) {
			t.Errorf("got %v", err)
		}
	}
	n.ts.Close()
	nobody, _ := client.New(client.Config{URL: n.ts.URL, Retries: -1})
	for _, err := range nobody.Events(t.Context(), client.EventsQuery{}) {
		if count++; err == nil {
			t.Error("no error")
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for e, err := range n.client.Events(gone, client.EventsQuery{}) {
		t.Errorf("got %+v, %v", e, err)
	}
	if count != 2 {
		t.Errorf("%d errors, want 2", count)
	}
}

func TestEventsReportAGap(t *testing.T) {
	n := start(t)
	n.AddAnomaly(api.EventOpened, telemetry.Anomaly{ID: "1", Device: "d"})
	var kinds []api.EventKind
	for e, err := range n.client.Events(t.Context(), client.EventsQuery{After: "00000000.5"}) {
		if err != nil {
			t.Fatal(err)
		}
		if kinds = append(kinds, e.Kind); len(kinds) == 2 {
			break
		}
	}
	if !slices.Equal(kinds, []api.EventKind{api.EventGap, api.EventOpened}) {
		t.Errorf("got %v", kinds)
	}
}
