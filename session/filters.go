package session

import (
	"slices"
	"strings"
)

// Filters are the subscriptions of one client in the order of their filters. Nearly all
// clients have one or two, for which a map takes 250 bytes. The zero value is empty.
type Filters[V interface{ Subscribed() string }] []V

func (l Filters[V]) find(filter string) (at int, ok bool) {
	return slices.BinarySearchFunc(l, filter, func(v V, f string) int { return strings.Compare(v.Subscribed(), f) })
}

// Get returns the subscription with a filter, the zero value when there is none.
func (l Filters[V]) Get(filter string) (v V) {
	if at, ok := l.find(filter); ok {
		v = l[at]
	}
	return v
}

// Put adds v, in the place of one with the same filter.
func (l *Filters[V]) Put(v V) {
	at, ok := l.find(v.Subscribed())
	if ok {
		(*l)[at] = v
		return
	}
	if *l == nil {
		*l = make(Filters[V], 0, 1)
	}
	*l = slices.Insert(*l, at, v)
}

// Remove takes away the subscription with a filter, if there is one.
func (l *Filters[V]) Remove(filter string) {
	at, ok := l.find(filter)
	if !ok {
		return
	}
	if *l = slices.Delete(*l, at, at+1); len(*l) == 0 {
		*l = nil
	}
}
