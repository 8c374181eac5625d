package importer

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/broker"
	"github.com/sluice-iot/sluice/pubsub"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var discard = slog.New(slog.DiscardHandler)

// sink is the ingest path behind one or more real brokers: it parses, keeps what
// it is given, and recognises repeats as the cluster does.
type sink struct {
	mu       sync.Mutex
	scanner  *telemetry.Scanner
	readings map[string][]string // by device: "time sensor value", in the order of arrival
	publish  []telemetry.Publish
	repeats  int
	seen     map[string]bool
	// decide may take the place of the answer, under mu; nil result is applied.
	decide func(n int, p *telemetry.Publish) *telemetry.Result
}

func newSink() *sink {
	return &sink{scanner: telemetry.NewScanner(), readings: map[string][]string{}, seen: map[string]bool{}}
}

func (s *sink) Publish(p *telemetry.Publish, done func(telemetry.Result)) {
	s.mu.Lock()
	res := telemetry.Result{Applied: 1}
	kept := *p
	kept.Payload = slices.Clone(p.Payload)
	s.publish = append(s.publish, kept)
	if s.decide != nil {
		if r := s.decide(len(s.publish)-1, p); r != nil {
			res = *r
		}
	}
	if res.Applied > 0 {
		res = s.apply(p)
	}
	s.mu.Unlock()
	done(res)
}

func (s *sink) apply(p *telemetry.Publish) telemetry.Result {
	ms, err := s.scanner.Parse(p.Device, p.Payload, p.Received, nil)
	if err != nil {
		return telemetry.Result{Refused: 1, Reason: err.Error(), Refusal: telemetry.RefusalTooLarge}
	}
	var res telemetry.Result
	for i := range ms {
		m := &ms[i]
		if m.Reason != "" {
			res.Quarantined++
			res.Reason = m.Reason
			continue
		}
		key := fmt.Sprintf("%s %d", m.Device, m.Time)
		if m.NoTime {
			key = fmt.Sprintf("%s %d %s", p.Client, p.PacketID, p.Payload)
		}
		if s.seen[key] && (!m.NoTime || p.Dup) {
			s.repeats++
			res.Duplicate++
			continue
		}
		s.seen[key] = true
		res.Applied++
		for _, r := range m.Readings {
			s.readings[m.Device] = append(s.readings[m.Device], fmt.Sprintf("%d %s %v", m.Time, r.Sensor, r.Value.Float64()))
		}
	}
	return res
}

func (s *sink) total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.readings {
		n += len(r)
	}
	return n
}

func startBroker(t *testing.T, in broker.Ingest) *broker.Broker {
	t.Helper()
	hub, err := pubsub.Alone(discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hub.Close() })
	b, err := broker.New(discard, nil, broker.Config{Listen: "127.0.0.1:0", CommitDeadline: time.Second}, in, hub)
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
