package shard

import (
	"bytes"
	"maps"
	"slices"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// dupKeysMax bounds the window for publishes without a timestamp of their own,
// per shard: the latest 65,536 of them are more than every connection of a node
// may have in flight to one shard, at about 50 bytes each with the map.
const dupKeysMax = 65536

// dupKeys remembers the latest publishes that cannot be told apart by time. A
// device that says the same thing again under the same packet id holds several
// places; the key is forgotten with the latest of them.
type dupKeys struct {
	count map[telemetry.DupKey]uint32 // places in ring
	ring  []telemetry.DupKey
	next  int // oldest key once the ring is full
	// ahead holds the keys in ring that came marked as a retry before anything
	// unmarked: the first transmission may be held up in a node that stands still.
	ahead map[telemetry.DupKey]ahead
}

// ahead is a retry whose first transmission has not been seen.
type ahead struct {
	origin   string // the node that took it
	received int64
}

// repeats reports whether a publish is one that is known already, and remembers
// it if not. A marked retry is, when its key is known. An unmarked publish is
// only when its retry overtook it: the client gave up a node that stood still and
// sent again through another one, and now the first node goes on with what it had
// read. A device may say the same thing again under the same packet id, therefore
// it counts once, through another node than the retry, and for as long as a
// device's window reaches back.
func (d *dupKeys) repeats(k telemetry.DupKey, retry bool, origin string, received int64) bool {
	if retry && d.has(k) {
		return true
	}
	if a, ok := d.ahead[k]; ok && !retry {
		delete(d.ahead, k)
		if a.origin != origin && received-a.received <= windowAge {
			return true
		}
	}
	d.add(k)
	if retry {
		if d.ahead == nil {
			d.ahead = make(map[telemetry.DupKey]ahead)
		}
		d.ahead[k] = ahead{origin, received}
	}
	return false
}

func (d *dupKeys) has(k telemetry.DupKey) bool { return d.count[k] > 0 }

func (d *dupKeys) add(k telemetry.DupKey) {
	if d.count == nil {
		d.count = make(map[telemetry.DupKey]uint32)
	}
	if len(d.ring) < dupKeysMax {
		d.ring = append(d.ring, k)
	} else {
		d.forget(d.ring[d.next])
		d.ring[d.next] = k
		d.next = (d.next + 1) % dupKeysMax
	}
	d.count[k]++
}

func (d *dupKeys) forget(k telemetry.DupKey) {
	if n := d.count[k]; n > 1 {
		d.count[k] = n - 1
	} else {
		delete(d.count, k)
		delete(d.ahead, k)
	}
}

// append writes the keys oldest first, and those ahead in their order, so that equal windows give equal bytes.
func (d *dupKeys) append(b []byte) []byte {
	b = wire.AppendUint(b, uint64(len(d.ring)))
	for i := range d.ring {
		b = append(b, d.ring[(d.next+i)%len(d.ring)][:]...)
	}
	b = wire.AppendUint(b, uint64(len(d.ahead)))
	compare := func(x, y telemetry.DupKey) int { return bytes.Compare(x[:], y[:]) }
	for _, k := range slices.SortedFunc(maps.Keys(d.ahead), compare) {
		b = append(b, k[:]...)
		b = wire.AppendString(b, d.ahead[k].origin)
		b = wire.AppendInt(b, d.ahead[k].received)
	}
	return b
}

func (d *dupKeys) decode(r *wire.Reader) {
	for range r.Count(len(telemetry.DupKey{})) {
		d.add(telemetry.DupKey(r.Bytes(len(telemetry.DupKey{}))))
	}
	for range r.Count(len(telemetry.DupKey{}) + 2) {
		b := r.Bytes(len(telemetry.DupKey{}))
		a := ahead{r.String(), r.Int()}
		if r.Err() != nil {
			return
		}
		if d.ahead == nil {
			d.ahead = make(map[telemetry.DupKey]ahead)
		}
		d.ahead[telemetry.DupKey(b)] = a
	}
}
