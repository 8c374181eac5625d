package api

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/sluice-iot/sluice/telemetry"
)

const (
	// hubEventsMax is how many events a node remembers for streams that resume:
	// a reader that is away for a minute misses nothing at 60 events/s.
	hubEventsMax = 4096
	// hubQueueMax is how far a stream may fall behind before it is cut: about
	// 100 KB of text, less than a socket buffer takes.
	hubQueueMax = 256
)

// Hub is the Events of a node: whoever learns of anomalies publishes them, and
// every stream of this node hears them. It never waits for a stream.
type Hub struct {
	id string // belongs to this run of this node, see FORMAT.md

	mu     sync.Mutex
	ring   []Event // the last hubEventsMax, event with sequence n at n % hubEventsMax
	last   uint64  // sequence of the newest, 0 is none
	subs   map[chan Event]struct{}
	closed bool
}

// NewHub makes a hub that remembers nothing yet.
func NewHub() (*Hub, error) {
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("draw the hub's id: %w", err)
	}
	return &Hub{id: hex.EncodeToString(id[:]), ring: make([]Event, hubEventsMax), subs: map[chan Event]struct{}{}}, nil
}

// Publish tells every stream of an event. The same event may be published again
// (after a change of leader), a repeat is harmless.
func (h *Hub) Publish(kind EventKind, a telemetry.Anomaly) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.last++
	e := Event{ID: h.id + "." + strconv.FormatUint(h.last, 10), Kind: kind, Anomaly: a}
	h.ring[h.last%hubEventsMax] = e
	for sub := range h.subs {
		select {
		case sub <- e:
		default: // it has fallen behind: it may come back with Last-Event-ID
			delete(h.subs, sub)
			close(sub)
		}
	}
}

// Subscribe fulfils Events.
func (h *Hub) Subscribe(after string) (<-chan Event, func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	from, gap := h.resume(after)
	sub := make(chan Event, int(h.last-from)+1+hubQueueMax)
	if gap {
		sub <- Event{Kind: EventGap}
	}
	for n := from + 1; n <= h.last; n++ {
		sub <- h.ring[n%hubEventsMax]
	}
	if h.closed {
		close(sub)
		return sub, func() {}
	}
	h.subs[sub] = struct{}{}
	return sub, func() { h.cancel(sub) }
}

// resume finds the sequence after which a stream goes on, and whether events
// between its last one and there may be lost.
func (h *Hub) resume(after string) (from uint64, gap bool) {
	if after == "" {
		return h.last, false
	}
	oldest := uint64(0)
	if h.last > hubEventsMax {
		oldest = h.last - hubEventsMax
	}
	if id, seq, ok := strings.Cut(after, "."); ok && id == h.id {
		if n, err := strconv.ParseUint(seq, 10, 64); err == nil && n >= oldest && n <= h.last {
			return n, false
		}
	}
	return oldest, true
}

func (h *Hub) cancel(sub chan Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.subs[sub]; ok {
		delete(h.subs, sub)
		close(sub)
	}
}

// Close ends all streams; Publish does nothing afterwards.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for sub := range h.subs {
		delete(h.subs, sub)
		close(sub)
	}
}
