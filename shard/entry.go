package shard

import (
	"fmt"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// EntryKind names what an entry of the log is. A block of telemetry is stored
// as it is, its first byte being the block format's version (below 0x80); every
// other entry begins with controlBit | kind. FORMAT.md draws both.
type EntryKind byte

// The kinds of entries; the numbers are part of the log format.
const (
	EntryBlock            EntryKind = 0 // telemetry, as the connected node encoded it
	EntryTime             EntryKind = 1 // the leader's clock, proposed when a timer is due
	EntryFlush            EntryKind = 2 // embedded store: every replica writes the named range
	EntryFlushed          EntryKind = 3 // shared database: the range is committed there
	EntrySession          EntryKind = 4 // a batch of operations on sessions, messages to subscribers included
	EntryMessage          EntryKind = 5 // reserved: messages travel in EntrySession
	EntryQuarantineRemove EntryKind = 6 // quarantined messages replayed or dropped by an operator
	EntryDelete           EntryKind = 7 // reserved: a device is deleted everywhere
	EntryAttributes       EntryKind = 8 // a device's attributes are replaced, under preconditions
	EntryWatch            EntryKind = 9 // an operator's word about a device's anomalies
)

const (
	controlBit     = 0x80
	controlVersion = 1
	// gapVersion is of a flushed entry that names a gap: who does not know gaps must
	// not take what lies in one for stored.
	gapVersion = 2
	// namespace is the tenant of every entry until tenants exist.
	namespace = 0
)

// Kind tells what kind of entry data is.
func Kind(data []byte) EntryKind {
	if len(data) == 0 || data[0] < controlBit {
		return EntryBlock
	}
	return EntryKind(data[0] &^ controlBit)
}

// appendControl begins a control entry: kind, version, namespace.
func appendControl(dst []byte, kind EntryKind) []byte {
	dst = append(dst, controlBit|byte(kind), controlVersion)
	return wire.AppendUint(dst, namespace)
}

// controlBody checks the head of a control entry and returns its body.
func controlBody(data []byte) (*wire.Reader, error) {
	r := wire.NewReader(data)
	kind, version, ns := r.Byte()&^controlBit, r.Byte(), r.Uint()
	switch {
	case r.Err() != nil:
		return nil, fmt.Errorf("decode head of entry: %w", r.Err())
	case version != controlVersion && (version != gapVersion || EntryKind(kind) != EntryFlushed):
		return nil, fmt.Errorf("entry of kind %d has version %d, this node reads version %d: upgrade it", kind, version, controlVersion)
	case ns != namespace:
		return nil, fmt.Errorf("entry of kind %d is of namespace %d, which this node does not serve", kind, ns)
	}
	return r, nil
}

// timeEntry carries the leader's clock in microseconds, and since when it has
// been listening to devices; 0 says that no silence is meant.
func timeEntry(now, since int64) []byte {
	return wire.AppendInt(wire.AppendInt(appendControl(nil, EntryTime), now), since)
}

// flushEntry orders every replica to write (from, to] to its own store.
// Previous is the last range the leader has written, with its digest, so that
// every replica compares its own rows with the leader's.
type flushEntry struct {
	From, To   uint64
	PreviousTo uint64
	Previous   [16]byte
}

func (e flushEntry) encode() []byte {
	b := appendControl(nil, EntryFlush)
	b = wire.AppendUint(b, e.From)
	b = wire.AppendUint(b, e.To)
	b = wire.AppendUint(b, e.PreviousTo)
	return append(b, e.Previous[:]...)
}

func decodeFlush(r *wire.Reader) (e flushEntry, err error) {
	e.From, e.To, e.PreviousTo = r.Uint(), r.Uint(), r.Uint()
	copy(e.Previous[:], r.Bytes(len(e.Previous)))
	return e, r.Err()
}

// flushedEntry says that the shared database holds everything of a lane up to to,
// but for the gap; without one it is as short as it was before there were any.
func flushedEntry(lane telemetry.Lane, to uint64, gap telemetry.Gap) []byte {
	b := wire.AppendUint(wire.AppendUint(appendControl(nil, EntryFlushed), uint64(lane)), to)
	if !gap.Open() {
		return b
	}
	b[1] = gapVersion
	return wire.AppendUint(wire.AppendUint(b, gap.From), gap.To)
}

func decodeFlushed(r *wire.Reader) (lane telemetry.Lane, to uint64, gap telemetry.Gap, err error) {
	n, to := r.Uint(), r.Uint()
	if r.Len() > 0 {
		gap = telemetry.Gap{From: r.Uint(), To: r.Uint()}
	}
	switch {
	case r.Err() != nil:
		return 0, 0, gap, r.Err()
	case n >= telemetry.Lanes:
		return 0, 0, gap, fmt.Errorf("lane %d is not known to this version: upgrade it", n)
	case gap != (telemetry.Gap{}) && (n != uint64(telemetry.LaneLive) || !gap.Open() || gap.To >= to):
		return 0, 0, gap, fmt.Errorf("gap from %d to %d of the %s lane up to %d", gap.From, gap.To, telemetry.Lane(n), to)
	}
	return telemetry.Lane(n), to, gap, nil
}

func quarantineRemoveEntry(ids []uint64) []byte {
	b := wire.AppendUint(appendControl(nil, EntryQuarantineRemove), uint64(len(ids)))
	for _, id := range ids {
		b = wire.AppendUint(b, id)
	}
	return b
}
