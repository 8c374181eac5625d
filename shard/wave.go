package shard

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

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
	last  int64    // when the latest anomaly of the model opened, us
	count uint32   // anomalies since the model was last calm
	alert uint64   // sequence number of the wave's anomaly, 0 when there is none
	first []uint64 // of the anomalies of single devices before there was one
}

const (
	modelKey   = "model"           // the attribute that says which devices are peers
	wavesMax   = 64                // models with anomalies at a time; further ones are not grouped
	waveLeast  = 10                // devices that make a wave, if they are
	waveShare  = 5                 // one of so many of the model's devices in this shard
	waveCalm   = 30 * 60 * 1000000 // us without a new anomaly that end a wave
	waveFirst  = 1024              // anomalies that a wave takes along at most
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
		w.alert = m.alerts.open(telemetry.Anomaly{ID: fmt.Sprintf("%d-%d-w%d", m.shard, index, pos), Device: WaveOf(model), Opened: e.Time})
		a = m.alerts.at(w.alert)
		m.describeIncident(&a.Anomaly, v)
		m.describeWave(a, w, model)
		m.changedAnomaly(index, a, anomaly.Opened)
		m.fold(index, w, a.ID, e.Time)
		return true
	}
	if a != nil && w.count&(w.count-1) == 0 { // said again at every doubling, not at every device
		m.describeWave(a, w, model)
		m.changedAnomaly(index, a, anomaly.Updated)
	}
	return true
}

// precedes notes the anomaly of a device that may turn out to be the beginning of
// a wave.
func (m *machine) precedes(dev uint32, seq uint64) {
	if w := m.waveOf(m.modelOf(dev)); w != nil && len(w.first) < waveFirst {
		w.first = append(w.first, seq)
	}
}

// fold makes the anomalies before a wave a part of it: they close, and are not
// listed by themselves any more.
func (m *machine) fold(index uint64, w *wave, id string, at int64) {
	for _, seq := range w.first {
		a := m.alerts.at(seq)
		if a == nil || a.Normal {
			continue
		}
		a.Wave = id
		if a.Closed == 0 {
			a.Closed = max(at, a.Opened)
		}
		if dev, ok := m.registry.byID[a.Device]; ok {
			if watch := m.registry.watches.at(dev); watch.alert == seq {
				watch.alert = 0
			}
		}
		m.changedAnomaly(index, a, anomaly.Closed)
	}
	w.first = nil
}

func (m *machine) describeWave(a *alert, w *wave, model string) {
	a.Shares = fmt.Sprintf(waveText, w.count, m.peers(model))
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

// waveText says how many of how many peers a wave has seen.
const waveText = "%d of %d devices of the model"

// MergeWaves makes one anomaly of those that shards raised for the same model at
// about the same time: the earliest, with the devices of all of them. Others are
// left as they are. The order is kept.
func MergeWaves(list []telemetry.Anomaly) []telemetry.Anomaly {
	order := make([]int, 0, len(list))
	for i := range list {
		if IsWave(&list[i]) {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(x, y int) int {
		a, b := &list[x], &list[y]
		return cmp.Or(strings.Compare(a.Device, b.Device), cmp.Compare(a.Opened, b.Opened), strings.Compare(a.ID, b.ID))
	})
	dropped := make([]bool, len(list))
	into, last := -1, int64(0)
	for _, i := range order {
		if into < 0 || list[i].Device != list[into].Device || !SameWave(last, list[i].Opened) {
			into, last = i, list[i].Opened
			continue
		}
		mergeWave(&list[into], &list[i])
		last, dropped[i] = list[i].Opened, true
	}
	out := list[:0]
	for i := range list {
		if !dropped[i] {
			out = append(out, list[i])
		}
	}
	return out
}

// WaveOf is the device id of the anomaly of a model.
func WaveOf(model string) string { return wavePrefix + model }

// IsWave reports whether an anomaly is that of a model.
func IsWave(a *telemetry.Anomaly) bool { return strings.HasPrefix(a.Device, wavePrefix) }

// SameWave reports whether an anomaly that opened at a time continues a wave with
// a latest one at last; both are times of devices.
func SameWave(last, opened int64) bool { return opened <= last+waveCalm }

// WaveDevices is how many devices an anomaly of a model counts, 0 for another.
func WaveDevices(a *telemetry.Anomaly) int {
	var n, of int
	if _, err := fmt.Sscanf(a.Shares, waveText, &n, &of); err != nil {
		return 0
	}
	return n
}

// mergeWave adds one shard's part of a wave to a.
func mergeWave(a *telemetry.Anomaly, part *telemetry.Anomaly) {
	var n, of, m, more int
	_, err1 := fmt.Sscanf(a.Shares, waveText, &n, &of)
	_, err2 := fmt.Sscanf(part.Shares, waveText, &m, &more)
	if err1 == nil && err2 == nil {
		a.Shares = fmt.Sprintf(waveText, n+m, of+more)
	}
	if part.Severity > a.Severity {
		a.Severity, a.Sensor, a.Cause, a.Value, a.Expected, a.Low, a.High = part.Severity, part.Sensor, part.Cause, part.Value, part.Expected, part.Low, part.High
	}
	if a.Closed != 0 && part.Closed != 0 {
		a.Closed = max(a.Closed, part.Closed)
	} else {
		a.Closed = 0
	}
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
		b = wire.AppendUint(b, uint64(len(w.first)))
		for _, seq := range w.first {
			b = wire.AppendUint(b, seq)
		}
	}
	return b
}

func (m *machine) decodeWaves(r *wire.Reader) {
	m.waves = nil
	for range r.Count(5) {
		w := wave{model: r.String(), last: r.Int(), count: uint32(r.Uint()), alert: r.Uint()}
		for range r.Count(1) {
			w.first = append(w.first, r.Uint())
		}
		m.waves = append(m.waves, w)
	}
}
