package broker

import (
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/telemetry"
)

func TestConfigReportsEveryProblem(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Fatalf("the defaults are refused: %v", err)
	}
	err := Config{Window: 70_000, PacketBytesMax: 2048, PayloadBytesMax: 4096, CommitDeadline: -time.Second}.Validate()
	for _, want := range []string{"window 70000", "payload_bytes_max 4096", "commit_deadline"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %s", err, want)
		}
	}
}

func TestPortInUseIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := New(slog.New(slog.DiscardHandler), nil, Config{Listen: l.Addr().String()}, newMemory(), alone(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Fatalf("got %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestMetricsTellOutcomes(t *testing.T) {
	m := newMemory()
	b := start(t, Config{}, m)
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	for i, r := range []telemetry.Result{{Applied: 1}, {Duplicate: 1}, {Quarantined: 1}, {Applied: 1, Quarantined: 1}, {Refused: 1, Refusal: telemetry.RefusalQuota}} {
		c.publish(pub{topic: topic1, qos: 1, id: uint16(i + 1)})
		m.next(t).decide(r)
		c.expect(packets.Puback, uint16(i+1))
	}
	c.publish(pub{topic: "x", qos: 1, id: 9})
	c.expect(packets.Puback, 9)
	for outcome, want := range map[int]float64{outcomeApplied: 1, outcomeDuplicate: 1, outcomeQuarantined: 1, outcomeMixed: 1, outcomeRefused: 1, outcomeLocal: 1} {
		if got := value(t, b.metrics.publishes[1][outcome]); got != want {
			t.Errorf("outcome %d: %v publishes, want %v", outcome, got, want)
		}
	}
	eventually(t, "five acknowledged", func() bool { return b.Stats().Acknowledged == 5 })
	if s := b.Stats(); s.Accepted != 5 || s.InFlight != 0 || s.InFlightBytes != 0 {
		t.Errorf("got %+v", s)
	}
	if _, err := New(slog.New(slog.DiscardHandler), duplicateOf(t), Config{}, m, alone(t)); err == nil {
		t.Error("two brokers share a registry")
	}
}

// duplicateOf is a registry that already has a broker's metrics.
func duplicateOf(t *testing.T) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewRegistry()
	if _, err := New(slog.New(slog.DiscardHandler), reg, Config{}, newMemory(), alone(t)); err != nil {
		t.Fatal(err)
	}
	return reg
}
