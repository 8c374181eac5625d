package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/internal/memory"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// node is a server on a real listener with an in-memory cluster behind it.
type node struct {
	t       *testing.T
	cluster *memory.Cluster
	server  *api.Server
	url     string
	http    *http.Client
	log     *syncBuffer
	reg     *prometheus.Registry
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func start(t *testing.T, cfg api.Config) *node {
	t.Helper()
	cluster, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, cluster: cluster, log: &syncBuffer{}, reg: prometheus.NewRegistry()}
	backend := cluster.Backend()
	backend.Gatherer = n.reg
	cfg.Node, cfg.Version = "n0", "test"
	n.server, err = api.New(slog.New(slog.NewTextHandler(n.log, nil)), n.reg, cfg, backend)
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(n.server.Handler())
	n.url, n.http = ts.URL, ts.Client()
	n.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(func() {
		cluster.Close()
		n.http.CloseIdleConnections()
		ts.Close()
	})
	return n
}

type reply struct {
	status int
	header http.Header
	body   string
}

func (n *node) do(method, path string, body io.Reader, header ...string) reply {
	n.t.Helper()
	req, err := http.NewRequest(method, n.url+path, body)
	if err != nil {
		n.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := n.http.Do(req)
	if err != nil {
		n.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		n.t.Fatalf("%s %s: read the answer: %v", method, path, err)
	}
	return reply{res.StatusCode, res.Header, string(text)}
}

func (n *node) get(path string, header ...string) reply { return n.do("GET", path, nil, header...) }

func decode[T any](t *testing.T, r reply) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		t.Fatalf("answer %d %q: %v", r.status, r.body, err)
	}
	return v
}

// wantProblem checks the form of RFC 9457 and the words in detail.
func wantProblem(t *testing.T, r reply, status int, words ...string) api.Problem {
	t.Helper()
	if r.status != status || r.header.Get("Content-Type") != api.ProblemContentType {
		t.Fatalf("got %d %s %s, want a problem with status %d", r.status, r.header.Get("Content-Type"), r.body, status)
	}
	p := decode[api.Problem](t, r)
	if p.Status != status || p.Title != http.StatusText(status) {
		t.Errorf("problem %s does not repeat its status %d", r.body, status)
	}
	for _, w := range words {
		if !strings.Contains(p.Detail, w) {
			t.Errorf("detail %q lacks %q", p.Detail, w)
		}
	}
	return p
}

const second = int64(1_000_000)

func fill(n *node) {
	n.cluster.Insert("pump-7",
		store.Point{Time: 1769181886123456, Received: 1769181887 * second, Sensor: "temperature", Value: 21.52, Score: 0.13},
		store.Point{Time: 1769181886123456, Received: 1769181887 * second, Sensor: "door, \"front\"", Value: 1, Quality: telemetry.QualityBool},
		store.Point{Time: 1769181887 * second, Received: 1769181888 * second, Sensor: "temperature", Value: 1e-7, Score: 0.5},
		store.Point{Time: 1769181888 * second, Received: 1769181889 * second, Sensor: "temperature", Value: -0.1},
	)
	n.cluster.Insert("pump-8", store.Point{Time: second, Received: second, Sensor: "s", Value: 1e21})
	n.cluster.AddAnomaly(api.EventOpened, telemetry.Anomaly{ID: "0-5-0", Device: "pump-7", Sensor: "temperature", Opened: 1769181887 * second, Severity: 71.5, Cause: "spike", Value: 1e-7, Expected: 21, Low: 20, High: 22})
	n.cluster.AddAnomaly(api.EventClosed, telemetry.Anomaly{ID: "0-3-0", Device: "pump-8", Sensor: "s", Opened: second, Closed: 2 * second, Severity: 5, Cause: "level"})
}

func TestEveryRouteAnswersAsTheContractSays(t *testing.T) {
	n := start(t, api.Config{})
	fill(n)
	bad := n.do("POST", "/api/v1/telemetry", strings.NewReader("\xff\n"), "Content-Type", "application/x-ndjson")
	if bad.status != 422 {
		t.Fatalf("got %d %s", bad.status, bad.body)
	}
	for _, c := range []struct{ path, want string }{
		{"/healthz", `{"status":"ok","node":"n0"}`},
		{"/readyz", `{"status":"ready","node":"n0"}`},
		{"/api/v1/status", `{"cluster_id":"c1","node":"n0","version":"test","store":"memory","zone_safe":false,` +
			`"nodes":[{"id":"n0","zone":"a","state":"alive","mqtt":"127.0.0.1:1883","http":"127.0.0.1:8080"}],` +
			`"shards":[{"id":0,"leader":"n0","replicas":[{"node":"n0","zone":"a","role":"leader"}],"committed":12,"applied":11,"flushed":10,"backlog_bytes":99}]}`},
		{"/api/v1/ledger", `{"totals":{"received":1,"refused":0,"quarantined":1,"duplicate":0,"applied":0,"flushed":0,"pending":0},` +
			`"shards":[{"id":0,"received":1,"refused":0,"quarantined":1,"duplicate":0,"applied":0,"flushed":0,"pending":0}]}`},
		{"/api/v1/devices", `{"devices":[{"id":"pump-7","first_seen":"2026-01-23T15:24:47.000000Z","last_seen":"2026-01-23T15:24:49.000000Z","attributes":{"model":"m1"}}` + "\n" +
			`,{"id":"pump-8","first_seen":"1970-01-01T00:00:01.000000Z","last_seen":"1970-01-01T00:00:01.000000Z","attributes":{"model":"m1"}}` + "\n" + `]}`},
		{"/api/v1/devices/pump-7", `{"id":"pump-7","first_seen":"2026-01-23T15:24:47.000000Z","last_seen":"2026-01-23T15:24:49.000000Z","attributes":{"model":"m1"},"latest":[` +
			`{"time":"2026-01-23T15:24:46.123456Z","sensor":"door, \"front\"","value":1,"score":0,"quality":8},{"time":"2026-01-23T15:24:48.000000Z","sensor":"temperature","value":-0.1,"score":0}],` +
			`"anomalies":[{"id":"0-5-0","device_id":"pump-7","sensor":"temperature","opened":"2026-01-23T15:24:47.000000Z","closed":null,"severity":71.5,"cause":"spike","value":1e-7,"expected":21,"low":20,"high":22,"grade":"warning"}]}`},
		{"/api/v1/devices/pump-7/readings", `{"readings":[{"time":"2026-01-23T15:24:46.123456Z","sensor":"door, \"front\"","value":1,"score":0,"quality":8},` +
			`{"time":"2026-01-23T15:24:46.123456Z","sensor":"temperature","value":21.52,"score":0.13},{"time":"2026-01-23T15:24:47.000000Z","sensor":"temperature","value":1e-7,"score":0.5},` +
			`{"time":"2026-01-23T15:24:48.000000Z","sensor":"temperature","value":-0.1,"score":0}]}`},
		// from is inclusive, to exclusive, both forms of time.
		{"/api/v1/devices/pump-7/readings?sensor=temperature&from=1769181887000&to=2026-01-23T15:24:48Z", `{"readings":[{"time":"2026-01-23T15:24:47.000000Z","sensor":"temperature","value":1e-7,"score":0.5}]}`},
		{"/api/v1/devices/pump-7/readings?from=2026-01-23T15:24:48+00:00", `{"readings":[{"time":"2026-01-23T15:24:48.000000Z","sensor":"temperature","value":-0.1,"score":0}]}`},
		{"/api/v1/devices/pump-8/readings?to=1000", `{"readings":[]}`},
		{"/api/v1/anomalies?open=false", `{"anomalies":[{"id":"0-3-0","device_id":"pump-8","sensor":"s","opened":"1970-01-01T00:00:01.000000Z","closed":"1970-01-01T00:00:02.000000Z","severity":5,"cause":"level","value":0,"expected":0,"low":0,"high":0,"grade":"normal"}` + "\n" + `]}`},
		{"/api/v1/anomalies?device=pump-9", `{"anomalies":[]}`},
		{"/api/v1/anomalies?from=1000&to=1001&open=true", `{"anomalies":[]}`},
		{"/api/v1/quarantine?device=pump-7", `{"quarantine":[]}`},
	} {
		r := n.get(c.path)
		if r.status != 200 || r.header.Get("Content-Type") != "application/json" || strings.TrimSuffix(r.body, "\n") != c.want {
			t.Errorf("GET %s: %d %s\ngot  %s\nwant %s", c.path, r.status, r.header.Get("Content-Type"), r.body, c.want)
		}
	}
	q := decode[struct{ Quarantine []map[string]any }](t, n.get("/api/v1/quarantine"))
	if len(q.Quarantine) != 1 || q.Quarantine[0]["payload"] != "/w==" || q.Quarantine[0]["payload_encoding"] != "base64" || q.Quarantine[0]["device_id"] != "" {
		t.Errorf("quarantine: %v", q)
	}
}

func TestQuarantineIsReplayedOrDropped(t *testing.T) {
	n := start(t, api.Config{})
	n.do("POST", "/api/v1/telemetry", strings.NewReader("{bad\n"), "Content-Type", "application/x-ndjson")
	wantProblem(t, n.do("POST", "/api/v1/quarantine/1/replay", nil), 422, "none of 1 messages")
	good := `{"device_id":"d","sensors":{"a":1}}`
	if c := decode[api.Counts](t, n.do("POST", "/api/v1/quarantine/1/replay", strings.NewReader(good), "Content-Type", "application/json")); c.Applied != 1 || c.Received != 1 {
		t.Errorf("replay: %+v", c)
	}
	wantProblem(t, n.do("POST", "/api/v1/quarantine/1/replay", nil), 404, `"1"`)
	n.do("POST", "/api/v1/telemetry", strings.NewReader("{bad\n"), "Content-Type", "application/x-ndjson")
	q := decode[api.QuarantineList](t, n.get("/api/v1/quarantine"))
	if len(q.Quarantine) != 1 || string(q.Quarantine[0].Payload) != "{bad" {
		t.Fatalf("quarantine: %+v", q)
	}
	path := "/api/v1/quarantine/" + q.Quarantine[0].ID
	if r := n.do("DELETE", path, nil); r.status != 204 || r.body != "" {
		t.Errorf("drop: %d %q", r.status, r.body)
	}
	wantProblem(t, n.do("DELETE", path, nil), 404)
}

func TestOperatorsActs(t *testing.T) {
	n := start(t, api.Config{})
	js := []string{"Content-Type", "application/json"}
	if r := n.do("POST", "/api/v1/cluster/init", strings.NewReader(`{"shards":24,"nodes":["n0"]}`), js...); r.status != 200 || decode[api.Status](t, r).ClusterID != "c1" {
		t.Errorf("init: %d %s", r.status, r.body)
	}
	wantProblem(t, n.do("POST", "/api/v1/cluster/init", strings.NewReader(`{"shards":24}`), js...), 409, "again")
	wantProblem(t, n.do("POST", "/api/v1/cluster/init", strings.NewReader(`{"shards":0}`), js...), 400, "shards is 0")
	wantProblem(t, n.do("POST", "/api/v1/cluster/init", strings.NewReader(`{"shards":"many"}`), js...), 422, "body.shards", "integer")
	wantProblem(t, n.do("POST", "/api/v1/cluster/init", strings.NewReader(`{"shard":1}`), js...), 422, "shard")
	wantProblem(t, n.do("POST", "/api/v1/cluster/init", strings.NewReader(`{`), js...), 400, "body")
	wantProblem(t, n.do("POST", "/api/v1/cluster/init", nil), 400, "body is required")
	wantProblem(t, n.do("POST", "/api/v1/cluster/init", strings.NewReader(strings.Repeat(" ", 1<<17)), js...), 413)
	wantProblem(t, n.do("POST", "/api/v1/cluster/init", strings.NewReader(`{"shards":1}`), "Content-Type", "text/plain"), 415)
	if r := n.do("POST", "/api/v1/nodes/n0/drain", nil); r.status != 202 || strings.TrimSpace(r.body) != `{"node":"n0","state":"draining"}` {
		t.Errorf("drain: %d %s", r.status, r.body)
	}
	wantProblem(t, n.do("POST", "/api/v1/nodes/n9/drain", nil), 404, `"n9"`)
	if r := n.do("DELETE", "/api/v1/nodes/n0/drain", nil); r.status != 202 || strings.TrimSpace(r.body) != `{"node":"n0","state":"alive"}` {
		t.Errorf("end of a drain: %d %s", r.status, r.body)
	}
	wantProblem(t, n.do("DELETE", "/api/v1/nodes/n9/drain", nil), 404, `"n9"`)
}

func TestEveryErrorIsAProblemWithARemedy(t *testing.T) {
	n := start(t, api.Config{})
	fill(n)
	for _, c := range []struct {
		method, path string
		status       int
		words        []string
	}{
		{"GET", "/", 404, []string{"/openapi.json"}},
		{"GET", "/api/v1/device", 404, []string{"no route"}},
		{"GET", "/api/v1/devices/", 404, nil},
		{"DELETE", "/api/v1/status", 405, []string{"use GET, HEAD"}},
		{"GET", "/api/v1/telemetry", 405, []string{"use POST"}},
		{"PUT", "/api/v1/devices/pump-7", 405, nil},
		{"OPTIONS", "/api/v1/devices", 405, nil},
		{"GET", "/api/v1/devices/unknown", 404, []string{`"unknown"`}},
		{"GET", "/api/v1/devices/unknown/readings", 404, []string{`"unknown"`}},
		{"GET", "/api/v1/devices/%2Fetc/readings", 400, []string{"device id", "begins with"}},
		{"GET", "/api/v1/devices/-x", 400, []string{"device id"}},
		{"GET", "/api/v1/devices/pump-7/readings?limit=0", 400, []string{"1 to 100000"}},
		{"GET", "/api/v1/devices/pump-7/readings?limit=100001", 400, []string{"cursor"}},
		{"GET", "/api/v1/devices/pump-7/readings?limit=ten", 400, []string{`"ten"`}},
		{"GET", "/api/v1/devices/pump-7/readings?form=2026-01-01T00:00:00Z", 400, []string{`"form"`, "from"}},
		{"GET", "/api/v1/devices/pump-7/readings?from=now&to=then&limit=-1", 400, []string{`from "now"`, `to "then"`, `limit "-1"`}},
		{"GET", "/api/v1/devices/pump-7/readings?from=2&to=1", 400, []string{"exchange"}},
		{"GET", "/api/v1/devices/pump-7/readings?sensor=a&sensor=b", 400, []string{"2 times"}},
		{"GET", "/api/v1/devices/pump-7/readings?cursor=AAAA", 400, []string{"leave it out"}},
		{"GET", "/api/v1/devices/pump-7/readings?format=xml", 400, []string{"json or csv"}},
		{"GET", "/api/v1/devices/pump-7/readings?sensor=%zz", 400, []string{"malformed"}},
		{"GET", "/api/v1/devices?cursor=x", 400, nil},
		{"GET", "/api/v1/devices?from=1", 400, []string{"limit, cursor"}},
		{"GET", "/api/v1/anomalies?open=maybe", 400, []string{"true nor false"}},
		{"GET", "/api/v1/anomalies?device=a%20b", 400, []string{"device id"}},
		{"GET", "/api/v1/anomalies?cursor=x", 400, nil},
		{"GET", "/api/v1/anomalies/stream?device=+", 400, nil},
		{"GET", "/api/v1/quarantine?limit=1001", 400, []string{"1 to 1000"}},
		{"GET", "/api/v1/quarantine?open=true", 400, []string{`"open"`}},
		{"GET", "/api/v1/status?pretty", 400, []string{"leave it out"}},
		{"DELETE", "/api/v1/quarantine/1?force=1", 400, nil},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			r := n.do(c.method, c.path, nil)
			wantProblem(t, r, c.status, c.words...)
			if c.status == 405 && r.header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
		})
	}
	if n.log.String() != "" {
		t.Errorf("mistakes of clients were logged: %s", n.log)
	}
}

func TestBackendErrorsBecomeStatuses(t *testing.T) {
	n := start(t, api.Config{})
	for _, c := range []struct {
		err    error
		status int
		after  string
		word   string
	}{
		{&api.UnavailableError{Reason: "shard 7 has no leader", RetryAfter: 1500 * time.Millisecond}, 503, "2", "shard 7 has no leader"},
		{store.ErrUnavailable, 503, "2", "store unavailable"},
		{api.ErrUnavailable, 503, "2", "try again"},
		{io.ErrUnexpectedEOF, 500, "", "internal error"},
	} {
		n.cluster.Hook(memory.Hooks{Status: func() error { return c.err }})
		r := n.get("/api/v1/status")
		wantProblem(t, r, c.status, c.word)
		if got := r.header.Get("Retry-After"); got != c.after {
			t.Errorf("%v: Retry-After %q, want %q", c.err, got, c.after)
		}
	}
	if got := n.log.String(); strings.Count(got, "level=ERROR") != 1 || !strings.Contains(got, "unexpected EOF") || !strings.Contains(got, "/api/v1/status") {
		t.Errorf("the internal error must be logged once, with its route: %s", got)
	}
	n.cluster.Hook(memory.Hooks{Ready: func() error { return io.ErrClosedPipe }})
	wantProblem(t, n.get("/readyz"), 503, "closed pipe")
}

func TestPanicCostsOneRequest(t *testing.T) {
	n := start(t, api.Config{})
	n.cluster.Hook(memory.Hooks{Ledger: func() error { panic("boom") }})
	wantProblem(t, n.get("/api/v1/ledger"), 500, "internal error")
	if got := n.log.String(); !strings.Contains(got, "boom") || !strings.Contains(got, "stack=") {
		t.Errorf("the panic is not in the log: %s", got)
	}
	if r := n.get("/healthz"); r.status != 200 {
		t.Errorf("afterwards: %d %s", r.status, r.body)
	}
}

func TestMetricsCountRequestsByRoute(t *testing.T) {
	n := start(t, api.Config{})
	n.get("/api/v1/devices/a")
	n.get("/api/v1/devices/b")
	n.get("/nowhere")
	n.do("POST", "/api/v1/telemetry", strings.NewReader(`[{"device_id":"d","sensors":{"a":1}},{}]`), "Content-Type", "application/json")
	text := n.get("/metrics").body
	for _, want := range []string{
		`sluice_api_requests_total{code="404",route="GET /api/v1/devices/{id}"} 2`,
		`sluice_api_requests_total{code="404",route="none"} 1`,
		`sluice_api_messages_total{outcome="applied"} 1`,
		`sluice_api_messages_total{outcome="quarantined"} 1`,
		"sluice_api_received_bytes_total 40",
		"sluice_api_requests_open 1",
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("metrics lack %s:\n%s", want, text)
		}
	}
}

func TestOpenAPIDescribesEveryRoute(t *testing.T) {
	n := start(t, api.Config{})
	r := n.get("/openapi.json")
	doc := decode[struct {
		OpenAPI    string
		Paths      map[string]map[string]json.RawMessage
		Components struct{ Schemas map[string]json.RawMessage }
	}](t, r)
	if r.status != 200 || doc.OpenAPI != "3.1.0" {
		t.Fatalf("%d %.200s", r.status, r.body)
	}
	for path, methods := range map[string]string{
		"/healthz": "get", "/readyz": "get", "/api/v1/status": "get", "/api/v1/ledger": "get", "/api/v1/telemetry": "post",
		"/api/v1/devices": "get", "/api/v1/devices/{id}": "get", "/api/v1/devices/{id}/readings": "get", "/api/v1/anomalies": "get",
		"/api/v1/anomalies/stream": "get", "/api/v1/quarantine": "get", "/api/v1/quarantine/{id}": "delete",
		"/api/v1/quarantine/{id}/replay": "post", "/api/v1/cluster/init": "post", "/api/v1/nodes/{id}/drain": "post",
		"/api/v1/anomalies/{id}/normal": "post", "/api/v1/anomalies/target": "put", "/api/v1/devices/{id}/maintenance": "put",
	} {
		op := string(doc.Paths[path][methods])
		if op == "" || !strings.Contains(op, api.ProblemContentType) || strings.Contains(op, "ErrorModel") {
			t.Errorf("%s %s: %q", methods, path, op)
		}
	}
	for _, schema := range []string{"Status", "Ledger", "Device", "ReadingList", "AnomalyList", "QuarantineList", "Counts"} {
		if doc.Components.Schemas[schema] == nil {
			t.Errorf("no schema %s", schema)
		}
	}
	var anomaly struct {
		Properties map[string]struct{ Type any }
	}
	if err := json.Unmarshal(doc.Components.Schemas["Anomaly"], &anomaly); err != nil || fmt.Sprint(anomaly.Properties["closed"].Type) != "[string null]" {
		t.Errorf("an open anomaly's closed is null, the schema says %v, %v", anomaly.Properties["closed"].Type, err)
	}
	if strings.Contains(r.body, "$schema") {
		t.Error("bodies carry $schema")
	}
}

func TestMiddlewareSeesEveryRoute(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	n := start(t, api.Config{Middleware: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			seen = append(seen, r.URL.Path)
			mu.Unlock()
			if r.Header.Get("Authorization") == "" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}})
	if r := n.get("/metrics"); r.status != 401 {
		t.Errorf("got %d", r.status)
	}
	if r := n.get("/healthz", "Authorization", "yes"); r.status != 200 {
		t.Errorf("got %d", r.status)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 2 {
		t.Errorf("seen %v", seen)
	}
}

func TestForeignPagesCannotPost(t *testing.T) {
	n := start(t, api.Config{})
	wantProblem(t, n.do("POST", "/api/v1/nodes/n0/drain", nil, "Sec-Fetch-Site", "cross-site"), 403, "browser")
	if r := n.get("/api/v1/status", "Sec-Fetch-Site", "cross-site"); r.status != 200 {
		t.Errorf("reading: %d", r.status)
	}
}

func TestConfigNamesEveryProblem(t *testing.T) {
	_, err := api.New(slog.New(slog.DiscardHandler), nil, api.Config{BodyBytesMax: 10, MessageBytesMax: 20, StreamsMax: -1}, api.Backend{})
	for _, want := range []string{"MessageBytesMax 20", "StreamsMax is -1", "Backend.Ingest", "Backend.Events"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %q", err, want)
		}
	}
}
