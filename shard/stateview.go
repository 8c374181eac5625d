package shard

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/cespare/xxhash/v2"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/session"
)

// stateView is the state at one index. It is taken under the machine's lock in
// about a millisecond, whatever the number of devices, and read without it:
// devices, series and sessions are copied on write, names are only ever appended to,
// and what is bounded is copied or encoded at once.
type stateView struct {
	head       []byte // versions, index, counts, origins, puts, anomalies
	dups       dupKeys
	quarantine quarantine
	names      []string
	devices    slabView[device]
	watches    slabView[watch]
	series     slabView[series]
	states     slabView[anomaly.State]
	touched    []uint32
	sessions   *session.View
	index      uint64
	lock       sync.Locker // of the machine
	registry   *registry   // as it was: a restore may have given the machine another one
}

// view needs mu; the view is given back by release.
func (m *machine) view() *stateView {
	g := m.registry
	return &stateView{
		head: m.appendHead(nil), dups: m.dups.clone(), quarantine: quarantine{items: slices.Clone(m.quarantine.items), next: m.quarantine.next},
		names: g.names, devices: g.devices.view(), watches: g.watches.view(), series: g.series.view(), states: g.states.view(),
		touched: slices.Clone(m.touched), sessions: m.sessions.View(), index: m.index, lock: &m.mu, registry: g,
	}
}

// release ends the view; nothing is read from it afterwards.
func (v *stateView) release() {
	v.lock.Lock()
	defer v.lock.Unlock()
	v.registry.devices.release()
	v.registry.watches.release()
	v.registry.series.release()
	v.registry.states.release()
	v.sessions.Release()
}

// digest is a fingerprint of the whole state; equal logs give equal digests.
func (v *stateView) digest() uint64 {
	h := xxhash.New()
	_ = v.write(h) // a hash takes everything
	return h.Sum64()
}

// digest is the fingerprint of the state as it is now.
func (m *machine) digest() uint64 {
	m.mu.Lock()
	v := m.view()
	m.mu.Unlock()
	defer v.release()
	return v.digest()
}

// sectionEntries is how many devices or series a section holds: some 100 KB, so
// that neither end of a snapshot needs memory for more.
const sectionEntries = 256

// write writes the sections of the state, canonically: equal states give equal
// bytes.
func (v *stateView) write(w io.Writer) error {
	buf := v.dups.append(nil)
	for _, section := range [][]byte{v.head, buf, v.quarantine.append(nil)} {
		if err := writeSection(w, section); err != nil {
			return err
		}
	}
	buf = wire.AppendUint(buf[:0], uint64(len(v.names)))
	for _, n := range v.names {
		buf = wire.AppendString(buf, n)
	}
	buf = wire.AppendUint(buf, uint64(v.devices.n))
	buf = wire.AppendUint(buf, uint64(v.series.n))
	if err := writeSection(w, buf); err != nil {
		return err
	}
	changed := make([]uint64, len(v.touched)) // read before the devices are let go
	for i, d := range v.touched {
		changed[i] = v.devices.at(d).changed
	}
	for from := uint32(0); from < v.devices.n; from += sectionEntries {
		buf = v.appendDevices(buf[:0], from, min(from+sectionEntries, v.devices.n))
		if err := writeSection(w, buf); err != nil {
			return err
		}
	}
	for from := uint32(0); from < v.series.n; from += sectionEntries {
		buf = v.appendSeries(buf[:0], from, min(from+sectionEntries, v.series.n))
		if err := writeSection(w, buf); err != nil {
			return err
		}
	}
	buf = wire.AppendUint(buf[:0], uint64(len(v.touched)))
	for i, d := range v.touched {
		buf = wire.AppendUint(buf, uint64(d))
		buf = wire.AppendUint(buf, changed[i])
	}
	if err := writeSection(w, buf); err != nil {
		return err
	}
	return writeSection(w, v.sessions.Append(nil, v.lock))
}

func (v *stateView) appendDevices(b []byte, from, to uint32) []byte {
	for i := from; i < to; i++ {
		b = v.devices.at(i).append(b)
		b = v.watches.at(i).append(b)
	}
	v.devices.pass(to)
	v.watches.pass(to)
	return b
}

func (v *stateView) appendSeries(b []byte, from, to uint32) []byte {
	var state anomaly.State // a copy, because encoding writes back what it has read
	for i := from; i < to; i++ {
		b = v.series.at(i).append(b)
		state = *v.states.at(i)
		b = anomaly.AppendState(b, &state)
	}
	v.series.pass(to)
	v.states.pass(to)
	return b
}

// clone copies the keys for a view.
func (d *dupKeys) clone() dupKeys {
	return dupKeys{ring: slices.Clone(d.ring), next: d.next, ahead: maps.Clone(d.ahead)}
}

func writeSection(w io.Writer, b []byte) error {
	if len(b) > sectionBytesMax {
		return fmt.Errorf("section of %d bytes is over the bound of %d", len(b), sectionBytesMax)
	}
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(len(b)))
	if _, err := w.Write(n[:]); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}
