package api_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/internal/memory"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// sse is one open stream.
type sse struct {
	t    *testing.T
	body io.Closer
	r    *bufio.Reader
}

func (n *node) stream(path, after string) *sse {
	n.t.Helper()
	req, err := http.NewRequest("GET", n.url+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	if after != "" {
		req.Header.Set("Last-Event-ID", after)
	}
	res, err := n.http.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" {
		n.t.Fatalf("got %d %v", res.StatusCode, res.Header)
	}
	n.t.Cleanup(func() { _ = res.Body.Close() })
	s := &sse{t: n.t, body: res.Body, r: bufio.NewReader(res.Body)}
	if first := s.frame(); first != "retry: 2000\n" {
		n.t.Fatalf("the stream begins with %q", first)
	}
	return s
}

// frame reads up to the next empty line, "" at the end of the stream.
func (s *sse) frame() string {
	var b strings.Builder
	for {
		text, err := s.r.ReadString('\n')
		if err != nil {
			return ""
		}
		if text == "\n" {
			return b.String()
		}
		b.WriteString(text)
	}
}

func field(frame, name string) string {
	for _, l := range strings.Split(frame, "\n") {
		if v, ok := strings.CutPrefix(l, name+": "); ok {
			return v
		}
	}
	return ""
}

func opened(n *node, device string, i int) {
	n.cluster.AddAnomaly(api.EventOpened, telemetry.Anomaly{ID: fmt.Sprintf("0-%d-0", i), Device: device, Sensor: "s", Opened: second, Cause: "spike"})
}

func TestStreamDeliversAndResumes(t *testing.T) {
	n := start(t, api.Config{})
	s := n.stream("/api/v1/anomalies/stream", "")
	for i := range 3 {
		opened(n, "pump-7", i)
	}
	n.cluster.AddAnomaly(api.EventClosed, telemetry.Anomaly{ID: "0-0-0", Device: "pump-7", Opened: second, Closed: 2 * second})
	var ids []string
	for i := range 3 {
		f := s.frame()
		ids = append(ids, field(f, "id"))
		want := fmt.Sprintf(`{"id":"0-%d-0","device_id":"pump-7","sensor":"s","opened":"1970-01-01T00:00:01.000000Z","closed":null,"severity":0,"cause":"spike","value":0,"expected":0,"low":0,"high":0,"grade":"normal"}`, i)
		if field(f, "event") != "opened" || field(f, "data") != want {
			t.Errorf("event %d: %s", i, f)
		}
	}
	if f := s.frame(); field(f, "event") != "closed" || !strings.Contains(f, `"closed":"1970-01-01T00:00:02.000000Z"`) {
		t.Errorf("closing: %s", f)
	}
	_ = s.body.Close()
	opened(n, "pump-7", 9) // while nobody listens

	s = n.stream("/api/v1/anomalies/stream", ids[1])
	for _, want := range []string{"0-2-0", "0-0-0", "0-9-0"} {
		if f := s.frame(); !strings.Contains(f, `"id":"`+want+`"`) {
			t.Errorf("resumed: got %s, want %s", f, want)
		}
	}
	s = n.stream("/api/v1/anomalies/stream", "12345678.1") // an id of another node
	if f := s.frame(); field(f, "event") != "gap" || field(f, "id") != "" {
		t.Errorf("got %s, want a gap", f)
	}
	if f := s.frame(); !strings.Contains(f, `"id":"0-0-0"`) {
		t.Errorf("behind the gap: %s", f)
	}
}

func TestStreamFiltersAndBeats(t *testing.T) {
	n := start(t, api.Config{Heartbeat: 20 * time.Millisecond})
	s := n.stream("/api/v1/anomalies/stream?device=pump-8", "")
	if f := s.frame(); f != ": heartbeat\n" {
		t.Errorf("got %q", f)
	}
	opened(n, "pump-7", 1)
	for { // the place of the reader moves on although the event is not for it
		if f := s.frame(); f != ": heartbeat\n" {
			if field(f, "id") == "" || field(f, "data") != "" {
				t.Errorf("got %q", f)
			}
			break
		}
	}
	opened(n, "pump-8", 2)
	for {
		if f := s.frame(); f != ": heartbeat\n" {
			if !strings.Contains(f, `"device_id":"pump-8"`) {
				t.Errorf("got %q", f)
			}
			return
		}
	}
}

func TestSlowStreamIsCutAndNobodyWaits(t *testing.T) {
	n := start(t, api.Config{ProgressTimeout: 100 * time.Millisecond})
	conn, err := net.Dial("tcp", strings.TrimPrefix(n.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	_, _ = io.WriteString(conn, "GET /api/v1/anomalies/stream HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := conn.Read(make([]byte, 1)); err != nil { // it is open now
		t.Fatal(err)
	}
	cause := strings.Repeat("x", 64<<10)
	deadline := time.Now().Add(20 * time.Second)
	for i := 0; ; i++ {
		begin := time.Now()
		n.cluster.AddAnomaly(api.EventOpened, telemetry.Anomaly{ID: "0-1-0", Device: "d", Cause: cause})
		if took := time.Since(begin); took > time.Second {
			t.Fatalf("publishing waited for %s", took)
		}
		if i%100 == 99 && strings.Contains(n.get("/metrics").body, "sluice_api_streams 0\n") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the slow stream is still open")
		}
	}
}

func TestStreamsAreBounded(t *testing.T) {
	n := start(t, api.Config{StreamsMax: 1})
	n.stream("/api/v1/anomalies/stream", "")
	wantProblem(t, n.get("/api/v1/anomalies/stream"), 503, "too many event streams")
}

func TestSlowReaderOfReadingsIsCut(t *testing.T) {
	n := start(t, api.Config{ProgressTimeout: 100 * time.Millisecond, ReadsMax: 1})
	points := manyPoints(100_000)
	n.cluster.Hook(memory.Hooks{Readings: func(context.Context, store.Query) ([]store.Point, error) { return points, nil }})
	conn, err := net.Dial("tcp", strings.TrimPrefix(n.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	_, _ = io.WriteString(conn, "GET /api/v1/devices/d/readings?limit=100000 HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// The only place for a query becomes free because the reader is cut.
	if r := n.get("/api/v1/devices/d/readings?limit=1"); r.status != 200 {
		t.Errorf("got %d %s", r.status, r.body)
	}
}

// served runs a node with Serve instead of httptest.
func served(t *testing.T, cfg api.Config) (n *node, stop context.CancelFunc, ended chan error) {
	t.Helper()
	cluster, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	srv, err := api.New(quiet(), nil, cfg, cluster.Backend())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	go func() { ended <- srv.Serve(ctx, ln) }()
	n = &node{t: t, cluster: cluster, server: srv, url: "http://" + ln.Addr().String(), http: &http.Client{Transport: &http.Transport{}}}
	t.Cleanup(func() {
		stop()
		cluster.Close()
		n.http.CloseIdleConnections()
	})
	return n, stop, ended
}

func TestServeStopsGracefully(t *testing.T) {
	n, stop, ended := served(t, api.Config{})
	h := n.hold()
	s := n.stream("/api/v1/anomalies/stream", "")
	done := make(chan reply, 1)
	go func() { done <- n.publish(good(1), "Content-Type", ndjson) }()
	<-h.came
	stop()
	if f := s.frame(); f != "" {
		t.Errorf("the stream goes on with %q", f)
	}
	select {
	case err := <-ended:
		t.Fatalf("Serve returned %v before the publish was answered", err)
	case <-time.After(20 * time.Millisecond):
	}
	h.release(telemetry.Result{Applied: 1})
	if got := <-done; got.status != 200 {
		t.Errorf("got %d %s", got.status, got.body)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := n.http.Get(n.url + "/healthz"); err == nil {
		t.Error("the listener is still open")
	}
}

func TestServeCutsWhatDoesNotEnd(t *testing.T) {
	n, stop, ended := served(t, api.Config{ShutdownTimeout: 30 * time.Millisecond})
	h := n.hold()
	failed := make(chan error, 1)
	go func() {
		res, err := n.http.Post(n.url+"/api/v1/telemetry", ndjson, strings.NewReader(good(1)))
		if err == nil {
			_ = res.Body.Close()
		}
		failed <- err
	}()
	<-h.came
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("the client got an answer")
	}
	h.release(telemetry.Result{Applied: 1})
}

func TestServeReportsABrokenListener(t *testing.T) {
	cluster, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	srv, err := api.New(quiet(), nil, api.Config{}, cluster.Backend())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := srv.Serve(t.Context(), ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve: %v", err)
	}
}

// TestIdleStreamOutlivesTheProgressTimeout: silence of the node is no fault of
// the reader.
func TestIdleStreamOutlivesTheProgressTimeout(t *testing.T) {
	n, _, _ := served(t, api.Config{ProgressTimeout: 300 * time.Millisecond, Heartbeat: 500 * time.Millisecond})
	s := n.stream("/api/v1/anomalies/stream", "")
	for range 3 {
		if f := s.frame(); f != ": heartbeat\n" {
			t.Fatalf("got %q", f)
		}
	}
}

// TestKeepAliveConnectionForgetsOldDeadlines: a deadline of one request must not
// hurt the next on the same connection.
func TestKeepAliveConnectionForgetsOldDeadlines(t *testing.T) {
	n, _, _ := served(t, api.Config{ProgressTimeout: 300 * time.Millisecond})
	for range 3 {
		n.publish(good(1), "Content-Type", ndjson)
		time.Sleep(400 * time.Millisecond)
		if r := n.do("DELETE", "/api/v1/quarantine/1", nil); r.status != 404 {
			t.Fatalf("got %d", r.status)
		}
		time.Sleep(400 * time.Millisecond)
	}
}
