package session

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/sluice-iot/sluice/internal/wire"
)

// View is a state as it was at one moment, while the state goes on: what is small is
// copied or encoded at once, messages never change, and a session that has not been
// encoded is copied before it changes. A view is encoded at most once, by Append, and
// ended by Release.
type View struct {
	st      *State
	head    []byte
	list    []*state // all sessions, sorted by Append
	topics  topics
	wills   []Will
	origins []byte
	groups  []byte
	keys    []uint64
	tail    []byte

	nextWill uint64
	step     int // viewStep

	// Guarded by the lock of the state.
	serial uint64            // sessions with a later epoch are not in the view, or have been copied
	done   *string           // sessions up to this client id are encoded
	kept   map[*state]*state // what those that have changed were
}

// viewStep is how many sessions, and viewItems how many messages in their queues, are
// encoded without letting go of the lock: some 200 us.
const (
	viewStep  = 256
	viewItems = 4096
)

// View takes one; the caller holds the lock of the state.
func (st *State) View() *View {
	v := &View{st: st, head: wire.AppendUint(wire.AppendInt([]byte{stateVersion}, st.now), st.serial), serial: st.serial,
		list: make([]*state, 0, len(st.sessions)), topics: st.retained.clone(), wills: slices.Clone(st.wills),
		groups: st.appendGroups(nil), origins: st.appendOrigins(nil), keys: slices.Clone(st.keys), nextWill: st.nextWill, step: viewStep, kept: map[*state]*state{}}
	for _, s := range st.sessions {
		v.list = append(v.list, s)
	}
	v.tail = wire.AppendUint(wire.AppendUint(wire.AppendUint(nil, st.drops.Full), st.drops.Aged), st.drops.Expired)
	st.views = append(st.views, v)
	return v
}

// Release ends the view; the caller holds the lock.
func (v *View) Release() {
	v.st.views, _ = without(v.st.views, v)
	v.kept, v.list, v.topics = nil, nil, topics{}
}

// touch is called before a session changes.
func (st *State) touch(s *state) {
	for _, v := range st.views {
		v.keep(s)
	}
}

func (v *View) keep(s *state) {
	if s.epoch > v.serial || v.done != nil && s.client <= *v.done || v.kept[s] != nil {
		return
	}
	was := *s
	was.queue, was.received = slices.Clone(s.queue), slices.Clone(s.received)
	was.subs = make(Filters[*sub], len(s.subs))
	for i, x := range s.subs {
		was.subs[i] = &sub{&was, x.Subscription}
	}
	v.kept[s] = &was
}

// Append encodes the state as it was, canonically: equal states give equal bytes. A
// message that stands in several queues is written once. It takes lock for a moment
// at a time.
func (v *View) Append(dst []byte, lock sync.Locker) []byte {
	ids := numbers{of: map[*Message]uint64{}}
	slices.SortFunc(v.list, func(a, b *state) int { return strings.Compare(a.client, b.client) })
	sessions := wire.AppendUint(nil, uint64(len(v.list)))
	for rest := v.list; len(rest) > 0; {
		sessions = slices.Grow(sessions, viewStep<<8)
		lock.Lock()
		sessions, rest = v.some(sessions, rest, &ids)
		lock.Unlock()
	}
	retained := wire.AppendUint(nil, uint64(v.topics.len()))
	for _, m := range v.topics.all() {
		retained = wire.AppendUint(retained, ids.note(m))
	}
	wills := wire.AppendUint(wire.AppendUint(nil, v.nextWill), uint64(len(v.wills)))
	for _, w := range v.wills {
		wills = wire.AppendUint(wire.AppendString(wire.AppendUint(wills, w.ID), w.Client), ids.note(w.Message))
	}
	dst = wire.AppendUint(append(dst, v.head...), uint64(len(ids.list)))
	for _, m := range ids.list {
		dst = m.Append(dst)
	}
	for _, part := range [][]byte{sessions, v.groups, retained, wills, v.origins} {
		dst = append(dst, part...)
	}
	dst = wire.AppendUint(dst, uint64(len(v.keys)))
	for _, k := range v.keys {
		dst = wire.AppendUint(dst, k)
	}
	return append(dst, v.tail...)
}

// some encodes the first of the sessions and returns the rest. The lock is held.
func (v *View) some(dst []byte, list []*state, ids *numbers) ([]byte, []*state) {
	n, items := 0, 0
	for ; n < min(len(list), v.step) && items < viewItems; n++ {
		s := list[n]
		if was := v.kept[s]; was != nil {
			delete(v.kept, s)
			s = was
		}
		for i := range s.queue {
			ids.note(s.queue[i].Message)
		}
		items += len(s.queue)
		dst = s.append(dst, ids.of)
	}
	v.done = &list[n-1].client
	return dst, list[n:]
}

// numbers gives messages numbers, from 1, in the order in which they are seen; none is 0.
type numbers struct {
	of   map[*Message]uint64
	list []*Message
}

func (x *numbers) note(m *Message) uint64 {
	if m == nil {
		return 0
	}
	n := x.of[m]
	if n == 0 {
		x.list = append(x.list, m)
		n = uint64(len(x.list))
		x.of[m] = n
	}
	return n
}

// Append encodes the state as it is now; see View.Append.
func (st *State) Append(dst []byte) []byte {
	v := st.View()
	defer v.Release()
	return v.Append(dst, unlocked{})
}

// unlocked is the lock of a state that nobody else uses.
type unlocked struct{}

func (unlocked) Lock()   {}
func (unlocked) Unlock() {}

func (st *State) appendGroups(dst []byte) []byte {
	dst = wire.AppendUint(dst, uint64(len(st.groups)))
	for _, f := range slices.Sorted(maps.Keys(st.groups)) {
		dst = wire.AppendUint(wire.AppendString(dst, f), st.groups[f].turn)
	}
	return dst
}

func (st *State) appendOrigins(dst []byte) []byte {
	dst = wire.AppendUint(dst, uint64(len(st.origins)))
	for _, node := range slices.Sorted(maps.Keys(st.origins)) {
		o := st.origins[node]
		dst = wire.AppendUint(wire.AppendUint(wire.AppendString(dst, node), o.epoch), o.seq)
		dst = wire.AppendString(dst, o.answers)
	}
	return dst
}
