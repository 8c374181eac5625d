package simulate

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/broker"
	"github.com/sluice-iot/sluice/pubsub"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stored is the ingest path of one or more brokers: it parses what it gets.
type stored struct {
	mu      sync.Mutex
	scanner *telemetry.Scanner
	clients map[string]bool
	times   map[string][]int64
	bad     []string
	hold    bool // answers nothing
}

func newStored() *stored {
	return &stored{scanner: telemetry.NewScanner(), clients: map[string]bool{}, times: map[string][]int64{}}
}

func (s *stored) Publish(p *telemetry.Publish, done func(telemetry.Result)) {
	s.mu.Lock()
	if s.hold {
		s.mu.Unlock()
		done(telemetry.Result{Unknown: 1})
		return
	}
	ms, err := s.scanner.Parse(p.Device, p.Payload, p.Received, nil)
	switch {
	case err != nil || len(ms) != 1 || ms[0].Reason != "":
		s.bad = append(s.bad, fmt.Sprintf("%s: %v %+v", p.Payload, err, ms))
	case !slices.Contains(s.times[p.Device], ms[0].Time):
		s.times[p.Device] = append(s.times[p.Device], ms[0].Time)
	}
	s.clients[p.Client] = true
	s.mu.Unlock()
	done(telemetry.Result{Applied: 1})
}

func startBroker(t *testing.T, in broker.Ingest) *broker.Broker {
	t.Helper()
	hub, err := pubsub.Alone(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hub.Close() })
	b, err := broker.New(slog.New(slog.DiscardHandler), nil, broker.Config{Listen: "127.0.0.1:0"}, in, hub)
	if err == nil {
		hub.Start(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func TestEveryDevicePublishesItsMessages(t *testing.T) {
	in := newStored()
	b := startBroker(t, in)
	s, err := New(slog.New(slog.DiscardHandler), Config{Brokers: []string{b.Addr().String()}, Devices: 20, Interval: 50 * time.Millisecond, ConnectionsMax: 8})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	st := s.Stats()
	if st.Published == 0 || st.Acknowledged != st.Published || st.Refused+st.Quarantined+st.Unanswered != 0 {
		t.Fatalf("got %+v", st)
	}
	if len(in.bad) > 0 {
		t.Fatalf("not telemetry: %s", in.bad[0])
	}
	if len(in.clients) != 8 || len(in.times) != 20 {
		t.Fatalf("%d clients and %d devices, want 8 and 20", len(in.clients), len(in.times))
	}
	total := 0
	for id, times := range in.times {
		if !slices.IsSorted(times) {
			t.Fatalf("%s published out of order", id)
		}
		total += len(times)
	}
	if int64(total) != st.Published {
		t.Fatalf("%d messages stored, %d published", total, st.Published)
	}
}

func TestFleetMovesToTheNodeThatLives(t *testing.T) {
	in := newStored()
	gone, stays := startBroker(t, in), startBroker(t, in)
	s, err := New(slog.New(slog.DiscardHandler), Config{Brokers: []string{gone.Addr().String(), stays.Addr().String()}, Devices: 10, Interval: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	acknowledged := func(n int64) bool {
		for ; s.Stats().Acknowledged < n; time.Sleep(5 * time.Millisecond) {
			if ctx.Err() != nil {
				return false
			}
		}
		return true
	}
	go func() {
		defer cancel()
		if !acknowledged(50) {
			t.Error("not 50 messages arrived while both nodes lived")
			return
		}
		_ = gone.Close()
		if n := s.Stats().Acknowledged; !acknowledged(n + 200) { // of all ten devices, far more than were under way
			t.Errorf("only %d messages arrived after the node was gone", s.Stats().Acknowledged-n)
		}
	}()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Acknowledged != st.Published || st.Unanswered != 0 {
		t.Fatalf("got %+v", st)
	}
}

func TestEqualSeedsMakeEqualValues(t *testing.T) {
	series := func(seed uint64) []values {
		cfg := Config{Brokers: []string{"x:1"}, Devices: 1, Seed: seed}
		cfg.defaults()
		d, w := newDevice(&cfg, 0), newWeather(seed)
		var out []values
		for i := range 5000 {
			out = append(out, d.measure(&w, time.Unix(1_700_000_000+int64(i), 0), 0.001))
		}
		return out
	}
	a, b, c := series(7), series(7), series(8)
	if !slices.Equal(a, b) {
		t.Fatal("the same seed gives different values")
	}
	if slices.Equal(a, c) {
		t.Fatal("different seeds give equal values")
	}
}

// TestValuesAreBelievable runs a day of ten devices.
func TestValuesAreBelievable(t *testing.T) {
	cfg := Config{Brokers: []string{"x:1"}, Devices: 10, Seed: 1}
	cfg.defaults()
	w := newWeather(cfg.Seed)
	for i := range cfg.Devices {
		d := newDevice(&cfg, i)
		var low, high = math.Inf(1), math.Inf(-1)
		var sumT, sumH, sumTH, sumTT, sumHH, n float64
		for sec := 0; sec < 86_400; sec += 10 {
			v := d.measure(&w, time.Unix(1_700_000_000+int64(sec), 0), 0)
			if v.temperature < -40 || v.temperature > 70 || v.humidity < 0 || v.humidity > 100 || v.pressure < 900 || v.pressure > 1060 || v.battery < 0 || v.battery > 100 {
				t.Fatalf("device %d at %d s: %+v", i, sec, v)
			}
			low, high = min(low, v.temperature), max(high, v.temperature)
			sumT, sumH, n = sumT+v.temperature, sumH+v.humidity, n+1
			sumTH, sumTT, sumHH = sumTH+v.temperature*v.humidity, sumTT+v.temperature*v.temperature, sumHH+v.humidity*v.humidity
		}
		if high-low < 2 || high-low > 20 {
			t.Errorf("device %d: temperature from %.1f to %.1f within a day", i, low, high)
		}
		r := (sumTH/n - sumT/n*sumH/n) / math.Sqrt((sumTT/n-sumT/n*sumT/n)*(sumHH/n-sumH/n*sumH/n))
		if r > -0.5 {
			t.Errorf("device %d: temperature and humidity correlate with %.2f, want a strong negative", i, r)
		}
	}
}

func TestFaultsHappen(t *testing.T) {
	cfg := Config{Brokers: []string{"x:1"}, Devices: 1, Seed: 3}
	cfg.defaults()
	d, w := newDevice(&cfg, 0), newWeather(cfg.Seed)
	seen := map[fault]int{}
	before := faultNone
	for i := range 200_000 {
		d.measure(&w, time.Unix(1_700_000_000+int64(i), 0), 1.0/1000)
		if d.fault != faultNone && before == faultNone {
			seen[d.fault]++
		}
		before = d.fault
	}
	for f := faultStuck; f < faultKinds; f++ {
		if seen[f] < 10 {
			t.Errorf("fault %d happened %d times in 200,000 messages", f, seen[f])
		}
	}
}

func TestConfigNamesEveryProblem(t *testing.T) {
	err := (&Config{Devices: 0, Interval: time.Millisecond, Prefix: "a b", ConnectionsMax: -1}).Validate()
	for _, want := range []string{"brokers", "devices", "interval", "connections", "prefix"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not name %s", err, want)
		}
	}
}
