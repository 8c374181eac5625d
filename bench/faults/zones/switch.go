package zones

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// ErrUnavailable says that this machine has no network namespaces for us.
var ErrUnavailable = errors.New("no network namespaces here: run as root on Linux with iproute2 and /dev/net/tun, in a container with --cap-add NET_ADMIN --cap-add SYS_ADMIN --device /dev/net/tun")

// Outside is the zone of this process.
const Outside = -1

const packetsMax = 4096

// rules say what happens to a packet.
type rules struct {
	mu       sync.Mutex
	cut      map[[2]int]bool
	loss     float64
	min, max time.Duration
	rng      *rand.Rand
	dropped  int
}

// verdict is how long a packet takes, and whether it arrives.
func (r *rules) verdict(from, to int) (delay time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	between := from != Outside && to != Outside
	if r.cut[[2]int{from, to}] || between && r.loss > 0 && r.rng.Float64() < r.loss {
		r.dropped++
		return 0, false
	}
	if !between || r.max <= r.min {
		return r.min, true
	}
	return r.min + time.Duration(r.rng.Int64N(int64(r.max-r.min))), true
}

// Cut drops everything from one zone to another.
func (n *Net) Cut(from, to int) {
	n.rules.mu.Lock()
	defer n.rules.mu.Unlock()
	n.rules.cut[[2]int{from, to}] = true
}

// Join ends Cut.
func (n *Net) Join(from, to int) {
	n.rules.mu.Lock()
	defer n.rules.mu.Unlock()
	delete(n.rules.cut, [2]int{from, to})
}

// Rough loses packets between zones at random and delays the others by min to
// max; this process is spared.
func (n *Net) Rough(loss float64, min, max time.Duration) {
	n.rules.mu.Lock()
	defer n.rules.mu.Unlock()
	n.rules.loss, n.rules.min, n.rules.max = loss, min, max
}

// Heal ends all of that.
func (n *Net) Heal() {
	n.rules.mu.Lock()
	n.rules.cut = map[[2]int]bool{}
	n.rules.mu.Unlock()
	n.Rough(0, 0, 0)
}

// Dropped counts packets that a rule dropped.
func (n *Net) Dropped() int {
	n.rules.mu.Lock()
	defer n.rules.mu.Unlock()
	return n.rules.dropped
}
