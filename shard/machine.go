package shard

import (
	"fmt"
	"slices"
	"sync"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// futureMax is how far ahead of its receipt a reading may be before it is
// flagged and kept away from the latest value and the detectors.
const futureMax = 10 * 60 * 1_000_000 // microseconds

// Counts is a shard's part of the ledger, in messages unless said otherwise.
// Received is the sum of Applied, Duplicate and Quarantined (refusals are kept
// by the node that refused); Pending = Applied - Flushed.
type Counts struct {
	Applied     uint64 `json:"applied"`
	Duplicate   uint64 `json:"duplicate"`
	Quarantined uint64 `json:"quarantined"`
	Flushed     uint64 `json:"flushed"`
	Nulls       uint64 `json:"nulls"`   // values that give no reading
	Repeats     uint64 `json:"repeats"` // readings removed from messages that also had new ones
}

// machine is the replicated state machine of one shard: a pure function of the
// log. It knows no clock, no randomness and no map order; the same entries give
// the same state and the same answers on every replica.
//
// The raft FSM goroutine is its only writer. mu lets queries and the flusher
// read between two batches; it is held for computing only, never across I/O.
type machine struct {
	mu       sync.Mutex
	shard    telemetry.ShardID
	usual    *anomaly.Detector // with the default target
	detector *anomaly.Detector

	target      float64 // of the detector, 0 the default
	ranges      ranges
	waves       []wave
	index, term uint64 // last entry applied
	now         int64  // latest EntryTime
	origins     origins
	dups        dupKeys
	registry    *registry
	pending     pending
	quarantine  quarantine
	alerts      alerts
	outbox      outbox
	counts      Counts
	puts        puts
	parking     *parking // of the snapshot that was restored; nil: there is room for all
	touched     []uint32 // devices with changes that are not flushed

	sessions *session.State

	events  []Event // of the batch being applied, taken by takeEvents
	scratch scratch
}

// scratch is memory reused from block to block.
type scratch struct {
	block   block.Block
	devices []uint32 // block dictionary -> registry
	sensors []uint32
	salts   []uint64 // of the block's sensors: hash of the name, 0 not computed yet
	keys    []uint32
	values  []string
	hashes  []uint64
	seen    []bool
	series  []uint32 // of the message's readings
	members []uint32 // series of row's sensors
	row     anomaly.Row
	numbers []float64 // of the block's readings
}

func newMachine(shard telemetry.ShardID, detector *anomaly.Detector) *machine {
	return &machine{shard: shard, usual: detector, detector: detector, origins: origins{}, registry: newRegistry(), alerts: newAlerts(), sessions: session.New()}
}

// apply applies one entry. The answer to a block is a Result; control entries
// answer an error or nil. mu is held by the caller.
func (m *machine) apply(index, term uint64, data []byte) any {
	m.index, m.term = index, term
	kind := Kind(data)
	if kind == EntryBlock {
		return m.applyBlock(index, term, data)
	}
	r, err := controlBody(data)
	if err != nil {
		return err
	}
	switch kind {
	case EntryTime:
		if now, since := r.Int(), r.Int(); r.Err() == nil {
			m.now = max(m.now, now)
			m.quarantine.expire(m.now)
			if since > 0 {
				m.applySilence(index, m.now, since)
			}
		}
	case EntryFlush:
		e, err := decodeFlush(r)
		if err != nil {
			return fmt.Errorf("decode flush entry %d: %w", index, err)
		}
		return m.applyFlush(e)
	case EntryFlushed:
		lane, to, gap, err := decodeFlushed(r)
		if err != nil {
			return fmt.Errorf("decode flushed entry %d: %w", index, err)
		}
		return m.applyFlushed(lane, to, gap)
	case EntryQuarantineRemove:
		for range r.Count(1) {
			m.quarantine.remove(r.Uint())
		}
	case EntryWatch:
		return m.applyWatch(index, r)
	case EntryAttributes:
		p, err := decodePut(r)
		if err != nil {
			return fmt.Errorf("decode attributes entry %d: %w", index, err)
		}
		return m.applyPut(index, term, p)
	case EntrySession:
		now := r.Int()
		if r.Err() != nil {
			return fmt.Errorf("decode session entry %d: %w", index, r.Err())
		}
		m.holdsNoRows(index, term)
		return m.sessions.Apply(now, r.Rest())
	case EntryMessage, EntryDelete:
		// The kinds are part of the format so that a later version can write
		// them; a shard that gets one before its replicas understand it says so
		// to the proposer and stays where it is.
		return &KindError{Kind: kind}
	default:
		return &KindError{Kind: kind}
	}
	if r.Err() != nil {
		return fmt.Errorf("decode entry %d of kind %d: %w", index, kind, r.Err())
	}
	return nil
}

// rowlessMax is how many entries without rows may follow each other before the
// watermark is made to pass them: they would keep the log for ever in a shard that
// hears nothing else.
const rowlessMax = 256

// holdsNoRows notes that the entry brings nothing to the store.
func (m *machine) holdsNoRows(index, term uint64) {
	if index >= m.pending.last()+rowlessMax {
		m.pending.add(&pendingBlock{index: index, term: term})
	}
}

// KindError answers an entry of a kind that this version does not act on.
type KindError struct{ Kind EntryKind }

func (e *KindError) Error() string {
	return fmt.Sprintf("entry kind %d is not served by this version", e.Kind)
}

// applyFlush takes the decision that (from, to] is written by every replica.
func (m *machine) applyFlush(e flushEntry) any {
	if e.To >= m.index {
		return fmt.Errorf("flush up to %d is decided by entry %d, which is not behind it: %w", e.To, m.index, errFlushStale)
	}
	if err := m.pending.decide(e.From, e.To); err != nil {
		return err
	}
	f := m.pending.decided[len(m.pending.decided)-1]
	f.updates, f.anomalies = m.changes()
	m.settle(e.To)
	f.compareTo, f.compare = e.PreviousTo, e.Previous
	m.counts.Flushed += f.messages
	return nil
}

// applyFlushed takes note of what the shared database holds of a lane.
func (m *machine) applyFlushed(lane telemetry.Lane, to uint64, gap telemetry.Gap) any {
	if to >= m.index {
		return fmt.Errorf("flush up to %d is reported by entry %d, which is not behind it: %w", to, m.index, errFlushStale)
	}
	messages, err := m.pending.flushed(lane, to, gap)
	if err != nil {
		return err
	}
	m.counts.Flushed += messages
	if lane == telemetry.LaneLive {
		m.settle(to)
	}
	return nil
}

// everything lists all devices and listed anomalies as changes would: for a
// database that has lost some.
func (m *machine) everything() ([]telemetry.DeviceUpdate, []telemetry.Anomaly) {
	out := make([]telemetry.DeviceUpdate, 0, m.registry.devices.n)
	for i := range m.registry.devices.n {
		d := m.registry.devices.at(i)
		out = append(out, telemetry.DeviceUpdate{Device: d.id, FirstSeen: d.firstSeen, LastSeen: d.lastSeen, Attributes: m.registry.attributes(d)})
	}
	sortUpdates(out)
	return out, m.alerts.all()
}

// changes lists the devices and anomalies that changed since the last flush,
// sorted, in their present state.
func (m *machine) changes() ([]telemetry.DeviceUpdate, []telemetry.Anomaly) {
	out := make([]telemetry.DeviceUpdate, 0, len(m.touched))
	for _, i := range m.touched {
		d := m.registry.devices.peek(i)
		out = append(out, telemetry.DeviceUpdate{Device: d.id, FirstSeen: d.firstSeen, LastSeen: d.lastSeen, Attributes: m.registry.attributes(d)})
	}
	sortUpdates(out)
	return out, m.alerts.changes()
}

// settle forgets the changes that a flush up to an index has taken along; what
// changed behind it belongs to the next flush as well.
func (m *machine) settle(to uint64) {
	m.touched = slices.DeleteFunc(m.touched, func(i uint32) bool {
		if m.registry.devices.peek(i).changed > to {
			return false
		}
		m.registry.devices.at(i).changed = 0
		return true
	})
	m.alerts.settle(to)
}
