package session

import (
	"slices"

	"github.com/sluice-iot/sluice/internal/wire"
)

// shifted reports the weights of a session's shared filters, which have changed.
func (st *State) shifted(s *state) {
	for _, v := range s.subs {
		if st.groups[v.Filter] != nil {
			st.effects.Filters = append(st.effects.Filters, st.weigh(v.Filter))
		}
	}
}

func (st *State) subscribe(s *state, r *wire.Reader) (Status, []byte) {
	var add []Subscription
	var remove []string
	for range r.Count(3) {
		add = append(add, DecodeSubscription(r))
	}
	for range r.Count(1) {
		remove = append(remove, r.String())
	}
	if r.Err() != nil {
		return StatusInvalid, nil
	}
	if len(s.subs)+len(add) > subscriptionsMax {
		return StatusFull, nil
	}
	for i := range add {
		st.put(s, add[i])
	}
	for _, f := range remove {
		st.drop(s, f)
	}
	return StatusOK, nil
}

func (st *State) put(s *state, p Subscription) {
	if old := s.subs.Get(p.Filter); old != nil {
		old.Subscription = p
		return
	}
	v := &sub{s, p}
	s.subs.Put(v)
	st.enlist(v)
	st.effects.Filters = append(st.effects.Filters, st.weigh(p.Filter))
}

func (st *State) enlist(v *sub) {
	plain, shared := SplitShared(v.Filter)
	if !shared {
		st.index.Add(plain, v)
		return
	}
	g := st.groups[v.Filter]
	if g == nil {
		g = &group{}
		st.groups[v.Filter] = g
	}
	g.members = append(g.members, v)
	slices.SortFunc(g.members, func(a, b *sub) int { // the same order after a snapshot
		if a.s.client < b.s.client {
			return -1
		}
		return 1
	})
}

func (st *State) drop(s *state, filter string) {
	v := s.subs.Get(filter)
	if v == nil {
		return
	}
	s.subs.Remove(filter)
	if plain, shared := SplitShared(filter); !shared {
		st.index.Remove(plain, v)
	} else if g := st.groups[filter]; g != nil {
		g.members, _ = without(g.members, v)
		if len(g.members) == 0 {
			delete(st.groups, filter)
		}
	}
	st.effects.Filters = append(st.effects.Filters, st.weigh(filter))
}

// next is the member of a shared group whose turn it is; one that is connected
// comes before all that are away.
func (st *State) next(filter string) *sub {
	g := st.groups[filter]
	if g == nil {
		return nil
	}
	g.turn++
	here := make([]*sub, 0, len(g.members))
	for _, v := range g.members {
		if v.s.connected {
			here = append(here, v)
		}
	}
	if len(here) == 0 {
		here = g.members
	}
	return here[g.turn%uint64(len(here))]
}
