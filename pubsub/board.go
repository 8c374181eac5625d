package pubsub

import (
	"context"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// board is what this node announces: per source (the node itself, every shard it
// leads) the filters somebody subscribed to, in the order of their last change,
// so that a peer which knows version v needs what stands behind v and no more.
type board struct {
	now   func() time.Time
	valid func(source string) bool            // may still be spoken for: a shard that is led here
	sight func(time.Time) []telemetry.ShardID // whose leaders this node hears

	mu      sync.Mutex
	sources map[string]*source
	parked  map[string]*pull // pulls that wait for a change, by peer
	granted map[string]time.Time
	epochs  map[string]uint64          // of the processes that asked last
	held    map[string]map[string]mark // what each peer holds, by source
	changed chan struct{}              // closed when a peer has said what it holds
}

// mark is a version of a source. Generations belong to its owner (the epoch of a
// node, the term of a shard's leader, shifted by eraBits); versions count changes
// within one. The low bits of a generation are its era: tombstones of an earlier
// era are forgotten, so that who knows only that one must begin anew.
type mark struct{ gen, ver uint64 }

const eraBits = 20

// covers reports whether who holds m knows everything up to w. The order of the
// filters, and their versions, are the same in every era.
func (m mark) covers(w mark) bool {
	mine, its := m.gen>>eraBits, w.gen>>eraBits
	return mine > its || mine == its && m.ver >= w.ver
}

type source struct {
	mark
	began       time.Time
	entries     map[string]*entry
	first, last *entry // ascending versions
	dead        int    // entries of weight 0
}

type entry struct {
	filter     string
	weight     uint64 // 0: nobody any more; of a shared filter: how many are there to take a message
	ver        uint64
	prev, next *entry
}

// pull is a peer's request for news.
type pull struct {
	peer  string
	epoch uint64
	known map[string]mark
	reply func([]byte)
	until time.Time
}

func newBoard(now func() time.Time, valid func(string) bool) *board {
	return &board{now: now, valid: valid, sight: func(time.Time) []telemetry.ShardID { return nil }, sources: map[string]*source{}, parked: map[string]*pull{}, granted: map[string]time.Time{}, epochs: map[string]uint64{},
		held: map[string]map[string]mark{}, changed: make(chan struct{})}
}

// open begins a source anew, with the filters it has from the start: a peer that
// heard of it without them would believe that there are none. It returns the
// version that says so.
func (b *board) open(id string, gen uint64, filters []change) mark {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &source{mark: mark{gen: gen << eraBits, ver: 1}, began: b.now(), entries: map[string]*entry{}}
	for _, c := range filters {
		s.set(c.filter, c.weight)
	}
	b.sources[id] = s
	b.wakeLocked()
	return s.mark
}

// close ends a source that this node announces no more.
func (b *board) close(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.sources, id)
}

// set gives a filter its weight and returns the version of the source that says
// so; false when the source is not open in this generation.
func (b *board) set(id string, gen uint64, changes []change) (mark, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sources[id]
	if s == nil || s.gen>>eraBits != gen {
		return mark{}, false
	}
	before := s.ver
	for _, c := range changes {
		s.set(c.filter, c.weight)
	}
	if s.ver != before {
		b.wakeLocked()
	}
	return s.mark, true
}

// change is a filter's new weight.
type change struct {
	filter string
	weight uint64
}

func (s *source) set(filter string, weight uint64) {
	e := s.entries[filter]
	switch {
	case e == nil && weight == 0, e != nil && e.weight == weight:
		return
	case e == nil:
		e = &entry{filter: filter}
		s.entries[filter] = e
	default:
		if e.weight == 0 {
			s.dead--
		}
		s.unlink(e)
	}
	if weight == 0 {
		s.dead++
	}
	s.ver++
	e.weight, e.ver = weight, s.ver
	e.prev, e.next = s.last, nil
	if s.last != nil {
		s.last.next = e
	} else {
		s.first = e
	}
	s.last = e
	if s.dead > tombstonesMin+len(s.entries)/2 {
		s.prune()
	}
}

func (s *source) unlink(e *entry) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		s.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		s.last = e.prev
	}
}

// prune forgets the tombstones; who has not seen them begins anew.
func (s *source) prune() {
	for e := s.first; e != nil; {
		next := e.next
		if e.weight == 0 {
			s.unlink(e)
			delete(s.entries, e.filter)
		}
		e = next
	}
	s.dead = 0
	s.gen++
}

// take handles a peer's pull: it is answered at once when there is news, otherwise
// at the next change or when its time is over.
func (b *board) take(p *pull) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held[p.peer], b.epochs[p.peer] = p.known, p.epoch
	close(b.changed)
	b.changed = make(chan struct{})
	if old := b.parked[p.peer]; old != nil {
		delete(b.parked, p.peer)
		b.answerLocked(old)
	}
	if b.newsLocked(p) {
		b.answerLocked(p)
		return
	}
	b.parked[p.peer] = p
}

func (b *board) newsLocked(p *pull) bool {
	for id, s := range b.sources {
		if p.known[id] != s.mark && b.valid(id) {
			return true
		}
	}
	return false
}

func (b *board) wakeLocked() {
	for peer, p := range b.parked {
		delete(b.parked, peer)
		b.answerLocked(p)
	}
}

// expire answers the pulls whose time is over: an answer without news renews the
// peer's lease.
func (b *board) expire(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for peer, p := range b.parked {
		if !now.Before(p.until) {
			delete(b.parked, peer)
			b.answerLocked(p)
		}
	}
}

func (b *board) answerLocked(p *pull) {
	b.granted[p.peer] = b.now()
	p.reply(b.newsFor(p.known))
}

// newsFor encodes every source with what stands behind the known version, as far
// as it fits into one answer. Sources without news are in it too: being named is
// what renews a lease. One that is no longer ours to speak for is not, even if we
// have not been told yet.
func (b *board) newsFor(known map[string]mark) []byte {
	var ids []string
	for id := range b.sources {
		if b.valid(id) {
			ids = append(ids, id)
		}
	}
	out := wire.AppendUint([]byte{pullVersion}, uint64(len(ids)))
	room := newsBytesMax
	for _, id := range ids {
		s := b.sources[id]
		from, reset := known[id], false
		if from.gen != s.gen || from.ver > s.ver {
			from, reset = mark{s.gen, 0}, true
		}
		e := s.last
		for e != nil && e.ver > from.ver {
			e = e.prev
		}
		if e == nil {
			e = s.first
		} else {
			e = e.next
		}
		var list []byte
		n, upTo := 0, s.ver
		for ; e != nil; e = e.next {
			if reset && e.weight == 0 {
				continue
			}
			if room < len(e.filter)+16 {
				upTo = e.ver - 1
				break
			}
			list = wire.AppendUint(wire.AppendString(list, e.filter), e.weight)
			room -= len(e.filter) + 16
			n++
		}
		out = wire.AppendUint(wire.AppendString(out, id), s.gen)
		out = wire.AppendBool(out, reset)
		out = wire.AppendUint(wire.AppendUint(out, upTo), s.ver)
		out = append(wire.AppendUint(out, uint64(n)), list...)
	}
	return appendSight(out, b.sight(b.now()))
}

// gone forgets the lease of a peer whose process is known to have ended.
func (b *board) gone(peer string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.granted[peer]; known {
		b.granted[peer] = time.Time{}
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// heard is when a peer was last given a lease, and to which of its processes; zero
// when that one has ended.
func (b *board) heard(peer string) (at time.Time, epoch uint64, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, known = b.granted[peer]
	return at, b.epochs[peer], known
}

// at is where a source stands.
func (b *board) at(id string) mark {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sources[id]; s != nil {
		return s.mark
	}
	return mark{}
}

// wait returns when every peer holds version w of a source or may not use what it
// holds any more, because its lease has run out.
func (b *board) wait(ctx context.Context, id string, w mark, peers []string) error {
	for {
		b.mu.Lock()
		left := b.missingLocked(id, w, peers)
		changed := b.changed
		b.mu.Unlock()
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(left)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// missingLocked is how long a lease may still let somebody route by an older
// version; 0 when nobody can.
func (b *board) missingLocked(id string, w mark, peers []string) time.Duration {
	now, left := b.now(), time.Duration(0)
	s := b.sources[id]
	for _, peer := range peers {
		if b.held[peer][id].covers(w) {
			continue
		}
		at, known := b.granted[peer]
		if !known && s != nil {
			at = s.began // an earlier owner of the source may have given it a lease
		} else if s != nil && s.began.After(at) && !at.IsZero() {
			at = s.began
		}
		left = max(left, at.Add(leaseMax+leaseMargin).Sub(now))
	}
	return left
}
