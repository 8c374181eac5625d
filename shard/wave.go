package shard

import (
	"fmt"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// wave counts the anomalies that open among the devices of one model: many at
// about the same time have one reason (a firmware release, the weather), and
// become one anomaly. Times are of receipt, so that every replica counts alike.
type wave struct {
	model string
	last  int64  // when the latest anomaly of the model opened, us
	count uint32 // anomalies since the model was last calm
	alert uint64 // sequence number of the wave's anomaly, 0 when there is none
}

const (
	modelKey   = "model"           // the attribute that says which devices are peers
	wavesMax   = 64                // models with anomalies at a time; further ones are not grouped
	waveLeast  = 10                // devices that make a wave, if they are
	waveShare  = 5                 // one of so many of the model's devices in this shard
	waveCalm   = 30 * 60 * 1000000 // us without a new anomaly that end a wave
	wavePrefix = "model:"          // of the device id of its anomaly: no device can be named so
)

// surge counts an anomaly that opens on a device and reports whether it is part
// of a wave, so that it is not raised by itself.
func (m *machine) surge(index uint64, pos int, dev uint32, e *block.Entry, v *anomaly.DeviceVerdict) bool {
	model := m.modelOf(dev)
	w := m.waveOf(model)
	if w == nil {
		return false
	}
	w.count++
	w.last = max(w.last, e.Received)
	a := m.alerts.at(w.alert)
	if w.alert == 0 {
		if w.count < waveLeast || w.count%waveLeast != 0 || int(w.count)*waveShare < m.peers(model) {
			return false
		}
		w.alert = m.alerts.open(telemetry.Anomaly{ID: fmt.Sprintf("%d-%d-w%d", m.shard, index, pos), Device: wavePrefix + model, Opened: e.Time})
		a = m.alerts.at(w.alert)
		m.describeIncident(&a.Anomaly, v)
		m.describeWave(a, w, model)
		m.changedAnomaly(index, a, anomaly.Opened)
		return true
	}
	if a != nil && w.count&(w.count-1) == 0 { // said again at every doubling, not at every device
		m.describeWave(a, w, model)
		m.changedAnomaly(index, a, anomaly.Updated)
	}
	return true
}

func (m *machine) describeWave(a *alert, w *wave, model string) {
	a.Shares = fmt.Sprintf("%d of %d devices of the model", w.count, m.peers(model))
}

// ebb ends the waves that have been calm, by the clock of the messages.
func (m *machine) ebb(index uint64, received int64) {
	kept := m.waves[:0]
	for _, w := range m.waves {
		if received < w.last+waveCalm {
			kept = append(kept, w)
			continue
		}
		if a := m.alerts.at(w.alert); a != nil {
			a.Closed = max(a.Opened, w.last)
			m.changedAnomaly(index, a, anomaly.Closed)
		}
	}
	clear(m.waves[len(kept):])
	m.waves = kept
}

// waveOf finds the wave of a model, making it; nil without a model.
func (m *machine) waveOf(model string) *wave {
	if model == "" {
		return nil
	}
	for i := range m.waves {
		if m.waves[i].model == model {
			return &m.waves[i]
		}
	}
	if len(m.waves) == wavesMax {
		return nil
	}
	m.waves = append(m.waves, wave{model: model})
	return &m.waves[len(m.waves)-1]
}

func (m *machine) modelOf(dev uint32) string {
	key, ok := m.registry.byName[modelKey]
	if !ok {
		return ""
	}
	for _, a := range m.registry.devices.peek(dev).attributes {
		if a.key == key {
			return a.value
		}
	}
	return ""
}

// peers counts the model's devices in this shard. It looks at all of them, which
// happens when a wave may begin and at each of its doublings.
func (m *machine) peers(model string) int {
	n := 0
	for dev := range m.registry.devices.n {
		if m.modelOf(dev) == model {
			n++
		}
	}
	return n
}

func (m *machine) appendWaves(b []byte) []byte {
	b = wire.AppendUint(b, uint64(len(m.waves)))
	for i := range m.waves {
		w := &m.waves[i]
		b = wire.AppendString(b, w.model)
		b = wire.AppendInt(b, w.last)
		b = wire.AppendUint(b, uint64(w.count))
		b = wire.AppendUint(b, w.alert)
	}
	return b
}

func (m *machine) decodeWaves(r *wire.Reader) {
	m.waves = nil
	for range r.Count(4) {
		m.waves = append(m.waves, wave{model: r.String(), last: r.Int(), count: uint32(r.Uint()), alert: r.Uint()})
	}
}
