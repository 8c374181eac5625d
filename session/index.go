package session

import "strings"

// Index finds the values that stand under the filters which match a topic. A
// filter without wildcards costs one map entry; the others form a tree by level.
// The zero value is ready to use.
type Index[V comparable] struct {
	exact map[string][]V
	tree  node[V]
	n     int
}

type node[V comparable] struct {
	children map[string]*node[V] // by level; "+" is the single-level wildcard
	here     []V                 // filters that end at this level
	rest     []V                 // filters that end in /# below this level
}

// Len is the number of values, each counted once per filter.
func (x *Index[V]) Len() int { return x.n }

// Add puts v under a valid filter; putting it twice counts twice.
func (x *Index[V]) Add(filter string, v V) {
	x.n++
	if !strings.ContainsAny(filter, "+#") {
		if x.exact == nil {
			x.exact = map[string][]V{}
		}
		x.exact[filter] = append(x.exact[filter], v)
		return
	}
	at := &x.tree
	for {
		level, rest, more := strings.Cut(filter, "/")
		if level == "#" {
			at.rest = append(at.rest, v)
			return
		}
		next := at.children[level]
		if next == nil {
			if at.children == nil {
				at.children = map[string]*node[V]{}
			}
			next = &node[V]{}
			at.children[level] = next
		}
		at = next
		if !more {
			at.here = append(at.here, v)
			return
		}
		filter = rest
	}
}

// Remove takes v away from filter once; what is not there is not missed.
func (x *Index[V]) Remove(filter string, v V) {
	if !strings.ContainsAny(filter, "+#") {
		list, ok := without(x.exact[filter], v)
		if !ok {
			return
		}
		x.n--
		if len(list) == 0 {
			delete(x.exact, filter)
		} else {
			x.exact[filter] = list
		}
		return
	}
	if x.tree.remove(filter, v) {
		x.n--
	}
}

// remove returns whether v was found; empty nodes below go away.
func (at *node[V]) remove(filter string, v V) (ok bool) {
	level, rest, more := strings.Cut(filter, "/")
	if level == "#" {
		at.rest, ok = without(at.rest, v)
		return ok
	}
	next := at.children[level]
	switch {
	case next == nil:
		return false
	case more:
		ok = next.remove(rest, v)
	default:
		next.here, ok = without(next.here, v)
	}
	if len(next.children)+len(next.here)+len(next.rest) == 0 {
		delete(at.children, level)
	}
	return ok
}

func without[V comparable](list []V, v V) ([]V, bool) {
	for i := range list {
		if list[i] == v {
			last := len(list) - 1
			copy(list[i:], list[i+1:]) // keeps the order: it decides whose turn it is
			var zero V
			list[last] = zero
			return list[:last], true
		}
	}
	return list, false
}

// Match calls fn for every value under a filter that matches topic, once per
// filter. Wildcards do not match a first level that begins with $.
func (x *Index[V]) Match(topic string, fn func(V)) {
	for _, v := range x.exact[topic] {
		fn(v)
	}
	x.tree.match(topic, strings.HasPrefix(topic, "$"), fn)
}

func (at *node[V]) match(topic string, system bool, fn func(V)) {
	if !system {
		for _, v := range at.rest { // # also matches the level it stands below
			fn(v)
		}
	}
	level, rest, more := strings.Cut(topic, "/")
	for _, name := range [...]string{level, "+"} {
		if name == "+" && system {
			break
		}
		next := at.children[name]
		switch {
		case next == nil:
		case more:
			next.match(rest, false, fn)
		default:
			for _, v := range next.here {
				fn(v)
			}
			for _, v := range next.rest {
				fn(v)
			}
		}
	}
}

// Matches reports whether a valid filter matches topic.
func Matches(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") != strings.HasPrefix(filter, "$") {
		return false
	}
	for {
		f, fRest, fMore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, tRest, tMore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !fMore && !tMore {
			return true
		}
		if !tMore {
			return fRest == "#"
		}
		if !fMore {
			return false
		}
		filter, topic = fRest, tRest
	}
}

// has reports whether anything stands under a filter with wildcards.
func (at *node[V]) has(filter string) bool {
	for at != nil {
		level, rest, more := strings.Cut(filter, "/")
		if level == "#" {
			return len(at.rest) > 0
		}
		at = at.children[level]
		if !more {
			return at != nil && len(at.here) > 0
		}
		filter = rest
	}
	return false
}
