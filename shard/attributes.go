package shard

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// Tags are the entity tags of one precondition: revisions of attributes, or any.
type Tags struct {
	Given     bool // the precondition is there at all
	Any       bool // "*"
	Revisions []uint64
}

// hold reports whether the present attributes are among the tags.
func (t *Tags) hold(exists bool, revision uint64) bool {
	return exists && (t.Any || slices.Contains(t.Revisions, revision))
}

// tagsMax bounds the revisions of one precondition; a client compares with one.
const tagsMax = 32

// Put replaces the attributes of a device if its preconditions hold. It makes a
// device that the shard does not know.
type Put struct {
	// ID tells this put from every other one: the same ID has one effect and one
	// answer, however often it reaches the log.
	ID [16]byte
	// Base is an index that was applied before the put was first proposed.
	Base       uint64
	Received   int64 // microseconds, for a device that is made
	Device     string
	Match      Tags // If-Match
	NoneMatch  Tags // If-None-Match
	Attributes []telemetry.Attribute
}

// PutStatus says what became of a put.
type PutStatus byte

// The statuses; the numbers are part of snapshots and travel between nodes.
const (
	PutStored   PutStatus = 1 // the attributes are replaced
	PutCreated  PutStatus = 2 // and the device is new
	PutMismatch PutStatus = 3 // a precondition does not hold; nothing has changed
	PutUnknown  PutStatus = 4 // it may have been applied once, too long ago to tell
)

// PutResult is the answer to a put. Revision is that of the attributes as they
// are afterwards.
type PutResult struct {
	Status   PutStatus
	Revision uint64
}

// Attributes are a device's attributes with the index of the entry that changed
// them last; no two states of them share a revision.
type Attributes struct {
	Revision   uint64
	Attributes []telemetry.Attribute // sorted by key
}

// putsMax is how many answers to puts a shard remembers. A put is proposed again
// for at most the few seconds that its client waits, so that this forgets one
// too early above several hundred puts per second and shard; such a put is
// answered as unknown.
const putsMax = 4096

// putRecord is the memory of one put, 40 bytes.
type putRecord struct {
	id     [16]byte
	index  uint64 // of the entry that was answered
	result PutResult
}

// puts remembers the answers to the latest puts, so that one that is proposed
// again (its leader died before it could answer) hears its first answer.
//
// What is forgotten may not be applied a second time either. A put that was
// applied at an index has a base below it, therefore: base < forgotten is the
// condition under which a put that is not remembered may have been applied.
type puts struct {
	ring      []putRecord
	next      int    // oldest record once the ring is full
	forgotten uint64 // index of the newest record that is gone
}

// find returns the answer to a put that was applied before.
func (p *puts) find(id [16]byte) (PutResult, bool) {
	for i := range p.ring { // 64 KiB at most: cheaper than an index for all shards
		if p.ring[i].id == id {
			return p.ring[i].result, true
		}
	}
	return PutResult{}, false
}

func (p *puts) add(r putRecord) {
	if len(p.ring) < putsMax {
		p.ring = append(p.ring, r)
		return
	}
	p.forgotten = p.ring[p.next].index
	p.ring[p.next] = r
	p.next = (p.next + 1) % putsMax
}

// append writes the records oldest first, so that equal memories give equal bytes.
func (p *puts) append(b []byte) []byte {
	b = wire.AppendUint(b, p.forgotten)
	b = wire.AppendUint(b, uint64(len(p.ring)))
	for i := range p.ring {
		r := &p.ring[(p.next+i)%len(p.ring)]
		b = append(b, r.id[:]...)
		b = wire.AppendUint(b, r.index)
		b = r.result.append(b)
	}
	return b
}

func (p *puts) decode(r *wire.Reader) {
	*p = puts{}
	forgotten := r.Uint()
	for range r.Count(19) {
		var rec putRecord
		copy(rec.id[:], r.Bytes(len(rec.id)))
		rec.index, rec.result = r.Uint(), decodePutResult(r)
		p.add(rec)
	}
	p.forgotten = max(p.forgotten, forgotten)
}

func (r PutResult) append(b []byte) []byte {
	return wire.AppendUint(append(b, byte(r.Status)), r.Revision)
}

func decodePutResult(r *wire.Reader) PutResult {
	return PutResult{Status: PutStatus(r.Byte()), Revision: r.Uint()}
}

// The bits of the byte that says which preconditions a put has.
const (
	putMatch = 1 << iota
	putMatchAny
	putNoneMatch
	putNoneMatchAny
	putConditions = putMatch | putMatchAny | putNoneMatch | putNoneMatchAny
)

// encode is the put as an entry of the log.
func (p *Put) encode() []byte {
	b := appendControl(nil, EntryAttributes)
	b = append(b, p.ID[:]...)
	b = wire.AppendUint(b, p.Base)
	b = wire.AppendInt(b, p.Received)
	b = wire.AppendString(b, p.Device)
	flags := byte(0)
	for bit, on := range [...]bool{p.Match.Given, p.Match.Any, p.NoneMatch.Given, p.NoneMatch.Any} {
		if on {
			flags |= 1 << bit
		}
	}
	b = append(b, flags)
	for _, t := range [...]*Tags{&p.Match, &p.NoneMatch} {
		b = wire.AppendUint(b, uint64(len(t.Revisions)))
		for _, r := range t.Revisions {
			b = wire.AppendUint(b, r)
		}
	}
	b = wire.AppendUint(b, uint64(len(p.Attributes)))
	for _, a := range p.Attributes {
		b = wire.AppendString(b, a.Key)
		b = wire.AppendString(b, a.Value)
	}
	return b
}

func decodePut(r *wire.Reader) (*Put, error) {
	p := &Put{}
	copy(p.ID[:], r.Bytes(len(p.ID)))
	p.Base, p.Received, p.Device = r.Uint(), r.Int(), r.String()
	flags := r.Byte()
	p.Match.Given, p.Match.Any = flags&putMatch != 0, flags&putMatchAny != 0
	p.NoneMatch.Given, p.NoneMatch.Any = flags&putNoneMatch != 0, flags&putNoneMatchAny != 0
	for _, t := range [...]*Tags{&p.Match, &p.NoneMatch} {
		for range r.Count(1) {
			t.Revisions = append(t.Revisions, r.Uint())
		}
	}
	for range r.Count(2) {
		p.Attributes = append(p.Attributes, telemetry.Attribute{Key: r.String(), Value: r.String()})
	}
	if r.Err() == nil && flags&^putConditions != 0 {
		return nil, fmt.Errorf("preconditions %#x are of a later version: upgrade this node", flags)
	}
	if r.Err() != nil {
		return nil, r.Err()
	}
	return p, p.check()
}

// check sorts the attributes and refuses what the state must not hold.
func (p *Put) check() error {
	if !telemetry.ValidDeviceID(p.Device) {
		return fmt.Errorf("%q is not a device id", p.Device)
	}
	if len(p.Match.Revisions) > tagsMax || len(p.NoneMatch.Revisions) > tagsMax {
		return fmt.Errorf("a precondition has more than %d entity tags: compare with the one that was read", tagsMax)
	}
	slices.SortFunc(p.Attributes, func(a, b telemetry.Attribute) int { return strings.Compare(a.Key, b.Key) })
	return telemetry.CheckAttributes(p.Attributes)
}

// applyPut decides about a put: the answer is a PutResult.
func (m *machine) applyPut(index, term uint64, p *Put) PutResult {
	if res, ok := m.puts.find(p.ID); ok {
		return res
	}
	if p.Base < m.puts.forgotten {
		return PutResult{Status: PutUnknown}
	}
	res := m.decidePut(index, p)
	m.puts.add(putRecord{id: p.ID, index: index, result: res})
	if res.Status != PutMismatch {
		m.pending.add(&pendingBlock{index: index, term: term}) // the next flush takes the device along
	}
	return res
}

func (m *machine) decidePut(index uint64, p *Put) PutResult {
	i, exists := m.registry.byID[p.Device]
	res := PutResult{Status: PutStored}
	if exists {
		res.Revision = m.registry.devices.at(i).revision
	}
	if p.Match.Given && !p.Match.hold(exists, res.Revision) || p.NoneMatch.Given && p.NoneMatch.hold(exists, res.Revision) {
		res.Status = PutMismatch
		return res
	}
	if !exists {
		res.Status = PutCreated
		i = m.registry.device(p.Device, p.Received)
		m.registry.devices.at(i).lastSeen = p.Received
	}
	m.touch(index, i)
	m.registry.replaceAttributes(i, index, p.Attributes)
	res.Revision = index
	return res
}

// touch notes that a device changed at an index, for the next flush.
func (m *machine) touch(index uint64, dev uint32) {
	d := m.registry.devices.at(dev)
	if d.changed == 0 {
		m.touched = append(m.touched, dev)
	}
	d.changed = index
}

// replaceAttributes gives a device new attributes, sorted by key.
func (g *registry) replaceAttributes(dev uint32, index uint64, list []telemetry.Attribute) {
	d := g.devices.at(dev)
	d.revision = index
	d.attributes = make([]attribute, len(list))
	for i, a := range list {
		d.attributes[i] = attribute{key: g.name(a.Key), value: a.Value}
	}
}
