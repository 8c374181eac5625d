package shard

import (
	"math"
	"math/bits"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/sluice-iot/sluice/internal/mutate"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

func (m *machine) applyBlock(index, term uint64, data []byte) Result {
	h, err := block.ParseHeader(data)
	if err != nil || h.Namespace != namespace || h.Shard != m.shard {
		return Result{Status: StatusInvalid}
	}
	if res, ok := m.origins.admit(h.Origin, h.Epoch, h.Seq); !ok {
		return res
	}
	res := Result{Status: StatusApplied, Index: index}
	b := &m.scratch.block
	if err := b.Decode(data); err != nil || !m.numbers(b) {
		// The origin encoded something nobody can read: skipping it is the same
		// decision on every replica, and lets the blocks behind it pass.
		res = Result{Status: StatusInvalid, Index: index}
	} else {
		res.Outcomes = m.applyMessages(index, term, data, b)
	}
	m.origins.record(h.Origin, h.Epoch, h.Seq, res)
	return res
}

// numbers takes the block's values as float64 and reports whether the block
// keeps to the bounds that the state relies on: a replica must not fall over an
// entry, because all of them would, again and again.
func (m *machine) numbers(b *block.Block) bool {
	for i := range b.Messages {
		if r := b.Messages[i].Readings; r.To-r.From > telemetry.SensorsMax {
			return false
		}
	}
	s := m.scratch.numbers[:0]
	for i := range b.Readings {
		x := b.Readings[i].Value.Float64()
		if x-x != 0 {
			return false // not finite: no scanner lets one pass, and no detector could forget it
		}
		s = append(s, x)
	}
	m.scratch.numbers = s
	return true
}

func (m *machine) applyMessages(index, term uint64, data []byte, b *block.Block) []telemetry.Outcome {
	m.mapDictionaries(b)
	p := &pendingBlock{index: index, term: term, data: data, marks: make([]mark, len(b.Readings))}
	var outcomes []telemetry.Outcome
	for i := range b.Messages {
		o := m.applyMessage(index, i, b, p)
		if o == telemetry.Applied {
			m.counts.Applied++
			p.messages[laneOf(&b.Messages[i])]++
		} else if outcomes == nil {
			outcomes = make([]telemetry.Outcome, len(b.Messages))
			for k := range i {
				outcomes[k] = telemetry.Applied
			}
		}
		if outcomes != nil {
			outcomes[i] = o
		}
	}
	m.pending.add(p)
	return outcomes
}

// mapDictionaries prepares the resolution of the block's names, each when it is
// first needed: a block in which all messages of a device go to quarantine must
// not create the device, and a repeat creates no series.
func (m *machine) mapDictionaries(b *block.Block) {
	s := &m.scratch
	s.devices = refill(s.devices, len(b.Devices), none)
	s.sensors = refill(s.sensors, len(b.Sensors), none)
	s.keys = refill(s.keys, len(b.Keys), none)
	s.values = refill(s.values, len(b.Values), "")
	s.salts = s.salts[:0]
	for _, name := range b.Sensors {
		s.salts = append(s.salts, xxhash.Sum64String(name))
	}
}

func refill[T any](s []T, n int, v T) []T {
	s = s[:0]
	for range n {
		s = append(s, v)
	}
	return s
}

func (m *machine) applyMessage(index uint64, pos int, b *block.Block, p *pendingBlock) telemetry.Outcome {
	e := &b.Messages[pos]
	if e.Dup != (telemetry.DupKey{}) && m.dups.repeats(e.Dup, e.Retry, b.Origin, e.Received) && !mutate.On(mutate.NoDedup) {
		return m.repeated(e, p)
	}
	if e.Quarantined >= 0 {
		m.counts.Quarantined++
		m.quarantine.add(m.now, b, e)
		return telemetry.Quarantined
	}
	dev := m.scratch.devices[e.Device]
	if dev == none {
		dev = m.registry.device(b.Devices[e.Device], e.Received)
		m.scratch.devices[e.Device] = dev
	}
	d := m.registry.devices.at(dev)
	if !m.identify(d, e, b, p) {
		m.counts.Duplicate++
		return telemetry.Duplicate
	}
	m.touch(index, dev)
	if len(m.waves) > 0 {
		m.ebb(index, e.Received)
	}
	m.applyHeard(index, dev, d.lastSeen, e.Received)
	d.lastSeen = max(d.lastSeen, e.Received)
	m.applyAttributes(index, d, e, b)
	m.applyReadings(index, pos, dev, e, b, p)
	return telemetry.Applied
}

// repeated settles a redelivery that its key gives away. It counts as a
// duplicate; who sent garbage again hears again that it was garbage.
func (m *machine) repeated(e *block.Entry, p *pendingBlock) telemetry.Outcome {
	m.counts.Duplicate++
	p.dropAll(e)
	if e.Quarantined >= 0 {
		return telemetry.Quarantined
	}
	return telemetry.Duplicate
}

// identify compares the message with the device's window, marks the readings
// that are repeats, and remembers the new ones. It reports whether the message
// brings anything new; a message without readings always does, unless it is a
// marked retry, which applyMessage has already looked at.
func (m *machine) identify(d *device, e *block.Entry, b *block.Block, p *pendingBlock) bool {
	readings := b.ReadingsOf(e)
	if len(readings) == 0 {
		return true
	}
	s, shared := &m.scratch, m.registry.devices.shared()
	s.hashes = s.hashes[:0]
	for i := range readings {
		s.hashes = append(s.hashes, identity(s.salts[readings[i].Sensor], s.numbers[int(e.Readings.From)+i]))
	}
	if !d.window.mayHold(e.Time) {
		d.window.push(e.Time, e.Received, s.hashes, shared)
		return true
	}
	s.seen = refill(s.seen, len(readings), false)
	if !d.window.repeated(e.Time, s.hashes, s.seen) || mutate.On(mutate.NoDedup) {
		d.window.push(e.Time, e.Received, s.hashes, shared)
		return true
	}
	fresh := s.hashes[:0]
	for i, repeat := range s.seen {
		if repeat {
			p.marks[int(e.Readings.From)+i].drop = true
		} else {
			fresh = append(fresh, s.hashes[i])
		}
	}
	if len(fresh) == 0 {
		return false
	}
	m.counts.Repeats += uint64(len(readings) - len(fresh))
	d.window.push(e.Time, e.Received, fresh, shared)
	return true
}

// The multipliers of xxHash64 (Collet, BSD 2-clause, specification 0.1.1).
const (
	prime1 = 0x9E3779B185EBCA87
	prime2 = 0xC2B2AE3D27D4EB4F
	prime3 = 0x165667B19E3779F9
)

// identity is what makes a reading the same as another one of its device at the
// same time: sensor (salt is its name's hash) and value bits. For one sensor it
// is a bijection of the bits: two values of a sensor never look the same.
func identity(salt uint64, value float64) uint64 {
	h := salt ^ bits.RotateLeft64(math.Float64bits(value)*prime2, 31)*prime1
	return avalanche(h)
}

func avalanche(h uint64) uint64 {
	h ^= h >> 33
	h *= prime2
	h ^= h >> 29
	h *= prime3
	return h ^ h>>32
}

func (m *machine) applyAttributes(index uint64, d *device, e *block.Entry, b *block.Block) {
	s := &m.scratch
	for at, a := range b.AttributesOf(e) {
		if s.keys[a.Key] == none {
			s.keys[a.Key] = m.registry.name(b.Keys[a.Key])
		}
		key, value := s.keys[a.Key], b.Values[a.Value]
		if d.hasAttribute(at, key, value) {
			continue
		}
		if s.values[a.Value] == "" {
			s.values[a.Value] = strings.Clone(value)
		}
		d.setAttribute(index, key, m.registry.names, s.values[a.Value], m.registry.devices.shared())
	}
}

// laneOf is the lane of a message's rows; one without readings has none, and is
// live.
func laneOf(e *block.Entry) telemetry.Lane {
	if !e.NoTime && e.Readings.To > e.Readings.From && e.Time < e.Received-lateAfter {
		return telemetry.LaneLate
	}
	return telemetry.LaneLive
}

// applyReadings scores what is new and moves the latest values.
func (m *machine) applyReadings(index uint64, pos int, dev uint32, e *block.Entry, b *block.Block, p *pendingBlock) {
	base := telemetry.Quality(0)
	if e.NoTime {
		base |= telemetry.QualityReceiptTime
	}
	future := e.Time > e.Received+futureMax
	if future {
		base |= telemetry.QualityFuture
	} else {
		m.findSeries(dev, e, b, p)
	}
	m.counts.Nulls += uint64(e.Nulls)
	row := &m.scratch.row
	row.Reset()
	m.scratch.members = m.scratch.members[:0]
	for i := e.Readings.From; i < e.Readings.To; i++ {
		k := &p.marks[i]
		if k.drop {
			continue
		}
		k.lane = laneOf(e)
		p.rows[k.lane]++
		rd := &b.Readings[i]
		k.quality = base
		if rd.Value.Kind == telemetry.KindBool {
			k.quality |= telemetry.QualityBool
		}
		if future {
			continue
		}
		n := m.scratch.series[i-e.Readings.From]
		if n == none {
			k.quality |= telemetry.QualityWarmup
			continue
		}
		s := m.registry.series.at(n)
		x := m.scratch.numbers[i]
		v := m.detector.Add(row, m.registry.states.at(n), e.Time, x)
		if row.Len() > len(m.scratch.members) {
			m.scratch.members = append(m.scratch.members, n)
			if b, out := m.ranges.outside(s.sensor, x); out {
				row.Exceed(row.Len()-1, b.min, b.max)
			}
		}
		k.score = v.Score
		if v.Warmup {
			k.quality |= telemetry.QualityWarmup
		}
		if !s.known || e.Time >= s.time {
			s.known, s.time, s.value, s.score, s.quality = true, e.Time, x, v.Score, k.quality
		}
	}
	if row.Len() > 0 {
		m.applyVerdict(index, pos, dev, e)
	}
}

// findSeries resolves the series of a message's new readings before any of them
// is scored, because a device's false alarms are shared out over its sensors:
// all its detectors hear of a new sensor at the same place of the log.
func (m *machine) findSeries(dev uint32, e *block.Entry, b *block.Block, p *pendingBlock) {
	g := m.registry
	before := g.devices.peek(dev).sensors
	s := m.scratch.series[:0]
	for i := e.Readings.From; i < e.Readings.To; i++ {
		if p.marks[i].drop {
			s = append(s, none)
		} else {
			s = append(s, m.seriesOf(dev, b, b.Readings[i].Sensor))
		}
	}
	m.scratch.series = s
	if d := g.devices.peek(dev); d.sensors != before {
		for n := d.firstSeries; n != none; n = g.series.peek(n).next {
			g.states.at(n).SetSensors(int(d.sensors))
		}
	}
}

// seriesOf returns the series of a sensor of the block, none for one that is
// new to a device that has seriesMax of them.
func (m *machine) seriesOf(dev uint32, b *block.Block, sensor uint32) uint32 {
	g, known := m.registry, m.scratch.sensors
	if known[sensor] == none {
		i, ok := g.byName[b.Sensors[sensor]]
		if !ok {
			if g.devices.peek(dev).sensors >= seriesMax {
				return none
			}
			i = g.name(b.Sensors[sensor])
		}
		known[sensor] = i
	}
	return g.seriesOf(dev, known[sensor])
}
