package shard

import (
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// alertsMax bounds the anomalies a shard lists from memory; older ones are in
// the store. With 24 shards this is a quarter of a million alerts.
const alertsMax = 10_000

// Event is a change of an anomaly. Its ID is the same on every replica, so that
// emitting it twice is harmless.
type Event struct {
	ID         string // "<shard>-<log index>-<message in the entry>", "...-s<device>" for missing data
	Shard      telemetry.ShardID
	Index      uint64 // of the entry that changed the anomaly: with ID it names the event
	Model      string // of the device, "" when it has none
	Repeat     bool   // told again by a new leader: an earlier one may have delivered it
	Transition anomaly.Transition
	Anomaly    telemetry.Anomaly
}

type alert struct {
	telemetry.Anomaly
	changed uint64 // raft index of the latest change; 0 once that is flushed
}

// alerts is the list of a shard's latest anomalies; sequence numbers ascend
// from 1, list[0] has number base.
type alerts struct {
	list []alert
	base uint64
}

func newAlerts() alerts { return alerts{base: 1} }

// at returns the anomaly with a sequence number, nil when it is not listed.
func (a *alerts) at(seq uint64) *alert {
	if seq < a.base || seq-a.base >= uint64(len(a.list)) {
		return nil
	}
	return &a.list[seq-a.base]
}

func (a *alerts) open(an telemetry.Anomaly) uint64 {
	a.list = append(a.list, alert{Anomaly: an})
	if len(a.list) > alertsMax {
		a.list[0] = alert{}
		a.list = a.list[1:] // moves nothing; append makes a new array now and then
		a.base++
	}
	return a.base + uint64(len(a.list)) - 1
}

// changes copies what changed since the last flush, sorted by id.
func (a *alerts) changes() []telemetry.Anomaly {
	var out []telemetry.Anomaly
	for i := range a.list {
		if a.list[i].changed != 0 {
			out = append(out, a.list[i].Anomaly)
		}
	}
	slices.SortFunc(out, func(x, y telemetry.Anomaly) int { return strings.Compare(x.ID, y.ID) })
	return out
}

// all copies the list, sorted by id.
func (a *alerts) all() []telemetry.Anomaly {
	out := make([]telemetry.Anomaly, len(a.list))
	for i := range a.list {
		out[i] = a.list[i].Anomaly
	}
	slices.SortFunc(out, func(x, y telemetry.Anomaly) int { return strings.Compare(x.ID, y.ID) })
	return out
}

// settle forgets the changes up to an index, which a flush has taken along.
func (a *alerts) settle(to uint64) {
	for i := range a.list {
		if a.list[i].changed <= to {
			a.list[i].changed = 0
		}
	}
}

// find returns the listed anomaly with an id, nil when there is none.
func (a *alerts) find(id string) *alert {
	for i := range a.list {
		if a.list[i].ID == id {
			return &a.list[i]
		}
	}
	return nil
}

// seq is the sequence number of a listed anomaly.
func (a *alerts) seq(x *alert) uint64 {
	for i := range a.list {
		if &a.list[i] == x {
			return a.base + uint64(i)
		}
	}
	return 0
}

// takeEvents returns the events of the batch just applied.
func (m *machine) takeEvents() []Event {
	ev := m.events
	m.events = nil
	return ev
}

func (a *alerts) append(b []byte) []byte {
	b = wire.AppendUint(b, a.base)
	b = wire.AppendUint(b, uint64(len(a.list)))
	for i := range a.list {
		b = wire.AppendUint(b, a.list[i].changed)
		b = appendAnomaly(b, &a.list[i].Anomaly)
	}
	return b
}

func (a *alerts) decode(r *wire.Reader) {
	a.base = max(1, r.Uint())
	for range r.Count(50) {
		a.list = append(a.list, alert{changed: r.Uint(), Anomaly: decodeAnomaly(r)})
	}
}

func appendAnomaly(b []byte, a *telemetry.Anomaly) []byte {
	b = wire.AppendString(b, a.ID)
	b = wire.AppendString(b, a.Device)
	b = wire.AppendString(b, a.Sensor)
	b = wire.AppendInt(b, a.Opened)
	b = wire.AppendInt(b, a.Closed)
	b = wire.AppendString(b, a.Cause)
	b = wire.AppendString(b, a.Shares)
	b = wire.AppendString(b, a.Wave)
	b = wire.AppendBool(b, a.Normal)
	for _, f := range [...]float64{a.Severity, a.Value, a.Expected, a.Low, a.High} {
		b = wire.AppendFloat(b, f)
	}
	return b
}

func decodeAnomaly(r *wire.Reader) telemetry.Anomaly {
	a := telemetry.Anomaly{ID: r.String(), Device: r.String(), Sensor: r.String(), Opened: r.Int(), Closed: r.Int(), Cause: r.String(), Shares: r.String(), Wave: r.String(), Normal: r.Bool()}
	for _, f := range [...]*float64{&a.Severity, &a.Value, &a.Expected, &a.Low, &a.High} {
		*f = r.Float()
	}
	return a
}

func appendAnomalies(b []byte, as []telemetry.Anomaly) []byte {
	b = wire.AppendUint(b, uint64(len(as)))
	for i := range as {
		b = appendAnomaly(b, &as[i])
	}
	return b
}

func decodeAnomalies(r *wire.Reader) []telemetry.Anomaly {
	var as []telemetry.Anomaly
	for range r.Count(49) {
		as = append(as, decodeAnomaly(r))
	}
	return as
}
