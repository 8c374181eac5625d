package api_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/internal/memory"
	"github.com/sluice-iot/sluice/telemetry"
)

const ndjson = "application/x-ndjson"

func good(i int) string {
	return fmt.Sprintf(`{"device_id":"d%d","timestamp":"2026-01-23T15:24:46Z","sensors":{"a":%d}}`, i%7, i)
}

func goodLines(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(good(i) + "\n")
	}
	return b.String()
}

func (n *node) publish(body string, header ...string) reply {
	n.t.Helper()
	return n.do("POST", "/api/v1/telemetry", strings.NewReader(body), header...)
}

func sameCounts(got api.Counts, received, applied, duplicate, quarantined, refused, unknown int) bool {
	return got.Received == received && got.Applied == applied && got.Duplicate == duplicate &&
		got.Quarantined == quarantined && got.Refused == refused && got.Unknown == unknown
}

func TestPublishCountsEveryMessage(t *testing.T) {
	for _, c := range []struct {
		name, media, body string
		want              string
	}{
		{"lines", ndjson, good(1) + "\n\n{bad\r\n" + good(1) + "\n" + good(2), `{"received":4,"applied":2,"duplicate":1,"quarantined":1,"errors":[{"line":3,"reason":"invalid character 'b' looking for beginning of object key string"}]}`},
		{"array", "application/json", "[" + good(1) + ",\n" + good(2) + ",{}]", `{"received":3,"applied":2,"duplicate":0,"quarantined":1,"errors":[{"line":3,"reason":"no device_id"}]}`},
		{"one object", "application/json; charset=utf-8", "{\n\"device_id\":\n\"x\",\"sensors\":{\"a\":1}}", `{"received":1,"applied":1,"duplicate":0,"quarantined":0,"errors":[]}`},
		{"lines called JSON", "application/json", goodLines(3), `{"received":3,"applied":3,"duplicate":0,"quarantined":0,"errors":[]}`},
		{"no type", "", good(1), `{"received":1,"applied":1,"duplicate":0,"quarantined":0,"errors":[]}`},
		{"empty array", "application/json", "[]", `{"received":0,"applied":0,"duplicate":0,"quarantined":0,"errors":[]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := start(t, api.Config{})
			var header []string
			if c.media != "" {
				header = []string{"Content-Type", c.media}
			}
			if r := n.publish(c.body, header...); r.status != 200 || writeToken.ReplaceAllString(strings.TrimSpace(r.body), "") != c.want {
				t.Errorf("got  %d %s\nwant 200 %s", r.status, r.body, c.want)
			}
		})
	}
}

// writeToken stands in every answer that stored something.
var writeToken = regexp.MustCompile(`,"token":"[A-Za-z0-9_-]+"`)

func TestPublishDecompresses(t *testing.T) {
	n := start(t, api.Config{})
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = io.WriteString(w, goodLines(1000))
	_ = w.Close()
	z, _ := zstd.NewWriter(nil)
	zs := z.EncodeAll([]byte(goodLines(1000)), nil)
	_ = z.Close()
	for encoding, body := range map[string][]byte{"gzip": gz.Bytes(), "zstd": zs, "identity": []byte(goodLines(1000))} {
		r := n.publish(string(body), "Content-Type", ndjson, "Content-Encoding", encoding)
		if c := decode[api.Counts](t, r); r.status != 200 || c.Received != 1000 || c.Applied+c.Duplicate != 1000 {
			t.Errorf("%s: %d %s", encoding, r.status, r.body)
		}
		if encoding == "identity" {
			continue
		}
		damaged := bytes.Clone(body)
		damaged[len(damaged)/2] ^= 0xff
		for _, bad := range [][]byte{body[:len(body)-5], damaged, []byte("plain text"), {}} {
			wantProblem(t, n.publish(string(bad), "Content-Type", ndjson, "Content-Encoding", encoding), 400)
		}
	}
}

func TestPublishRefusesWhatItCannotRead(t *testing.T) {
	n := start(t, api.Config{BodyBytesMax: 4096, MessageBytesMax: 512})
	lines := []string{"Content-Type", ndjson}
	wantProblem(t, n.publish(good(1), "Content-Type", "application/x-protobuf"), 415, "application/x-ndjson")
	wantProblem(t, n.publish(good(1), "Content-Type", ";"), 415)
	wantProblem(t, n.publish(good(1), append(lines, "Content-Encoding", "br")...), 415, "gzip, zstd")
	wantProblem(t, n.publish("", lines...), 400, "empty")
	wantProblem(t, n.publish(goodLines(100), lines...), 413, "4096", "several requests")

	// A body of unknown length, and one that grows when decompressed, are cut
	// where the limit is; what came before is counted.
	r := n.do("POST", "/api/v1/telemetry", io.MultiReader(strings.NewReader(goodLines(100))), lines...)
	if p := wantProblem(t, r, 413, "4096"); p.Counts == nil || p.Applied == 0 || p.Applied > 60 {
		t.Errorf("counts: %s", r.body)
	}
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	_, _ = w.Write(bytes.Repeat([]byte(" "), 8<<20))
	_ = w.Close()
	wantProblem(t, n.publish(bomb.String(), append(lines, "Content-Encoding", "gzip")...), 413)

	r = n.publish("["+good(1)+","+good(2), "Content-Type", "application/json")
	if p := wantProblem(t, r, 400, "not closed", "stays"); p.Counts == nil || p.Applied+p.Duplicate != 2 {
		t.Errorf("counts of a broken array: %s", r.body)
	}
}

func TestBodyWithTheTypeThatClientsGiveByThemselvesIsRead(t *testing.T) {
	n := start(t, api.Config{})
	for i, kind := range []string{"application/x-www-form-urlencoded", "text/plain;charset=UTF-8", ""} {
		r := n.publish(good(2*i+1)+"\n"+good(2*i+2), "Content-Type", kind)
		if c := decode[api.Counts](t, r); r.status != 200 || c.Received != 2 || c.Applied != 2 {
			t.Errorf("%q: %d %s", kind, r.status, r.body)
		}
	}
	wantProblem(t, n.publish("a=b&c=d", "Content-Type", "application/x-www-form-urlencoded"), 422, "is telemetry")
}

func TestBadMessagesCostOnlyThemselves(t *testing.T) {
	n := start(t, api.Config{MessageBytesMax: 128})
	long := strings.Repeat("x", 1000)
	r := n.publish(good(1)+"\n"+long+"\n"+good(2)+"\n", "Content-Type", ndjson)
	c := decode[api.Counts](t, r)
	if r.status != 200 || !sameCounts(c, 3, 2, 0, 0, 1, 0) || len(c.Errors) != 1 || c.Errors[0].Line != 2 || !strings.Contains(c.Errors[0].Reason, "128 bytes") {
		t.Errorf("got %d %s", r.status, r.body)
	}
	p := wantProblem(t, n.publish("{}\n{}\n"+long, "Content-Type", ndjson), 422, "none of 3")
	if p.Counts == nil || !sameCounts(*p.Counts, 3, 0, 0, 2, 1, 0) {
		t.Errorf("counts: %+v", p.Counts)
	}
	wantProblem(t, n.publish(long, "Content-Type", ndjson), 413, "128 bytes")
}

func TestErrorsOfAnAnswerAreBounded(t *testing.T) {
	n := start(t, api.Config{})
	p := wantProblem(t, n.publish(strings.Repeat("{}\n", 2500), "Content-Type", ndjson), 422)
	if p.Counts == nil || len(p.Errors) != 1000 || p.ErrorsOmitted != 1500 || p.Quarantined != 2500 {
		t.Errorf("%d errors, %d omitted, %d quarantined", len(p.Errors), p.ErrorsOmitted, p.Quarantined)
	}
}

// outcomes makes the backend answer line i with results[i % len].
func (n *node) outcomes(results ...telemetry.Result) {
	var mu sync.Mutex
	i := 0
	n.cluster.Hook(memory.Hooks{Publish: func(_ *telemetry.Publish, done func(telemetry.Result)) bool {
		mu.Lock()
		r := results[i%len(results)]
		i++
		mu.Unlock()
		done(r)
		return true
	}})
}

func TestStatusFollowsTheWorstOutcome(t *testing.T) {
	n := start(t, api.Config{})
	ok, quota := telemetry.Result{Applied: 1}, telemetry.Result{Refused: 1, Refusal: telemetry.RefusalQuota, Reason: "disk at 91 %"}
	n.outcomes(ok, quota)
	r := n.publish(goodLines(4), "Content-Type", ndjson)
	if p := wantProblem(t, r, 429, "2 messages", "again later"); r.header.Get("Retry-After") != "30" || p.Counts == nil || !sameCounts(*p.Counts, 4, 2, 0, 0, 2, 0) {
		t.Errorf("quota: %v %s", r.header, r.body)
	}
	n.outcomes(ok, quota, telemetry.Result{Unknown: 1})
	r = n.publish(goodLines(3), "Content-Type", ndjson)
	if p := wantProblem(t, r, 503, "not known", "same body"); r.header.Get("Retry-After") != "2" || p.Counts == nil || !sameCounts(*p.Counts, 3, 1, 0, 0, 1, 1) {
		t.Errorf("unknown: %v %s", r.header, r.body)
	}
	n.outcomes(telemetry.Result{Refused: 1, Refusal: telemetry.RefusalTopic})
	if p := wantProblem(t, n.publish(goodLines(2), "Content-Type", ndjson), 422); p.Counts == nil || len(p.Errors) != 2 || p.Errors[0].Reason == "" {
		t.Errorf("refused without a reason: %+v", p.Counts)
	}
	n.outcomes(telemetry.Result{Applied: 2, Quarantined: 1, Reason: "element 3"}) // a line that is an array
	if c := decode[api.Counts](t, n.publish("[]\n", "Content-Type", ndjson)); !sameCounts(c, 3, 2, 0, 1, 0, 0) || len(c.Errors) != 1 {
		t.Errorf("array on a line: %+v", c)
	}
}

// TestUnknownOutcomeStopsTheUpload: the client has to send everything again
// anyway, so the rest of a long body is not taken.
func TestUnknownOutcomeStopsTheUpload(t *testing.T) {
	n := start(t, api.Config{})
	n.outcomes(telemetry.Result{Unknown: 1})
	p := wantProblem(t, n.publish(goodLines(1000), "Content-Type", ndjson), 503)
	if p.Counts == nil || p.Received > 3 {
		t.Errorf("%+v", p.Counts)
	}
}

// holder keeps every publish until it is told to answer.
type holder struct {
	mu   sync.Mutex
	held []func(telemetry.Result)
	most int
	seen []telemetry.Publish
	came chan struct{}
}

func (n *node) hold() *holder {
	h := &holder{came: make(chan struct{}, 1<<16)}
	n.cluster.Hook(memory.Hooks{Publish: func(p *telemetry.Publish, done func(telemetry.Result)) bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		seen := *p
		seen.Payload = bytes.Clone(p.Payload)
		h.seen = append(h.seen, seen)
		h.held = append(h.held, done)
		h.most = max(h.most, len(h.held))
		h.came <- struct{}{}
		return true
	}})
	return h
}

// release answers everything that is held, the newest first.
func (h *holder) release(r telemetry.Result) int {
	h.mu.Lock()
	held := h.held
	h.held = nil
	h.mu.Unlock()
	for i := len(held) - 1; i >= 0; i-- {
		held[i](r)
	}
	return len(held)
}

func TestBodyIsPublishedWhileItArrives(t *testing.T) {
	n := start(t, api.Config{})
	h := n.hold()
	r, w := io.Pipe()
	done := make(chan reply, 1)
	go func() { done <- n.do("POST", "/api/v1/telemetry", r, "Content-Type", ndjson) }()
	for i := range 3 {
		_, _ = io.WriteString(w, good(i)+"\n")
		<-h.came // before the next line is even written
	}
	h.release(telemetry.Result{Applied: 1})
	_ = w.Close()
	if got := <-done; got.status != 200 || decode[api.Counts](t, got).Applied != 3 {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestMessagesInFlightAreBounded(t *testing.T) {
	n := start(t, api.Config{})
	h := n.hold()
	const lines = 5000
	done := make(chan reply, 1)
	go func() { done <- n.publish(goodLines(lines), "Content-Type", ndjson) }()
	for range lines {
		<-h.came
		h.mu.Lock()
		full := len(h.held) == 1024 || len(h.seen) == lines
		h.mu.Unlock()
		if full {
			h.release(telemetry.Result{Applied: 1})
		}
	}
	h.release(telemetry.Result{Applied: 1})
	if got := <-done; got.status != 200 || decode[api.Counts](t, got).Applied != lines || h.most != 1024 {
		t.Errorf("got %d %s, at most %d in flight", got.status, got.body, h.most)
	}
	for i, p := range h.seen {
		if string(p.Payload) != good(i) || p.Received == 0 || p.Topic != "" || p.Client != "" || p.Dup {
			t.Fatalf("line %d was published as %+v %s", i+1, p, p.Payload)
		}
	}
}

func TestBytesInFlightOfAllRequestsAreBounded(t *testing.T) {
	n := start(t, api.Config{InflightBytesMax: 1024, MessageBytesMax: 512})
	h := n.hold()
	done := make(chan reply, 2)
	for range 2 {
		go func() { done <- n.publish(goodLines(100), "Content-Type", ndjson) }()
	}
	for range 200 {
		<-h.came
		h.mu.Lock()
		bytes := len(h.held) * len(good(1))
		h.mu.Unlock()
		if bytes > 1024 {
			t.Fatalf("%d bytes in flight", bytes)
		}
		if bytes > 1024-2*len(good(99)) {
			h.release(telemetry.Result{Applied: 1})
		}
	}
	h.release(telemetry.Result{Applied: 1})
	for range 2 {
		if got := <-done; got.status != 200 {
			t.Errorf("got %d %s", got.status, got.body)
		}
	}
}

func TestSilentBackendMakesTheOutcomeUnknown(t *testing.T) {
	n := start(t, api.Config{CommitTimeout: 50 * time.Millisecond})
	h := n.hold()
	p := wantProblem(t, n.publish(goodLines(5), "Content-Type", ndjson), 503, "5 messages")
	if p.Counts == nil || !sameCounts(*p.Counts, 5, 0, 0, 0, 0, 5) {
		t.Errorf("%+v", p.Counts)
	}
	if late := h.release(telemetry.Result{Applied: 1}); late != 5 { // harmless now
		t.Errorf("%d were held", late)
	}
	n.cluster.Hook(memory.Hooks{})
	if r := n.publish(goodLines(5), "Content-Type", ndjson); r.status != 200 {
		t.Errorf("afterwards: %d %s", r.status, r.body)
	}
}

func TestIdempotencyKeyReachesEveryMessage(t *testing.T) {
	n := start(t, api.Config{})
	h := n.hold()
	const lines = 65_540
	done := make(chan reply, 1)
	go func() {
		done <- n.publish(strings.Repeat("1\n", lines), "Content-Type", ndjson, "Idempotency-Key", `"k-1"`)
	}()
	for range lines {
		<-h.came
		h.mu.Lock()
		full := len(h.held) >= 512
		h.mu.Unlock()
		if full {
			h.release(telemetry.Result{Applied: 1})
		}
	}
	h.release(telemetry.Result{Applied: 1})
	if got := <-done; got.status != 200 {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	type id struct {
		client string
		packet uint16
	}
	ids := map[id]int{}
	for i, p := range h.seen {
		ids[id{p.Client, p.PacketID}]++
		if !p.Dup || !strings.HasPrefix(p.Client, "k-1") || i < 65_535 && (p.Client != "k-1" || int(p.PacketID) != i+1) {
			t.Fatalf("line %d: %+v", i+1, p)
		}
	}
	if len(ids) != lines {
		t.Errorf("%d ids for %d equal lines", len(ids), lines)
	}
}

func TestRepeatWithTheSameKeyHearsTheFirstCounts(t *testing.T) {
	n := start(t, api.Config{})
	header := []string{"Content-Type", ndjson, "Idempotency-Key", "k"}
	body := goodLines(3) + "{bad\n"
	first := n.publish(body, header...)
	again := n.publish(body, header...)
	if first.status != 200 || again.status != 200 || first.body != again.body || again.header.Get("Idempotency-Replayed") != "true" || first.header.Get("Idempotency-Replayed") != "" {
		t.Errorf("first %d %s, then %d %s", first.status, first.body, again.status, again.body)
	}
	if l, _ := n.cluster.Ledger(t.Context()); l.Totals.Received != 4 {
		t.Errorf("the repeat reached the backend: %+v", l.Totals)
	}
	wantProblem(t, n.publish(goodLines(2), header...), 422, "new key")
	for _, bad := range []string{"", "a b", strings.Repeat("k", 256), "ä", "k#1"} {
		wantProblem(t, n.publish(body, "Content-Type", ndjson, "Idempotency-Key", bad), 400, "UUID")
	}

	// An unknown outcome is not final: the repeat goes the whole way.
	n.outcomes(telemetry.Result{Unknown: 1})
	header[3] = "k2"
	wantProblem(t, n.publish(body, header...), 503)
	n.cluster.Hook(memory.Hooks{})
	if r := n.publish(body, header...); r.status != 200 || decode[api.Counts](t, r).Duplicate != 3 || r.header.Get("Idempotency-Replayed") != "" {
		t.Errorf("after 503: %d %s", r.status, r.body)
	}

	// While the first is under way a second one is not let in.
	h := n.hold()
	header[3] = "k3"
	done := make(chan reply, 1)
	go func() { done <- n.publish(good(1), header...) }()
	<-h.came
	wantProblem(t, n.publish(good(1), header...), 409, "wait")
	h.release(telemetry.Result{Applied: 1})
	if got := <-done; got.status != 200 {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestClientThatLeavesGivesItsKeyBack(t *testing.T) {
	n := start(t, api.Config{})
	h := n.hold()
	r, w := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", n.url+"/api/v1/telemetry", r)
	req.Header.Set("Content-Type", ndjson)
	req.Header.Set("Idempotency-Key", "k")
	done := make(chan error, 1)
	go func() {
		res, err := n.http.Do(req)
		if err == nil {
			_ = res.Body.Close()
		}
		done <- err
	}()
	_, _ = io.WriteString(w, good(1)+"\n")
	<-h.came
	_ = w.CloseWithError(io.ErrUnexpectedEOF) // the connection breaks in the middle of the body
	<-done
	h.release(telemetry.Result{Applied: 1})
	n.cluster.Hook(memory.Hooks{})
	deadline := time.Now().Add(time.Minute)
	for {
		got := n.publish(good(1), "Content-Type", ndjson, "Idempotency-Key", "k")
		if got.status == 200 {
			return
		}
		if got.status != 409 || time.Now().After(deadline) {
			t.Fatalf("got %d %s", got.status, got.body)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestStalledBodyIsCut(t *testing.T) {
	n := start(t, api.Config{ProgressTimeout: 50 * time.Millisecond})
	r, w := io.Pipe()
	defer w.Close()
	go func() { _, _ = io.WriteString(w, good(1)+"\n") }()
	p := wantProblem(t, n.do("POST", "/api/v1/telemetry", bufio.NewReader(r), "Content-Type", ndjson), 408, "without pauses")
	if p.Counts == nil || p.Applied != 1 {
		t.Errorf("%+v", p.Counts)
	}
}
