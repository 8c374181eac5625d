package session

import "strings"

// Index finds the values that stand under the filters which match a topic. A
// filter without wildcards costs one map entry, without a list as long as one value
// stands under it; the others form a tree by level. The zero value is ready to use.
type Index[V comparable] struct {
	single map[string]V
	exact  map[string][]V // two and more
	tree   node[V]
	n      int
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
		x.addExact(filter, v)
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

func (x *Index[V]) addExact(filter string, v V) {
	if x.single == nil {
		x.single, x.exact = map[string]V{}, map[string][]V{}
	}
	list := x.exact[filter]
	if first, ok := x.single[filter]; ok {
		list = []V{first}
		delete(x.single, filter)
	} else if len(list) == 0 {
		x.single[filter] = v
		return
	}
	x.exact[filter] = append(list, v)
}

// Remove takes v away from filter once; what is not there is not missed.
func (x *Index[V]) Remove(filter string, v V) {
	ok := false
	if strings.ContainsAny(filter, "+#") {
		ok = x.tree.remove(filter, v)
	} else {
		ok = x.removeExact(filter, v)
	}
	if ok {
		x.n--
	}
}

func (x *Index[V]) removeExact(filter string, v V) bool {
	if only, ok := x.single[filter]; ok {
		if only == v {
			delete(x.single, filter)
		}
		return only == v
	}
	list, ok := without(x.exact[filter], v)
	switch {
	case !ok:
		return false
	case len(list) == 1:
		x.single[filter] = list[0]
		delete(x.exact, filter)
	default:
		x.exact[filter] = list
	}
	return true
}

// Has reports whether anything stands under exactly this filter.
func (x *Index[V]) Has(filter string) bool {
	if strings.ContainsAny(filter, "+#") {
		return x.tree.has(filter)
	}
	_, ok := x.single[filter]
	return ok || len(x.exact[filter]) > 0
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

// Filters calls fn for every filter that something stands under, in no order.
func (x *Index[V]) Filters(fn func(filter string)) {
	for f := range x.single {
		fn(f)
	}
	for f := range x.exact {
		fn(f)
	}
	x.tree.filters("", fn)
}

// filters does so below a node; prefix is its filter and a slash, nothing for the root.
func (at *node[V]) filters(prefix string, fn func(string)) {
	if len(at.rest) > 0 {
		fn(prefix + "#")
	}
	for level, next := range at.children {
		if len(next.here) > 0 {
			fn(prefix + level)
		}
		next.filters(prefix+level+"/", fn)
	}
}

// Match calls fn for every value under a filter that matches topic, once per
// filter. Wildcards do not match a first level that begins with $.
func (x *Index[V]) Match(topic string, fn func(V)) {
	if v, ok := x.single[topic]; ok {
		fn(v)
	}
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
