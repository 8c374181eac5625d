package importer

import (
	"slices"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/internal/publisher"
)

// Counts says what became of lines.
type Counts struct {
	Lines       int64 `json:"lines"`       // that have had their fate, all kinds together
	Messages    int64 `json:"messages"`    // acknowledged
	Readings    int64 `json:"readings"`    // in acknowledged messages
	Quarantined int64 `json:"quarantined"` // messages answered 0x99
	Refused     int64 `json:"refused"`     // messages answered with another error, or too large
	Bad         int64 `json:"bad"`         // lines that could not be read
	Empty       int64 `json:"empty"`       // lines without any value, the header among them
}

func (c *Counts) add(d Counts) {
	c.Lines += d.Lines
	c.Messages += d.Messages
	c.Readings += d.Readings
	c.Quarantined += d.Quarantined
	c.Refused += d.Refused
	c.Bad += d.Bad
	c.Empty += d.Empty
}

// position is a place in the input: so many lines and bytes lie before it.
type position struct{ line, offset int64 }

// entry is a publish under way, or a line that gives none.
type entry struct {
	from     position // before its first line
	last     int64    // its last line
	conn     int      // -1 for none
	messages int
	readings int
	sent     time.Time // zero while its batch is open
	done     bool      // it has had its fate
	counts   Counts
}

// ledger knows the position up to which everything is done. It belongs to one
// goroutine.
type ledger struct {
	entries []*entry  // not yet below the position, in the order of creation
	at      position  // everything before it is done
	counts  Counts    // of all before it
	unsaved []int     // messages per connection that the state file does not cover
	settled []int     // of unsaved: those below the position
	oldest  time.Time // when the oldest publish without an answer was sent, zero for none
	next    []uint16  // packet id of the first publish at or behind the position
}

func newLedger(connections int) *ledger {
	return &ledger{unsaved: make([]int, connections), settled: make([]int, connections), next: make([]uint16, connections)}
}

// advance moves the position; read is how far the input has been read.
func (l *ledger) advance(read position) {
	to := read
	l.oldest = time.Time{}
	for _, e := range l.entries {
		if e.done {
			continue
		}
		if e.from.line < to.line {
			to = e.from
		}
		if !e.sent.IsZero() && (l.oldest.IsZero() || e.sent.Before(l.oldest)) {
			l.oldest = e.sent
		}
	}
	if to.line <= l.at.line {
		return
	}
	l.at = to
	l.entries = slices.DeleteFunc(l.entries, func(e *entry) bool {
		if !e.done || e.last > to.line {
			return false
		}
		l.counts.add(e.counts)
		if e.conn >= 0 {
			l.settled[e.conn] += e.messages
			l.next[e.conn] = nextPacketID(l.next[e.conn])
		}
		return true
	})
}

// saved says that the state file covers everything before the position.
func (l *ledger) saved() {
	for i, n := range l.settled {
		l.unsaved[i] -= n
		l.settled[i] = 0
	}
}

// nextPacketID counts 1 to 65535.
func nextPacketID(id uint16) uint16 {
	if id == 65535 {
		return 1
	}
	return id + 1
}

// answers collects results from the connections' goroutines.
type answers struct {
	mu    sync.Mutex
	list  []answer
	ready chan struct{}
}

type answer struct {
	entry  *entry
	result publisher.Result
}

func (a *answers) put(e *entry, r publisher.Result) {
	a.mu.Lock()
	a.list = append(a.list, answer{e, r})
	a.mu.Unlock()
	select {
	case a.ready <- struct{}{}:
	default: // it will be looked at anyway
	}
}

// take empties the list into the caller's hands; spare is used for what follows.
func (a *answers) take(spare []answer) []answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := a.list
	a.list = spare[:0]
	return list
}
