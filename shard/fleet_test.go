package shard

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/fleet"
	"github.com/sluice-iot/sluice/telemetry"
)

// TestDevicesAreSelectedInTheShard evaluates expressions over the state that
// entries made, across more devices than are looked at in one go.
func TestDevicesAreSelectedInTheShard(t *testing.T) {
	m := newMachine(3, testDetector())
	const n = 3*devicesAtOnce + 5
	for i := range n {
		id := fmt.Sprintf("d%04d", i)
		k := m.registry.device(id, epoch2026)
		d := m.registry.devices.at(k)
		d.lastSeen = epoch2026 + int64(i)*second
		d.setAttribute(1, m.registry.name("model"), m.registry.names, fmt.Sprintf("x%d", i%3), false)
		d.setAttribute(1, m.registry.name("firmware"), m.registry.names, fmt.Sprint(i), false)
		if i%100 == 7 {
			m.registry.watches.at(k).alert = m.alerts.open(telemetry.Anomaly{ID: id, Device: id, Severity: float64(i) / 10})
		}
	}
	s := &Shard{id: 3, fsm: &fsm{machine: m}}
	for text, want := range map[string]int{
		`attributes.model = "x1"`:  (n + 1) / 3,
		`attributes.firmware < 10`: 10,
		`anomaly`:                  8,
		`severity > 50`:            3,
		`attributes.serial != "1"`: n,
		`last_seen >= -10s`:        11,
		`anomaly and attributes.firmware in (7, 107, 108)`: 2,
	} {
		where, err := fleet.Parse(text, time.UnixMicro(epoch2026+(n-1)*second))
		if err != nil {
			t.Fatal(err)
		}
		var got []Device
		for after := ""; ; {
			page := s.Devices(after, 5, where)
			got = append(got, page...)
			if len(page) < 5 {
				break
			}
			after = page[4].ID
		}
		if len(got) != want {
			t.Errorf("%s selects %d devices, want %d", text, len(got), want)
		}
		for i := 1; i < len(got); i++ {
			if got[i-1].ID >= got[i].ID {
				t.Errorf("%s: %s before %s", text, got[i-1].ID, got[i].ID)
			}
		}
	}
	if got := s.Devices("", n+1, nil); len(got) != n {
		t.Errorf("%d devices without a condition, want %d", len(got), n)
	}
}
