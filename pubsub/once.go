package pubsub

import (
	"encoding/binary"
	"math"
	"sync"

	"github.com/cespare/xxhash/v2"

	"github.com/sluice-iot/sluice/session"
)

// onceMax is how many publishes of QoS 2 a node remembers to have handed to its
// clients, 3 MiB of them: more than a node publishes in the seconds that a client
// needs to go from a node that died to the next.
const onceMax = 1 << 16

// once knows the last publishes of QoS 2 that were handed to the clients of this
// node, by their fingerprints. The same publish comes again, from another node, when
// its publisher had to send it again and the first node had not yet said, or had no
// time to say, that it was delivered.
type once struct {
	mu    sync.Mutex
	known map[uint64]struct{}
	order []uint64 // a ring once it is full
	at    int
}

// first reports whether a publish is new, and remembers it. What has no fingerprint
// always is.
func (o *once) first(print uint64) bool {
	if print == 0 {
		return true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.known[print]; ok {
		return false
	}
	if o.known == nil {
		o.known = map[uint64]struct{}{}
	}
	o.known[print] = struct{}{}
	if len(o.order) < onceMax {
		o.order = append(o.order, print)
		return true
	}
	delete(o.known, o.order[o.at])
	o.order[o.at] = print
	o.at = (o.at + 1) % onceMax
	return true
}

// handOver gives m to the clients of this node, unless it did before.
func (h *Hub) handOver(m *session.Message, groups []string, print uint64) {
	if h.once.first(print) {
		h.client().Deliver(m, groups)
	}
}

// settled draws one of a group's owners for a publish of QoS 2, the same one on every
// node: weighted rendezvous (Thaler and Ravishankar, 1998). A member that comes or goes
// changes the choice only if it wins or was chosen.
func settled(members []*target, print uint64, weight func(*target) uint64) *target {
	best, lowest := members[0], math.Inf(1)
	for _, t := range members {
		w := weight(t)
		if w == 0 {
			continue
		}
		h := xxhash.Sum64(binary.LittleEndian.AppendUint64([]byte(t.origin.id), print))
		u := (float64(h>>11) + 0.5) / (1 << 53) // in (0, 1)
		if score := -math.Log(u) / float64(w); score < lowest || score == lowest && t.origin.id < best.origin.id {
			best, lowest = t, score
		}
	}
	return best
}
