package mux

import "sync"

// EventKind is what happened to a peer.
type EventKind uint8

const (
	// Up says that the connection to the peer is made, or a quiet or silent one speaks again.
	Up EventKind = iota + 1
	// Down says that the connection ended; Err says how (a reset at once after kill -9).
	Down
	// Refused says that the peer answers but one of the two does not accept the other.
	Refused
	// Quiet says that nothing was heard for QuietAfter: a reason to look, no more.
	// Silent follows if nothing is heard. Not announced when our own ticker was late.
	Quiet
	// Silent says that nothing was heard for SilentAfter although we ping. Not announced
	// when our own ticker was late: then it is we who were away.
	Silent
)

func (k EventKind) String() string {
	switch k {
	case Up:
		return "up"
	case Down:
		return "down"
	case Refused:
		return "refused"
	case Quiet:
		return "quiet"
	case Silent:
		return "silent"
	}
	return "unknown"
}

// Event is one change in what we know of a peer.
type Event struct {
	Peer string
	Kind EventKind
	Err  error // of Down and Refused
}

// eventsMax bounds the events that wait for slow subscribers: some for each peer.
const eventsMax = 4 * peersMax

// events passes events to the subscribers in order, from one goroutine.
type events struct {
	mu          sync.Mutex
	some        sync.Cond
	waiting     fifo[Event]
	subscribers []func(Event)
	closed      bool
}

// Subscribe calls fn for every event from now on, in order, from one goroutine
// that all subscribers share: fn must not block nor call Close. What waits
// beyond a bound is dropped oldest first and counted.
func (m *Mux) Subscribe(fn func(Event)) {
	m.events.mu.Lock()
	defer m.events.mu.Unlock()
	m.events.subscribers = append(m.events.subscribers[:len(m.events.subscribers):len(m.events.subscribers)], fn)
}

func (m *Mux) emit(e Event) {
	m.metrics.events.WithLabelValues(e.Kind.String()).Inc()
	q := &m.events
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting.len() >= eventsMax {
		q.waiting.pop()
		m.metrics.dropped.WithLabelValues("event").Inc()
	}
	q.waiting.push(e)
	q.some.Signal()
}

// run delivers until close, then what is left.
func (q *events) run() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for q.waiting.len() == 0 {
			if q.closed {
				return
			}
			q.some.Wait()
		}
		e, to := q.waiting.pop(), q.subscribers
		q.mu.Unlock()
		for _, fn := range to {
			fn(e)
		}
		q.mu.Lock()
	}
}

func (q *events) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.some.Signal()
}
