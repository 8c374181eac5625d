package telemetry

import (
	"hash/maphash"
)

// intern keeps one string for equal byte sequences: a direct-mapped cache, so
// that its memory is bounded and forgetting costs nothing. The hash is seeded;
// nobody can aim for collisions.
type intern struct {
	seed  maphash.Seed
	slots []internSlot
}

type internSlot struct {
	text  string
	stamp uint64 // see fastPath.distinct
}

const (
	internNames    = 1 << 10 // sensor names and keys of all device models
	internTexts    = 1 << 12 // attribute values
	internDevices  = 1 << 12 // device ids behind one node's gateways; a miss costs an allocation
	internEscapes  = 1 << 8
	internBytesMax = 128 // longer strings are not worth keeping
)

func newIntern(slots int) intern {
	return intern{seed: maphash.MakeSeed(), slots: make([]internSlot, slots)}
}

// slot returns where b belongs.
func (n *intern) slot(b []byte) *internSlot {
	return &n.slots[maphash.Bytes(n.seed, b)&uint64(len(n.slots)-1)]
}

func (n *intern) string(b []byte) string {
	if len(b) > internBytesMax {
		return string(b)
	}
	s := n.slot(b)
	if s.text != string(b) {
		s.text = string(b)
	}
	return s.text
}
