package webhook

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const secret = "0123456789abcdef"

func start(t *testing.T, cfg Config) (*Sender, func()) {
	t.Helper()
	cfg.Secret = secret
	s, err := New(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	return s, func() { cancel(); wg.Wait() }
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 30 s for %s", what)
		}
	}
}

func letters(t *testing.T, path string) []deadLetter {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []deadLetter
	for s := bufio.NewScanner(f); s.Scan(); {
		var d deadLetter
		if err := json.Unmarshal(s.Bytes(), &d); err != nil {
			t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}

func event(id string) Event {
	return Event{Kind: "opened", ID: id, Change: 7, Severity: 60, Grade: "warning", Anomaly: json.RawMessage(`{"id":"` + id + `"}`)}
}

// A receiver that fails at first gets every event, signed, in order, and the
// same event under the same id.
func TestEventsArriveSignedInOrderAfterFailures(t *testing.T) {
	var mu sync.Mutex
	var got, ids []string
	tries := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("X-Sluice-Signature") != Signature(secret, r.Header.Get("X-Sluice-Timestamp"), body) {
			t.Errorf("signature %q does not fit, error %v", r.Header.Get("X-Sluice-Signature"), err)
		}
		ids = append(ids, r.Header.Get("X-Sluice-Event"))
		if tries++; tries < 4 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var e Event
		if err := json.Unmarshal(body, &e); err != nil {
			t.Error(err)
		}
		got = append(got, e.ID)
	}))
	defer srv.Close()
	path := filepath.Join(t.TempDir(), "dead")
	s, stop := start(t, Config{URL: srv.URL, DeadLetters: path, Pause: time.Millisecond})
	for _, id := range []string{"1", "2", "3"} {
		s.Send(event(id))
	}
	until(t, "three events", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) == 3 })
	stop()
	if strings.Join(got, "") != "123" || ids[0] != "1 opened 7" || ids[0] != ids[3] || len(letters(t, path)) != 0 {
		t.Errorf("got %v, ids %v, dead letters %v", got, ids, letters(t, path))
	}
}

// What nobody takes is on the disk with the reason: refused, out of attempts, or
// still waiting at the end.
func TestWhatNobodyTakesIsADeadLetter(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		tries  int32
		reason string
	}{
		{"refused for good", http.StatusBadRequest, 1, "Bad Request"},
		{"out of attempts", http.StatusBadGateway, 3, "attempt 3"},
		{"redirected", http.StatusFound, 1, "Found"},
	} {
		var tries atomic.Int32
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			tries.Add(1)
			w.WriteHeader(c.status)
		}))
		path := filepath.Join(t.TempDir(), "dead")
		s, stop := start(t, Config{URL: srv.URL, DeadLetters: path, Pause: time.Millisecond, Attempts: 3})
		s.Send(event("7"))
		until(t, c.name, func() bool { return len(letters(t, path)) == 1 })
		stop()
		srv.Close()
		if d := letters(t, path)[0]; d.Event.ID != "7" || !strings.Contains(d.Reason, c.reason) || tries.Load() != c.tries {
			t.Errorf("%s: %+v after %d attempts", c.name, d, tries.Load())
		}
	}
}

func TestEventsThatWaitAtTheEndAreDeadLetters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dead")
	s, stop := start(t, Config{URL: "http://127.0.0.1:1", DeadLetters: path, Pause: time.Hour})
	s.Send(event("1"))
	s.Send(event("2"))
	s.Send(Event{ID: "3", Severity: 10})
	stop()
	got := letters(t, path)
	if len(got) != 3 || got[0].Event.ID != "1" || got[1].Event.ID != "2" {
		t.Errorf("dead letters %+v", got)
	}
}

func TestSeverityMinLeavesOutWhatIsBelow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dead")
	s, stop := start(t, Config{URL: "http://127.0.0.1:1", DeadLetters: path, SeverityMin: 50, Pause: time.Hour})
	s.Send(Event{ID: "low", Severity: 10})
	s.Send(event("high"))
	stop()
	if got := letters(t, path); len(got) != 1 || got[0].Event.ID != "high" {
		t.Errorf("dead letters %+v", got)
	}
}

// A receiver that stands still costs a bounded queue, and Send never waits.
func TestAQueueThatIsFullBecomesDeadLetters(t *testing.T) {
	block := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-block }))
	defer srv.Close()
	defer close(block)
	path := filepath.Join(t.TempDir(), "dead")
	s, err := New(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), Config{URL: srv.URL, Secret: secret, DeadLetters: path})
	if err != nil {
		t.Fatal(err)
	}
	for range queueMax + 3 {
		s.Send(event("x"))
	}
	if len(s.queue) != queueMax || len(s.dead) != 3 {
		t.Errorf("%d wait, %d are dead, want %d and 3", len(s.queue), len(s.dead), queueMax)
	}
}

func TestConfigNamesEveryProblem(t *testing.T) {
	err := (&Config{URL: "ftp://x", SeverityMin: 101, Attempts: -1}).Validate()
	for _, want := range []string{"http or https", "secret has 0 bytes", "severity_min", "attempts", "dead_letters"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

// An event that somebody keeps is confirmed once it is taken or a dead letter,
// and left to its keeper when the node stops.
func TestKeptEventsAreConfirmedOrLeft(t *testing.T) {
	var answer atomic.Int32
	answer.Store(http.StatusOK)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(answer.Load())) }))
	defer srv.Close()
	path := filepath.Join(t.TempDir(), "dead")
	s, stop := start(t, Config{URL: srv.URL, DeadLetters: path, SeverityMin: 50, Pause: time.Hour})
	var confirmed atomic.Int32
	kept := func(id string, severity float64) Event {
		e := event(id)
		e.Severity, e.Done = severity, func() { confirmed.Add(1) }
		return e
	}
	s.Send(kept("taken", 60))
	s.Send(kept("not wanted", 10))
	until(t, "two confirmations", func() bool { return confirmed.Load() == 2 })
	answer.Store(http.StatusBadRequest)
	s.Send(kept("refused", 60))
	until(t, "a dead letter", func() bool { return confirmed.Load() == 3 })
	answer.Store(http.StatusServiceUnavailable)
	s.Send(kept("tried", 60))
	s.Send(kept("waiting", 60))
	stop()
	if got := letters(t, path); len(got) != 1 || got[0].Event.ID != "refused" || confirmed.Load() != 3 {
		t.Errorf("dead letters %+v, %d confirmed", got, confirmed.Load())
	}
}
