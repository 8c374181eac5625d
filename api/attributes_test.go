package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/internal/memory"
	"github.com/sluice-iot/sluice/store"
)

const registerPath = "/api/v1/devices/pump-7/attributes"

func (n *node) putAttributes(body string, header ...string) reply {
	n.t.Helper()
	return n.do("PUT", registerPath, strings.NewReader(body), append(header, "Content-Type", "application/json")...)
}

// wantAttributes checks a success and returns its entity tag.
func wantAttributes(t *testing.T, r reply, status int, body string) string {
	t.Helper()
	if r.status != status || strings.TrimSpace(r.body) != body || r.header.Get("ETag") == "" {
		t.Fatalf("got %d %s with ETag %q, want %d %s", r.status, r.body, r.header.Get("ETag"), status, body)
	}
	return r.header.Get("ETag")
}

func TestAttributesAreARegisterWithPreconditions(t *testing.T) {
	n := start(t, api.Config{})
	wantProblem(t, n.get(registerPath), 404, `"pump-7"`)
	wantProblem(t, n.putAttributes(`{}`, "If-Match", "*"), 412, "GET "+registerPath)
	first := wantAttributes(t, n.putAttributes(`{"site":"hall-4"}`, "If-None-Match", "*"), 201, `{"site":"hall-4"}`)
	wantProblem(t, n.putAttributes(`{}`, "If-None-Match", "*"), 412)
	if got := wantAttributes(t, n.get(registerPath), 200, `{"site":"hall-4"}`); got != first {
		t.Fatalf("GET has ETag %s, PUT had %s", got, first)
	}
	second := wantAttributes(t, n.putAttributes(`{"site":"<&>","b":""}`, "If-Match", first), 200, `{"b":"","site":"<&>"}`)
	wantProblem(t, n.putAttributes(`{}`, "If-Match", first), 412, "ETag")
	wantProblem(t, n.putAttributes(`{}`, "If-Match", "W/"+second), 412)
	wantProblem(t, n.putAttributes(`{}`, "If-Match", `"not ours"`), 412)
	wantProblem(t, n.putAttributes(`{}`, "If-None-Match", "W/"+second), 412)
	third := wantAttributes(t, n.putAttributes(`{}`, "If-Match", first+", "+second), 200, `{}`)
	if r := n.get(registerPath, "If-None-Match", `"x", W/`+third); r.status != 304 || r.body != "" || r.header.Get("ETag") != third {
		t.Fatalf("an unchanged read: %d %q with ETag %q, want 304", r.status, r.body, r.header.Get("ETag"))
	}
	wantAttributes(t, n.get(registerPath, "If-None-Match", second), 200, `{}`)
	if r := n.do("HEAD", registerPath, nil); r.status != 200 || r.header.Get("ETag") != third {
		t.Fatalf("HEAD: %d, ETag %q", r.status, r.header.Get("ETag"))
	}
	wantAttributes(t, n.putAttributes(`{"last":"wins"}`), 200, `{"last":"wins"}`)
}

func TestPutRepeatedUnderItsKeyHearsItsFirstAnswer(t *testing.T) {
	n := start(t, api.Config{})
	first := wantAttributes(t, n.putAttributes(`{"a":"1"}`), 201, `{"a":"1"}`)
	cas := []string{"If-Match", first, "Idempotency-Key", "k1"}
	second := wantAttributes(t, n.putAttributes(`{"a":"2"}`, cas...), 200, `{"a":"2"}`)
	if again := wantAttributes(t, n.putAttributes(`{"a":"2"}`, cas...), 200, `{"a":"2"}`); again != second {
		t.Fatalf("the repeat has ETag %s, want %s", again, second)
	}
	wantProblem(t, n.putAttributes(`{"a":"3"}`, cas...), 412)
}

func TestMistakesInAPutAreNamed(t *testing.T) {
	n := start(t, api.Config{})
	many := `{"`
	for i := range 257 {
		many += strings.Repeat("k", i%100+1) + strings.Repeat("j", i/100) + `":"v","`
	}
	many = strings.TrimSuffix(many, `,"`) + "}"
	for _, c := range []struct {
		body   string
		header []string
		status int
		word   string
	}{
		{``, nil, 400, `{"key":"value"}`},
		{`[]`, nil, 400, "object"},
		{`null`, nil, 400, "object"},
		{`{"a":1}`, nil, 422, `"a"`},
		{`{"a":null}`, nil, 422, "leave out"},
		{`{"":"x"}`, nil, 422, "1 to 128"},
		{`{"a":"\u0000"}`, nil, 422, "U+0000"},
		{"{\"a\":\"\xff\"}", nil, 400, "UTF-8"},
		{many, nil, 422, "at most 256"},
		{`{"a":"` + strings.Repeat("x", 16<<10) + `"}`, nil, 422, "shorten"},
		{`{"a":"` + strings.Repeat("x", 128<<10) + `"}`, nil, 413, "at most 16384"},
		{`{}`, []string{"If-Match", "17"}, 400, "in quotes"},
		{`{}`, []string{"If-Match", ""}, 400, "leave it out"},
		{`{}`, []string{"If-None-Match", `"1`}, 400, "in quotes"},
		{`{}`, []string{"If-Match", strings.Repeat(`"1",`, 33)}, 400, "up to 32"},
		{`{}`, []string{"Idempotency-Key", ""}, 400, "UUID"},
	} {
		wantProblem(t, n.putAttributes(c.body, c.header...), c.status, c.word)
	}
	wantProblem(t, n.do("PUT", registerPath, strings.NewReader("{}"), "Content-Type", "application/x-ndjson"), 415, "application/json")
	wantProblem(t, n.do("PUT", "/api/v1/devices/-x/attributes", strings.NewReader("{}")), 400, "device id")
	wantProblem(t, n.do("PUT", registerPath+"?if_match=1", strings.NewReader("{}")), 400, "leave it out")
	wantProblem(t, n.do("POST", registerPath, nil), 405, "PUT")
	n.cluster.Hook(memory.Hooks{Put: func() error { return store.ErrUnavailable }})
	if r := n.putAttributes(`{}`); r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "" {
		t.Errorf("unavailable: %d %s", r.status, r.body)
	}
	if n.log.String() != "" {
		t.Errorf("mistakes of clients were logged: %s", n.log)
	}
}
