package shard

import (
	"fmt"
	"io"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// stateVersion is the format version of a snapshot's state.
const stateVersion = 8

// appendHead encodes what is small and bounded; appendState's other parts follow
// in sections of their own.
func (m *machine) appendHead(b []byte) []byte {
	b = append(b, stateVersion)
	b = wire.AppendUint(b, namespace)
	b = wire.AppendUint(b, uint64(m.shard))
	b = wire.AppendUint(b, anomaly.Version)
	b = wire.AppendUint(b, m.index)
	b = wire.AppendUint(b, m.term)
	b = wire.AppendInt(b, m.now)
	b = wire.AppendFloat(b, m.target)
	b = m.ranges.append(b)
	for _, n := range [...]uint64{m.counts.Applied, m.counts.Duplicate, m.counts.Quarantined, m.counts.Flushed, m.counts.Nulls, m.counts.Repeats} {
		b = wire.AppendUint(b, n)
	}
	b = m.origins.append(b)
	b = m.puts.append(b)
	b = m.alerts.append(b)
	return m.outbox.append(m.appendWaves(b))
}

func (m *machine) decodeHead(r *wire.Reader) error {
	if v := r.Byte(); v != stateVersion {
		return fmt.Errorf("snapshot state has version %d, this node reads version %d: upgrade it", v, stateVersion)
	}
	if ns, shard := r.Uint(), telemetry.ShardID(r.Uint()); ns != namespace || shard != m.shard {
		return fmt.Errorf("snapshot is of namespace %d, shard %d, want namespace %d, shard %d", ns, shard, namespace, m.shard)
	}
	if v := r.Uint(); v == 0 || v > anomaly.Version {
		return fmt.Errorf("snapshot holds detector state of version %d, this node runs version %d: upgrade it", v, anomaly.Version)
	}
	m.origins, m.alerts = origins{}, newAlerts()
	m.index, m.term, m.now = r.Uint(), r.Uint(), r.Int()
	if target := r.Float(); r.Err() == nil {
		if err := m.setTarget(target); err != nil {
			return fmt.Errorf("detector's target: %w", err)
		}
	}
	if err := m.ranges.decode(r); err != nil {
		return err
	}
	for _, n := range [...]*uint64{&m.counts.Applied, &m.counts.Duplicate, &m.counts.Quarantined, &m.counts.Flushed, &m.counts.Nulls, &m.counts.Repeats} {
		*n = r.Uint()
	}
	m.origins.decode(r)
	m.puts.decode(r)
	m.alerts.decode(r)
	m.decodeWaves(r)
	m.outbox.decode(r, m.shard)
	return r.Err()
}

// decodeState replaces the state by what stateView.write wrote.
func (m *machine) decodeState(from io.Reader) error {
	m.dups, m.registry, m.quarantine, m.touched = dupKeys{}, newRegistry(), quarantine{}, nil
	g := m.registry
	var devices, series uint64
	for _, part := range []struct {
		name   string
		decode func(*wire.Reader) error
	}{
		{"head", m.decodeHead},
		{"keys", func(r *wire.Reader) error { m.dups.decode(r); return r.Err() }},
		{"quarantine", func(r *wire.Reader) error { m.quarantine.decode(r); return r.Err() }},
		{"names", func(r *wire.Reader) error {
			for range r.Count(1) {
				g.name(r.String())
			}
			devices, series = r.Uint(), r.Uint()
			return r.Err()
		}},
	} {
		if err := decodeSection(from, part.name, part.decode); err != nil {
			return err
		}
	}
	for uint64(g.devices.n) < devices {
		if err := decodeSection(from, "devices", func(r *wire.Reader) error { return g.decodeDevices(r, devices) }); err != nil {
			return err
		}
	}
	for uint64(g.series.n) < series {
		if err := decodeSection(from, "series", func(r *wire.Reader) error { return g.decodeSeries(r, series) }); err != nil {
			return err
		}
	}
	if err := decodeSection(from, "touched devices", m.decodeTouched); err != nil {
		return err
	}
	return decodeSection(from, "sessions", func(r *wire.Reader) (err error) {
		m.sessions, err = session.Decode(r)
		return err
	})
}

// decodeSection reads one section and wants it read to its end.
func decodeSection(from io.Reader, name string, decode func(*wire.Reader) error) error {
	b, err := readSection(from)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	r := wire.NewReader(b)
	if err := decode(r); err != nil {
		return fmt.Errorf("decode %s: %w", name, err)
	}
	if r.Len() > 0 {
		return fmt.Errorf("decode %s: %d bytes are left over", name, r.Len())
	}
	return nil
}

func (m *machine) decodeTouched(r *wire.Reader) error {
	for range r.Count(2) {
		i := uint32(r.Uint())
		if i >= m.registry.devices.n {
			return wire.ErrShort
		}
		m.registry.devices.at(i).changed = r.Uint()
		m.touched = append(m.touched, i)
	}
	return r.Err()
}
