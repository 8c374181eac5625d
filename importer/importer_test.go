package importer

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// meters is a CSV file of some devices in turn, with lines that cannot be read
// where bad says so, and what should be stored of it.
func meters(lines, devices int, bad func(line int) bool) (text string, want map[string][]string) {
	var b strings.Builder
	b.WriteString("ts,dev,a,b\n")
	want = map[string][]string{}
	for i := range lines {
		n := i + 2
		if bad != nil && bad(n) {
			fmt.Fprintf(&b, "%d,m%d,1\n", i, i%devices)
			continue
		}
		dev := fmt.Sprintf("m%d", i%devices)
		fmt.Fprintf(&b, "%d,%s,%d,%d.5\n", 1_000_000+i, dev, i, i)
		at := (1_000_000 + i) * 1_000_000
		want[dev] = append(want[dev], fmt.Sprintf("%d a %d", at, i), fmt.Sprintf("%d b %d.5", at, i))
	}
	return b.String(), want
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	b := []byte(text)
	if strings.HasSuffix(name, ".gz") {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		b = z.Bytes()
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func do(t *testing.T, ctx context.Context, cfg Config) (Summary, error) {
	t.Helper()
	im, err := New(discard, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return im.Run(ctx)
}

// same compares what is stored, order included.
func same(t *testing.T, s *sink, want map[string][]string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.readings) != len(want) {
		t.Errorf("%d devices are stored, want %d", len(s.readings), len(want))
	}
	for dev, w := range want {
		got := s.readings[dev]
		if !slices.Equal(got, w) {
			t.Fatalf("%s: %d readings are stored, want %d; first got %v, want %v", dev, len(got), len(w), got[:min(3, len(got))], w[:min(3, len(w))])
		}
	}
}

func TestEveryLineArrivesInItsDevicesOrder(t *testing.T) {
	text, want := meters(3000, 7, nil)
	for _, name := range []string{"m.csv", "m.csv.gz", "-"} {
		for _, batch := range []int{1, 20} {
			t.Run(fmt.Sprintf("%s batch %d", name, batch), func(t *testing.T) {
				s := newSink()
				b := startBroker(t, s)
				cfg := Config{Path: "-", Stdin: strings.NewReader(text), Brokers: []string{b.Addr().String()}, Batch: batch, Mapping: Mapping{Device: "dev"}}
				if name != "-" {
					cfg.Path = file(t, name, text)
				}
				sum, err := do(t, context.Background(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				if sum.Lines != 3001 || sum.Messages != 3000 || sum.Readings != 6000 || !sum.Complete || sum.Bad+sum.Refused+sum.Quarantined != 0 {
					t.Fatalf("got %+v", sum)
				}
				same(t, s, want)
				if batch > 1 && len(s.publish) > 3000/batch+20 {
					t.Fatalf("%d publishes for 3000 lines in batches of %d", len(s.publish), batch)
				}
			})
		}
	}
}

func TestBadLinesAreNamedAndTheRestGoesOn(t *testing.T) {
	isBad := func(n int) bool { return n%10 == 5 }
	text, want := meters(200, 3, isBad)
	s := newSink()
	b := startBroker(t, s)
	var named []int64
	sum, err := do(t, context.Background(), Config{
		Path: file(t, "m.csv", text), Brokers: []string{b.Addr().String()}, Mapping: Mapping{Device: "dev"},
		Bad: func(line int64, reason string) {
			if reason != "3 fields, want 4" {
				t.Errorf("line %d: %s", line, reason)
			}
			named = append(named, line)
		},
	})
	if err != nil || sum.Bad != 20 || sum.Messages != 180 || sum.Lines != 201 {
		t.Fatalf("got %+v, %v", sum, err)
	}
	for _, n := range named {
		if !isBad(int(n)) {
			t.Errorf("line %d is named and is not bad", n)
		}
	}
	if len(named) != 20 {
		t.Errorf("%d lines are named, want 20", len(named))
	}
	same(t, s, want)
}

func TestLinesWithoutEndAndTooLongLines(t *testing.T) {
	s := newSink()
	b := startBroker(t, s)
	text := "\xef\xbb\xbfts,v\r\n1,1\r\n\r\n2," + strings.Repeat("2", lineBytesMax) + "\n3,3"
	var named []string
	sum, err := do(t, context.Background(), Config{
		Path: "-", Stdin: strings.NewReader(text), Brokers: []string{b.Addr().String()}, Mapping: Mapping{DeviceID: "d"},
		Bad: func(line int64, reason string) { named = append(named, fmt.Sprintf("%d %s", line, reason)) },
	})
	if err != nil || sum.Messages != 2 || sum.Bad != 1 || sum.Empty != 2 || sum.Lines != 5 {
		t.Fatalf("got %+v, %v", sum, err)
	}
	if !slices.Equal(named, []string{"4 line is longer than 524288 bytes"}) {
		t.Fatalf("named %q", named)
	}
	same(t, s, map[string][]string{"d": {"1000000 v 1", "3000000 v 3"}})
}

func TestMessagesOneALine(t *testing.T) {
	s := newSink()
	b := startBroker(t, s)
	text := `{"device_id":"a","timestamp":1333263600,"sensors":{"t":1}}
[{"device_id":"b","timestamp":1333263600,"sensors":{"t":1}},{"device_id":"b","timestamp":1333263601,"sensors":{"t":2}}]
{"device_id":"a","timestamp":1333263601,"sensors":{"t":"x"
{"timestamp":1333263601,"sensors":{"t":1}}
[{"device_id":"a","sensors":{"t":1}},{"device_id":"b","sensors":{"t":1}}]
{"device_id":"a","timestamp":1333263602,"sensors":{"t":3}}
`
	var named []int64
	sum, err := do(t, context.Background(), Config{
		Path: "-", Stdin: strings.NewReader(text), Brokers: []string{b.Addr().String()},
		Bad: func(line int64, reason string) { named = append(named, line) },
	})
	if err != nil || sum.Messages != 4 || sum.Bad != 3 {
		t.Fatalf("got %+v, %v", sum, err)
	}
	if slices.Sort(named); !slices.Equal(named, []int64{3, 4, 5}) {
		t.Fatalf("named %v", named)
	}
	same(t, s, map[string][]string{"a": {"1333263600000000 t 1", "1333263602000000 t 3"}, "b": {"1333263600000000 t 1", "1333263601000000 t 2"}})
}

func TestAnswersOfTheClusterAreCounted(t *testing.T) {
	s := newSink()
	s.decide = func(n int, p *telemetry.Publish) *telemetry.Result {
		switch {
		case bytes.Contains(p.Payload, []byte(`"v":1}`)):
			return &telemetry.Result{Quarantined: 1, Reason: "does not look right"}
		case bytes.Contains(p.Payload, []byte(`"v":2}`)):
			return &telemetry.Result{Refused: 1, Refusal: telemetry.RefusalTopic, Reason: "no such device"}
		}
		return nil
	}
	b := startBroker(t, s)
	named := map[int64]string{}
	sum, err := do(t, context.Background(), Config{
		Path: "-", Stdin: strings.NewReader("ts,v\n1,1\n2,2\n3,3\n"), Brokers: []string{b.Addr().String()}, Mapping: Mapping{DeviceID: "d"},
		Bad: func(line int64, reason string) { named[line] = reason },
	})
	if err != nil || sum.Messages != 1 || sum.Quarantined != 1 || sum.Refused != 1 || sum.Lines != 4 {
		t.Fatalf("got %+v, %v", sum, err)
	}
	if !strings.Contains(named[2], "does not look right") || !strings.Contains(named[3], "0x90") {
		t.Fatalf("named %v", named)
	}
}

// TestNodeDiesInBetween resends what was not answered through the other node.
func TestNodeDiesInBetween(t *testing.T) {
	text, want := meters(4000, 5, nil)
	s := newSink()
	gone, stays := startBroker(t, s), startBroker(t, s)
	killed := false
	s.decide = func(n int, p *telemetry.Publish) *telemetry.Result {
		if n > 1000 && !killed {
			killed = true
			go func() { _ = gone.Close() }()
		}
		if killed && n < 1500 {
			return &telemetry.Result{Unknown: 1} // never answered
		}
		return nil
	}
	sum, err := do(t, context.Background(), Config{
		Path: file(t, "m.csv", text), Brokers: []string{gone.Addr().String(), stays.Addr().String()}, Connections: 4, Mapping: Mapping{Device: "dev"},
	})
	if err != nil || sum.Messages != 4000 {
		t.Fatalf("got %+v, %v", sum, err)
	}
	if sum.Resent == 0 {
		t.Error("nothing was sent again")
	}
	if s.total() != 8000 {
		t.Fatalf("%d readings, want 8000", s.total())
	}
	for dev, w := range want { // the order may have changed where publishes were lost
		slices.Sort(w)
		slices.Sort(s.readings[dev])
	}
	same(t, s, want)
}

// interruptAt cancels after n publishes have reached a broker.
func interruptAt(s *sink, n int, cancel func()) {
	s.decide = func(i int, _ *telemetry.Publish) *telemetry.Result {
		if i == n {
			cancel()
		}
		return nil
	}
}

func TestInterruptedImportGoesOnWhereItWas(t *testing.T) {
	text, want := meters(5000, 4, func(n int) bool { return n%100 == 0 })
	for _, name := range []string{"m.csv", "m.csv.gz"} {
		t.Run(name, func(t *testing.T) {
			s := newSink()
			b := startBroker(t, s)
			path := file(t, name, text)
			cfg := Config{Path: path, State: path + ".state", Brokers: []string{b.Addr().String()}, Mapping: Mapping{Device: "dev"}, InFlight: 50}
			var last int64
			for _, at := range []int{700, 1800, 3000} {
				ctx, cancel := context.WithCancel(context.Background())
				interruptAt(s, at, cancel)
				sum, err := do(t, ctx, cfg)
				cancel()
				if !errors.Is(err, ErrInterrupted) || sum.Complete || sum.Lines <= last {
					t.Fatalf("got %+v, %v", sum, err)
				}
				last = sum.Lines
			}
			sum, err := do(t, context.Background(), cfg)
			if err != nil || sum.Lines != 5001 || sum.Messages != 4950 || sum.Bad != 50 || sum.Earlier.Lines != last {
				t.Fatalf("got %+v, %v", sum, err)
			}
			same(t, s, want)
			if s.repeats > 0 {
				t.Errorf("%d messages were sent twice although all were answered", s.repeats)
			}
			again, err := do(t, context.Background(), cfg)
			if err != nil || !again.Already || again.Lines != 5001 {
				t.Fatalf("run again: got %+v, %v", again, err)
			}
		})
	}
}

// TestCrashedImportSendsRepeatsThatAreRecognised ends without a last save: the
// state file of an earlier moment is put back.
func TestCrashedImportSendsRepeatsThatAreRecognised(t *testing.T) {
	times, want := meters(3000, 3, nil)
	var untimed strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&untimed, "{\"device_id\":\"m%d\",\"sensors\":{\"v\":%d}}\n", i%3, i)
	}
	for name, text := range map[string]string{"m.csv": times, "m.ndjson": untimed.String()} {
		t.Run(name, func(t *testing.T) {
			s := newSink()
			b := startBroker(t, s)
			path := file(t, name, text)
			cfg := Config{Path: path, State: path + ".state", Brokers: []string{b.Addr().String()}, Mapping: Mapping{Device: "dev"}}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var kept []byte
			s.decide = func(n int, _ *telemetry.Publish) *telemetry.Result {
				if n == 1500 {
					kept, _ = os.ReadFile(cfg.State)
					cancel()
				}
				return nil
			}
			if _, err := do(t, ctx, cfg); !errors.Is(err, ErrInterrupted) {
				t.Fatal(err)
			}
			before := s.total()
			if err := os.WriteFile(cfg.State, kept, 0o644); err != nil {
				t.Fatal(err)
			}
			sum, err := do(t, context.Background(), cfg)
			if err != nil || sum.Messages != 3000 {
				t.Fatalf("got %+v, %v", sum, err)
			}
			if s.repeats == 0 || before < 1500 {
				t.Fatalf("the crash left nothing to repeat (%d readings before)", before)
			}
			if name == "m.csv" {
				same(t, s, want)
			} else if s.total() != 3000 {
				t.Fatalf("%d readings are stored, want 3000", s.total())
			}
		})
	}
}

func TestUnsavedMessagesStayWithinTheWindowOfADevice(t *testing.T) {
	for _, batch := range []int{1, 50} {
		text, _ := meters(8000, 1, nil)
		s := newSink()
		b := startBroker(t, s)
		path := file(t, "m.csv", text)
		state := path + ".state"
		worst := 0
		s.decide = func(n int, p *telemetry.Publish) *telemetry.Result {
			// Right now so many messages of the device are applied, and the state
			// file covers so many: a crash here repeats the difference.
			raw, err := os.ReadFile(state)
			if err != nil {
				t.Errorf("no state file: %v", err)
				return nil
			}
			var line int
			_, at, _ := bytes.Cut(raw, []byte(`"line":`))
			if _, err := fmt.Sscanf(string(at), "%d", &line); err != nil {
				t.Errorf("state %s: %v", raw, err)
			}
			worst = max(worst, len(s.readings["m0"])/2-line+1)
			return nil
		}
		if _, err := do(t, context.Background(), Config{Path: path, State: state, Brokers: []string{b.Addr().String()}, Batch: batch, Mapping: Mapping{Device: "dev"}}); err != nil {
			t.Fatal(err)
		}
		if worst > unsavedMax || worst == 0 {
			t.Errorf("batch %d: %d messages beyond the state file, at most %d may be", batch, worst, unsavedMax)
		}
	}
}

func TestFileThatHasGrownGoesOn(t *testing.T) {
	text, want := meters(100, 2, nil)
	s := newSink()
	b := startBroker(t, s)
	path := file(t, "m.csv", text[:len(text)/2])
	cfg := Config{Path: path, State: path + ".state", Brokers: []string{b.Addr().String()}, Mapping: Mapping{Device: "dev"}}
	half := strings.LastIndexByte(text[:len(text)/2], '\n') + 1
	if err := os.WriteFile(path, []byte(text[:half]), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := do(t, context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	sum, err := do(t, context.Background(), cfg)
	if err != nil || sum.Messages != 100 || sum.Already {
		t.Fatalf("got %+v, %v", sum, err)
	}
	same(t, s, want)
	if s.repeats != 0 {
		t.Errorf("%d repeats", s.repeats)
	}
}

func TestStateOfAnotherImportIsRefused(t *testing.T) {
	text, _ := meters(100, 2, nil)
	s := newSink()
	b := startBroker(t, s)
	path := file(t, "m.csv", text)
	state := path + ".state"
	cfg := Config{Path: path, State: state, Cluster: "c1", Brokers: []string{b.Addr().String()}, Mapping: Mapping{Device: "dev"}}
	if _, err := do(t, context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	other := cfg
	other.Path = file(t, "other.csv", "x"+text)
	other.Mapping.Time = "xts"
	columns := cfg
	columns.Mapping.Sensors = []string{"a"}
	elsewhere := cfg
	elsewhere.Cluster = "c2"
	for want, c := range map[string]Config{"another beginning": other, "differently": columns, "another cluster": elsewhere} {
		_, err := do(t, context.Background(), c)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--restart") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	for _, garbage := range []string{"{", `{"version":2}`, `{"version":1}`, ""} {
		if err := os.WriteFile(state, []byte(garbage), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := do(t, context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "--restart") {
			t.Errorf("state %q: got %v", garbage, err)
		}
	}
	cfg.Restart = true
	if sum, err := do(t, context.Background(), cfg); err != nil || sum.Messages != 100 {
		t.Fatalf("restart: got %+v, %v", sum, err)
	}
}

func TestSecondImportOfTheSameFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f, _, err := openState(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := openState(path, false); err == nil || !strings.Contains(err.Error(), "another import") {
		t.Fatalf("got %v", err)
	}
	f.close()
	f, _, err = openState(path, false)
	if err != nil {
		t.Fatal(err)
	}
	f.close()
}

func TestNothingThereIsAnError(t *testing.T) {
	text, _ := meters(10, 1, nil)
	path := file(t, "m.csv", text)
	ok := Config{Path: path, Brokers: []string{"127.0.0.1:1"}, StartTimeout: 300 * time.Millisecond, Mapping: Mapping{Device: "dev"}}
	empty, dir, broken, gone := ok, ok, ok, ok
	empty.Path = file(t, "e.csv", "")
	dir.Path = t.TempDir()
	gone.Path = path + "x"
	broken.Path = file(t, "b.gz", text)
	b, err := os.ReadFile(broken.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken.Path, append(b[:3], "xxxxxxxx"...), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, cfg := range map[string]Config{
		"no node can be reached": ok, "is empty": empty, "is a directory": dir, "no such file": gone, "unexpected EOF": broken,
	} {
		if _, err := do(t, context.Background(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestCutGzipFailsAfterWhatCanBeRead(t *testing.T) {
	text, _ := meters(5000, 1, nil)
	path := file(t, "m.csv.gz", text)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b[:len(b)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	s := newSink()
	br := startBroker(t, s)
	sum, err := do(t, context.Background(), Config{Path: path, State: path + ".s", Brokers: []string{br.Addr().String()}, Mapping: Mapping{Device: "dev"}})
	if !errors.Is(err, io.ErrUnexpectedEOF) || sum.Complete || sum.Messages == 0 {
		t.Fatalf("got %+v, %v", sum, err)
	}
}
