package shard

import (
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/fleet"
)

// devicesAtOnce is how many devices are looked at while apply waits: about 100 us.
const devicesAtOnce = 256

// Devices lists devices behind an id in ascending order, those that where selects
// (nil: all), at most limit.
func (s *Shard) Devices(after string, limit int, where *fleet.Expression) []Device {
	m := s.fsm.machine
	m.mu.Lock()
	ids := make([]string, 0, len(m.registry.byID))
	for id := range m.registry.byID {
		if id > after {
			ids = append(ids, id)
		}
	}
	m.mu.Unlock()
	slices.Sort(ids)
	var out []Device
	for len(ids) > 0 && len(out) < limit {
		n := min(len(ids), devicesAtOnce)
		out = m.selectDevices(out, ids[:n], limit, where)
		ids = ids[n:]
	}
	return out
}

// selectDevices appends those of some devices that where selects.
func (m *machine) selectDevices(out []Device, ids []string, limit int, where *fleet.Expression) []Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		i, ok := m.registry.byID[id]
		if !ok || where != nil && !where.Matches(subject{m, m.registry.devices.at(i)}) {
			continue
		}
		if out = append(out, m.describe(i, false)); len(out) >= limit {
			break
		}
	}
	return out
}

// subject is a device as expressions see it.
type subject struct {
	m *machine
	d *device
}

// ID implements fleet.Device.
func (s subject) ID() string { return s.d.id }

// Seen implements fleet.Device.
func (s subject) Seen() (first, last int64) { return s.d.firstSeen, s.d.lastSeen }

// Attribute implements fleet.Device.
func (s subject) Attribute(key string) (string, bool) {
	names := s.m.registry.names
	i, ok := slices.BinarySearchFunc(s.d.attributes, key, func(a attribute, key string) int { return strings.Compare(names[a.key], key) })
	if !ok {
		return "", false
	}
	return s.d.attributes[i].value, true
}

// Worst implements fleet.Device.
func (s subject) Worst() (severity float64, open bool) {
	w := s.m.registry.watches.peek(s.m.registry.byID[s.d.id])
	for _, seq := range [...]uint64{w.alert, w.silent} {
		if a := s.m.alerts.at(seq); a != nil {
			severity, open = max(severity, a.Severity), true
		}
	}
	return severity, open
}
