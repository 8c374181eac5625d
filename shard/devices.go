package shard

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// none ends a list of slab indexes.
const none = ^uint32(0)

// device is what a shard keeps of one device.
type device struct {
	id                string
	firstSeen         int64 // receive time of its first message
	lastSeen          int64 // receive time of its latest message
	window            window
	attributes        []attribute // sorted by key
	revision          uint64      // raft index of the latest change of attributes, 0 before the first
	changed           uint64      // raft index of its latest message or put; 0 once that is flushed
	firstSeries, hint uint32      // its series, in order of appearance; hint is where the next lookup begins
	lastSeries        uint32      // end of the list
	sensors           uint32      // number of its series
}

type attribute struct {
	key   uint32 // in names
	value string
}

// series is one sensor of one device: the latest reading by event time.
type series struct {
	device, sensor, next uint32
	known                bool // a reading has moved the latest value
	quality              telemetry.Quality
	score                float32
	time                 int64
	value                float64
}

// registry holds the devices and series of one shard: indexes by name, values
// in slabs. The detector state of series i is states.at(i).
type registry struct {
	byID     map[string]uint32
	devices  slab[device]
	watches  slab[watch] // of devices, by the same index
	series   slab[series]
	states   slab[anomaly.State]
	bySensor map[uint64]uint32 // device<<32 | sensor -> series
	names    []string          // sensor names and attribute keys
	byName   map[string]uint32
}

func newRegistry() *registry {
	return &registry{byID: map[string]uint32{}, bySensor: map[uint64]uint32{}, byName: map[string]uint32{}}
}

// name returns the index of a sensor name or attribute key; s is copied.
func (g *registry) name(s string) uint32 {
	if i, ok := g.byName[s]; ok {
		return i
	}
	i := uint32(len(g.names))
	s = strings.Clone(s)
	g.names = append(g.names, s)
	g.byName[s] = i
	return i
}

// device returns the index of a device, making it when it is new; id is copied.
func (g *registry) device(id string, received int64) uint32 {
	if i, ok := g.byID[id]; ok {
		return i
	}
	i := g.devices.add()
	g.watches.add()
	d := g.devices.at(i)
	d.id = strings.Clone(id)
	d.firstSeen, d.firstSeries, d.lastSeries, d.hint = received, none, none, none
	g.byID[d.id] = i
	return i
}

// seriesMax bounds the series of one device, four times what one message may
// name: a device that invents sensor names must not fill the memory of three
// nodes with detectors. Readings beyond it are stored all the same, without a
// score and without a latest value.
const seriesMax = 4 * telemetry.SensorsMax

// seriesOf returns the series of a device's sensor, making it when it is new,
// none when the device has too many. Messages name their sensors in the same order again and again, so the
// neighbour of the last answer is nearly always right.
func (g *registry) seriesOf(dev, sensor uint32) uint32 {
	d := g.devices.at(dev)
	i := d.hint
	if i != none {
		i = g.series.peek(i).next
	}
	if i == none {
		i = d.firstSeries
	}
	if i == none || g.series.peek(i).sensor != sensor {
		key := uint64(dev)<<32 | uint64(sensor)
		found, ok := g.bySensor[key]
		if !ok {
			if d.sensors >= seriesMax {
				return none
			}
			found = g.addSeries(dev, sensor)
		}
		i = found
	}
	d.hint = i
	return i
}

func (g *registry) addSeries(dev, sensor uint32) uint32 {
	i := g.series.add()
	g.states.add()
	s := g.series.at(i)
	s.device, s.sensor, s.next = dev, sensor, none
	d := g.devices.at(dev)
	if d.firstSeries == none {
		d.firstSeries = i
	} else {
		g.series.at(d.lastSeries).next = i
	}
	d.lastSeries = i
	d.sensors++
	g.bySensor[uint64(dev)<<32|uint64(sensor)] = i
	return i
}

// hasAttribute reports whether an attribute has a value already. hint is where
// to look: a device names its attributes in the same order again and again.
func (d *device) hasAttribute(hint int, key uint32, value string) bool {
	if hint < len(d.attributes) && d.attributes[hint].key == key {
		return d.attributes[hint].value == value
	}
	for i := range d.attributes {
		if d.attributes[i].key == key {
			return d.attributes[i].value == value
		}
	}
	return false
}

// setAttribute changes one attribute at an index; value must not be reused by
// the caller. A view that shares the list keeps it as it is.
func (d *device) setAttribute(index uint64, key uint32, names []string, value string, shared bool) {
	if shared {
		d.attributes = slices.Clone(d.attributes)
	}
	i, ok := slices.BinarySearchFunc(d.attributes, key, func(a attribute, k uint32) int {
		return strings.Compare(names[a.key], names[k])
	})
	if ok {
		d.attributes[i].value = value
		d.revision = index
		return
	}
	if len(d.attributes) < attributesMax {
		d.attributes = slices.Insert(d.attributes, i, attribute{key, value})
		d.revision = index
	}
}

// attributesMax bounds what a device may have described; keys beyond it are
// ignored, as the parser's own bound per message is the same.
const attributesMax = telemetry.AttributesMax

func (g *registry) attributes(d *device) []telemetry.Attribute {
	out := make([]telemetry.Attribute, len(d.attributes))
	for i, a := range d.attributes {
		out[i] = telemetry.Attribute{Key: g.names[a.key], Value: a.value}
	}
	return out
}

func appendWord(b []byte, w uint64) []byte { return binary.LittleEndian.AppendUint64(b, w) }

func wordOf(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

func (d *device) append(b []byte) []byte {
	b = wire.AppendString(b, d.id)
	b = wire.AppendInt(b, d.firstSeen)
	b = wire.AppendInt(b, d.lastSeen)
	b = wire.AppendUint(b, d.revision)
	b = d.window.append(b)
	b = wire.AppendUint(b, uint64(len(d.attributes)))
	for _, a := range d.attributes {
		b = wire.AppendUint(b, uint64(a.key))
		b = wire.AppendString(b, a.value)
	}
	return b
}

// append writes a series without its detector.
func (s *series) append(b []byte) []byte {
	b = wire.AppendUint(b, uint64(s.device))
	b = wire.AppendUint(b, uint64(s.sensor))
	b = wire.AppendBool(b, s.known)
	b = append(b, byte(s.quality))
	b = wire.AppendFloat(b, float64(s.score))
	b = wire.AppendInt(b, s.time)
	return wire.AppendFloat(b, s.value)
}

// decodeDevices reads one section of devices, of total in all.
func (g *registry) decodeDevices(r *wire.Reader, total uint64) error {
	for range min(sectionEntries, total-uint64(g.devices.n)) {
		n, id := g.devices.n, r.String()
		i := g.device(id, r.Int())
		if i != n {
			return fmt.Errorf("device %d: %q is there twice", n, id)
		}
		d := g.devices.at(i)
		d.lastSeen, d.revision = r.Int(), r.Uint()
		d.window.decode(r)
		for range r.Count(2) {
			a := attribute{uint32(r.Uint()), r.String()}
			if int64(a.key) >= int64(len(g.names)) {
				return fmt.Errorf("attributes of device %q: %w", id, wire.ErrShort)
			}
			d.attributes = append(d.attributes, a)
		}
		if r.Err() != nil {
			return fmt.Errorf("device %d: %w", n, r.Err())
		}
		if err := g.watches.at(i).decode(r); err != nil {
			return fmt.Errorf("device %d: %w", n, err)
		}
	}
	return nil
}

// decodeSeries reads one section of series with their detectors.
func (g *registry) decodeSeries(r *wire.Reader, total uint64) error {
	for range min(sectionEntries, total-uint64(g.series.n)) {
		dev, sensor := uint32(r.Uint()), uint32(r.Uint())
		if r.Err() != nil || dev >= g.devices.n || int64(sensor) >= int64(len(g.names)) {
			return fmt.Errorf("series %d: %w", g.series.n, wire.ErrShort)
		}
		i := g.addSeries(dev, sensor)
		s := g.series.at(i)
		s.known, s.quality, s.score = r.Bool(), telemetry.Quality(r.Byte()), float32(r.Float())
		s.time, s.value = r.Int(), r.Float()
		rest, err := anomaly.DecodeState(r.Rest(), g.states.at(i))
		if err != nil {
			return fmt.Errorf("detector state of series %d: %w", i, err)
		}
		r.Bytes(r.Len() - len(rest))
	}
	return r.Err()
}
