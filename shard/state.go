package shard

import (
	"fmt"

	"github.com/cespare/xxhash/v2"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// digest is a fingerprint of the whole state; equal logs give equal digests.
func (m *machine) digest() uint64 { return xxhash.Sum64(m.appendState(nil)) }

// appendState encodes everything but the data of pending blocks, canonically.
func (m *machine) appendState(b []byte) []byte {
	b = append(b, stateVersion)
	b = wire.AppendUint(b, namespace)
	b = wire.AppendUint(b, uint64(m.shard))
	b = wire.AppendUint(b, anomaly.Version)
	b = wire.AppendUint(b, m.index)
	b = wire.AppendUint(b, m.term)
	b = wire.AppendInt(b, m.now)
	for _, n := range [...]uint64{m.counts.Applied, m.counts.Duplicate, m.counts.Quarantined, m.counts.Flushed, m.counts.Nulls, m.counts.Repeats} {
		b = wire.AppendUint(b, n)
	}
	b = m.origins.append(b)
	b = m.dups.append(b)
	b = m.puts.append(b)
	b = m.registry.append(b)
	b = m.quarantine.append(b)
	b = m.alerts.append(b)
	b = wire.AppendUint(b, uint64(len(m.touched)))
	for _, d := range m.touched {
		b = wire.AppendUint(b, uint64(d))
		b = wire.AppendUint(b, m.registry.devices.at(d).changed)
	}
	return b
}

// stateVersion is the format version of a snapshot's state section.
const stateVersion = 3

// decodeState replaces the state by what appendState wrote.
func (m *machine) decodeState(r *wire.Reader) error {
	if v := r.Byte(); v != stateVersion {
		return fmt.Errorf("snapshot state has version %d, this node reads version %d: upgrade it", v, stateVersion)
	}
	if ns, shard := r.Uint(), telemetry.ShardID(r.Uint()); ns != namespace || shard != m.shard {
		return fmt.Errorf("snapshot is of namespace %d, shard %d, want namespace %d, shard %d", ns, shard, namespace, m.shard)
	}
	if v := r.Uint(); v == 0 || v > anomaly.Version {
		return fmt.Errorf("snapshot holds detector state of version %d, this node runs version %d: upgrade it", v, anomaly.Version)
	}
	m.origins, m.dups, m.registry, m.alerts, m.quarantine = origins{}, dupKeys{}, newRegistry(), newAlerts(), quarantine{}
	m.index, m.term, m.now = r.Uint(), r.Uint(), r.Int()
	for _, n := range [...]*uint64{&m.counts.Applied, &m.counts.Duplicate, &m.counts.Quarantined, &m.counts.Flushed, &m.counts.Nulls, &m.counts.Repeats} {
		*n = r.Uint()
	}
	m.origins.decode(r)
	m.dups.decode(r)
	m.puts.decode(r)
	if err := m.registry.decode(r); err != nil {
		return err
	}
	m.quarantine.decode(r)
	m.alerts.decode(r)
	m.touched = m.touched[:0]
	for range r.Count(1) {
		i := uint32(r.Uint())
		if i >= m.registry.devices.n {
			return fmt.Errorf("decode touched devices: %w", wire.ErrShort)
		}
		m.registry.devices.at(i).changed = r.Uint()
		m.touched = append(m.touched, i)
	}
	return r.Err()
}
