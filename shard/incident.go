package shard

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// watch is what is known of a device as a whole: its detector, its open
// anomalies, how often it reports, and until when it is under maintenance. It
// holds no pointer.
type watch struct {
	joint  anomaly.DeviceState
	alert  uint64 // sequence number of its open anomaly, 0 when there is none
	silent uint64 // the same of missing data
	gap    int64  // largest recent time between two messages, us of receipt, decaying
	heard  uint32 // messages that gap rests on, saturating
	until  int64  // end of the maintenance, us of receipt; anomalies before it are not raised
}

const (
	silentHeard  = 32         // messages before the reporting rate is believed
	silentFactor = 3          // a device is silent after so many of its largest gaps
	silentLeast  = 60_000_000 // and at least this, us: a restart is no silence
	gapDecay     = 1024       // messages in which the largest gap is forgotten
	gapClip      = 4          // a gap counts at most so many of the largest one: an outage is not the norm
	silentMax    = 1000       // anomalies that one entry may open: the next entry goes on
	silentGrade  = 60         // severity of missing data, which has no probability
	sharesShown  = 8          // sensors named in an anomaly
)

// hear moves the reporting rate on by a message; lastSeen is the receipt of the
// one before.
func (w *watch) hear(lastSeen, received int64) {
	gap := received - lastSeen
	if lastSeen == 0 || gap < 0 {
		return
	}
	if w.heard >= silentHeard {
		gap = min(gap, gapClip*w.gap)
	}
	w.gap = max(gap, w.gap-w.gap/gapDecay)
	w.heard = min(w.heard+1, silentHeard)
}

// silentAt is when the device counts as silent, 0 for never. since is when the
// leader began to listen: what it cannot have heard is no silence.
func (w *watch) silentAt(lastSeen, since int64) int64 {
	if w.heard < silentHeard || w.silent != 0 {
		return 0
	}
	return max(lastSeen, since) + max(silentFactor*w.gap, silentLeast)
}

// applyHeard ends a silence and learns the reporting rate.
func (m *machine) applyHeard(index uint64, dev uint32, lastSeen, received int64) {
	w := m.registry.watches.at(dev)
	w.hear(lastSeen, received)
	if w.silent == 0 {
		return
	}
	if a := m.alerts.at(w.silent); a != nil {
		a.Closed = max(received, a.Opened)
		m.changedAnomaly(index, a, anomaly.Closed)
	}
	w.silent = 0
}

// applySilence opens an anomaly for every device that should have reported. The
// leader proposes the entry only when there is one.
func (m *machine) applySilence(index uint64, now, since int64) {
	opened := 0
	for dev := range m.registry.devices.n {
		d, w := m.registry.devices.peek(dev), m.registry.watches.peek(dev)
		at := w.silentAt(d.lastSeen, since)
		if at == 0 || now < at || now < w.until {
			continue
		}
		if opened++; opened > silentMax {
			return
		}
		limit := float64(at-max(d.lastSeen, since)) / 1e6
		seq := m.alerts.open(telemetry.Anomaly{
			ID: fmt.Sprintf("%d-%d-s%d", m.shard, index, dev), Device: d.id, Opened: now, Severity: silentGrade, Cause: anomaly.CauseMissing.String(),
			Value: float64(now-d.lastSeen) / 1e6, Expected: float64(w.gap) / 1e6, High: limit,
		})
		m.registry.watches.at(dev).silent = seq
		m.changedAnomaly(index, m.alerts.at(seq), anomaly.Opened)
	}
}

// silentDue reports whether applySilence would open an anomaly at now.
func (m *machine) silentDue(now, since int64) bool {
	for dev := range m.registry.devices.n {
		d, w := m.registry.devices.peek(dev), m.registry.watches.peek(dev)
		if at := w.silentAt(d.lastSeen, since); at != 0 && now >= at && now >= w.until {
			return true
		}
	}
	return false
}

// changedAnomaly notes that an anomaly changed.
func (m *machine) changedAnomaly(index uint64, a *alert, t anomaly.Transition) {
	a.changed = index
	e := Event{ID: a.ID, Shard: m.shard, Index: index, Transition: t, Anomaly: a.Anomaly}
	if dev, ok := m.registry.byID[a.Device]; ok {
		e.Model = m.modelOf(dev)
	}
	m.events = append(m.events, e)
	m.outbox.add(e)
}

// applyVerdict moves the device's anomaly along: an incident of a device is one,
// however many sensors take part.
func (m *machine) applyVerdict(index uint64, pos int, dev uint32, e *block.Entry) {
	w := m.registry.watches.at(dev)
	v := m.detector.Finish(&w.joint, &m.scratch.row, e.Time)
	if v.Alert == anomaly.None {
		return
	}
	a := m.alerts.at(w.alert)
	switch v.Alert {
	case anomaly.Opened:
		if e.Received < w.until || m.surge(index, pos, dev, e, &v) {
			return
		}
		w.alert = m.alerts.open(telemetry.Anomaly{ID: fmt.Sprintf("%d-%d-%d", m.shard, index, pos), Device: m.registry.devices.peek(dev).id, Opened: e.Time})
		a = m.alerts.at(w.alert)
		m.describeIncident(&a.Anomaly, &v)
		m.precedes(dev, w.alert)
	case anomaly.Updated:
		if a == nil {
			return // under maintenance, or older than the list reaches: the store has its opening
		}
		m.describeIncident(&a.Anomaly, &v)
	case anomaly.Closed:
		w.alert = 0
		if a == nil {
			return
		}
		a.Closed = max(e.Time, a.Opened)
	}
	m.changedAnomaly(index, a, v.Alert)
}

// describeIncident writes what the message says of its most surprising sensor,
// and each sensor's share.
func (m *machine) describeIncident(a *telemetry.Anomaly, v *anomaly.DeviceVerdict) {
	row, members := &m.scratch.row, m.scratch.members
	a.Severity, a.Cause = max(a.Severity, 100*float64(v.Score)), v.Cause.String()
	if v.Top >= 0 {
		s, top := m.registry.series.peek(members[v.Top]), row.Verdict(v.Top)
		a.Sensor, a.Value, a.Expected, a.Low, a.High = m.registry.names[s.sensor], s.value, top.Expected, top.Low, top.High
	}
	a.Shares = SharesOf(row, func(i int) string { return m.registry.names[m.registry.series.peek(members[i]).sensor] })
}

// SharesOf is "temperature 0.62, pressure 0.38", the largest first; "" for one
// sensor. name is that of the i-th sensor of the row.
func SharesOf(row *anomaly.Row, name func(i int) string) string {
	if row.Len() < 2 {
		return ""
	}
	used := make([]bool, row.Len())
	var b strings.Builder
	for range min(row.Len(), sharesShown) {
		best, most := -1, 0.005
		for i := range used {
			if s := row.Share(i); !used[i] && s > most {
				best, most = i, s
			}
		}
		if best < 0 {
			break
		}
		used[best] = true
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		b.WriteString(name(best))
		b.WriteByte(' ')
		b.WriteString(strconv.FormatFloat(most, 'f', 2, 64))
	}
	return b.String()
}

// The operations of a watch entry.
const (
	watchMaintain = 1
	watchNormal   = 2
	watchTarget   = 3
	watchRange    = 4
	watchConfirm  = 5
)

// maintenanceEntry says that nothing of a device is an anomaly until a time of
// receipt; a time that has passed ends a maintenance.
func maintenanceEntry(device string, until int64) []byte {
	b := append(appendControl(nil, EntryWatch), watchMaintain)
	return wire.AppendInt(wire.AppendString(b, device), until)
}

// normalEntry says that an anomaly was none.
func normalEntry(id string) []byte {
	return wire.AppendString(append(appendControl(nil, EntryWatch), watchNormal), id)
}

// targetEntry sets the false alarms that a device may raise in 30 days.
func targetEntry(perMonth float64) []byte {
	return wire.AppendFloat(append(appendControl(nil, EntryWatch), watchTarget), perMonth)
}

// setTarget changes the detector for good; 0 keeps the default.
func (m *machine) setTarget(perMonth float64) error {
	p := m.usual.Params()
	if perMonth != 0 {
		p.AlarmsPerDeviceMonth = perMonth
	}
	if err := p.Validate(); err != nil {
		return err
	}
	m.target, m.detector = perMonth, anomaly.New(p)
	return nil
}

// applyWatch applies what an operator says about a device or an anomaly.
func (m *machine) applyWatch(index uint64, r *wire.Reader) any {
	op := r.Byte()
	if op == watchTarget {
		perMonth := r.Float()
		if r.Err() != nil {
			return fmt.Errorf("decode watch entry %d: %w", index, r.Err())
		}
		if err := m.setTarget(perMonth); err != nil {
			return err
		}
		return nil
	}
	switch op {
	case watchRange:
		return m.applyRange(index, r)
	case watchConfirm:
		return m.applyConfirm(index, r)
	}
	name, until := r.String(), int64(0)
	if op == watchMaintain {
		until = r.Int()
	}
	switch {
	case r.Err() != nil:
		return fmt.Errorf("decode watch entry %d: %w", index, r.Err())
	case op == watchMaintain:
		dev, ok := m.registry.byID[name]
		if !ok {
			return fmt.Errorf("device %q: %w", name, ErrNotFound)
		}
		m.registry.watches.at(dev).until = until
		return nil
	case op == watchNormal:
		return m.applyNormal(index, name)
	}
	return fmt.Errorf("watch entry %d: operation %d is not known to this version: upgrade it", index, op)
}

// applyNormal closes an anomaly and makes the device's detectors take its
// pattern as less surprising.
func (m *machine) applyNormal(index uint64, id string) any {
	a := m.alerts.find(id)
	if a == nil {
		return fmt.Errorf("anomaly %q: %w", id, ErrNotFound)
	}
	if a.Normal {
		return nil
	}
	a.Normal = true
	dev, ok := m.registry.byID[a.Device]
	if ok {
		m.excuse(dev, &a.Anomaly)
	}
	t := anomaly.Updated
	if a.Closed == 0 {
		a.Closed = max(a.Opened, m.registry.devices.peek(dev).lastSeen)
		t = anomaly.Closed
		w := m.registry.watches.at(dev)
		w.forget(m.alerts.seq(a))
	}
	m.changedAnomaly(index, a, t)
	return nil
}

// forget lets go of an anomaly that an operator has closed.
func (w *watch) forget(seq uint64) {
	if w.alert == seq {
		w.alert = 0
	}
	if w.silent == seq {
		w.silent = 0
		w.gap *= 2 // silences of this length are usual here
	}
}

// excuse tells the detectors: that of the sensor named, or of the device.
func (m *machine) excuse(dev uint32, a *telemetry.Anomaly) {
	cause := anomaly.CauseOf(a.Cause)
	m.registry.watches.at(dev).joint.Excuse(cause)
	for n := m.registry.devices.peek(dev).firstSeries; n != none; n = m.registry.series.peek(n).next {
		if m.registry.names[m.registry.series.peek(n).sensor] == a.Sensor {
			m.registry.states.at(n).Excuse(cause)
		}
	}
}

func (w *watch) append(b []byte) []byte {
	b = wire.AppendUint(b, w.alert)
	b = wire.AppendUint(b, w.silent)
	b = wire.AppendInt(b, w.gap)
	b = wire.AppendUint(b, uint64(w.heard))
	b = wire.AppendInt(b, w.until)
	joint := w.joint // a copy, because encoding writes back what it has read
	return anomaly.AppendDevice(b, &joint)
}

func (w *watch) decode(r *wire.Reader) error {
	w.alert, w.silent, w.gap = r.Uint(), r.Uint(), r.Int()
	heard := r.Uint()
	w.until = r.Int()
	if r.Err() != nil || heard > silentHeard || w.gap < 0 {
		return fmt.Errorf("watch: %w", wire.ErrShort)
	}
	w.heard = uint32(heard)
	rest, err := anomaly.DecodeDevice(r.Rest(), &w.joint)
	if err != nil {
		return err
	}
	r.Bytes(r.Len() - len(rest))
	return r.Err()
}
