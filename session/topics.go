package session

import (
	"strings"

	"github.com/google/btree"
)

// topics are messages by topic, in an order in which a level of topics stands together
// with all that is below it. A clone is free, and stays as it was.
type topics struct {
	tree *btree.BTreeG[*Message]
}

// topicsDegree is half of what a node of the tree holds: two cache lines of pointers up,
// little to copy when a clone is held.
const topicsDegree = 32

func newTopics() topics {
	return topics{btree.NewG(topicsDegree, func(a, b *Message) bool { return topicLess(a.Topic, b.Topic) })}
}

// topicLess is the order of bytes, but for the slash, which is before all others: "a/b"
// comes right behind "a", and not behind "a-b".
func topicLess(a, b string) bool {
	for i := range min(len(a), len(b)) {
		x, y := a[i], b[i]
		switch {
		case x == y:
		case x == '/' || y == '/':
			return x == '/'
		default:
			return x < y
		}
	}
	return len(a) < len(b)
}

// behind is the first place in the order behind a topic and all that is below it.
func behind(topic string) string { return topic + "\x00" }

func (t topics) len() int { return t.tree.Len() }

func (t topics) clone() topics { return topics{t.tree.Clone()} }

func (t topics) get(topic string) *Message {
	m, _ := t.tree.Get(&Message{Topic: topic})
	return m
}

func (t topics) put(m *Message) { t.tree.ReplaceOrInsert(m) }

func (t topics) remove(m *Message) { t.tree.Delete(m) }

func (t topics) all() []*Message {
	out := make([]*Message, 0, t.len())
	t.tree.Ascend(func(m *Message) bool {
		out = append(out, m)
		return true
	})
	return out
}

// leapAfter is how many topics in a row may not match before the next one that could is
// looked for: finding a place in the tree costs as much as looking at some twenty.
const leapAfter = 20

// match calls fn for the messages whose topics match a valid filter.
func (t topics) match(filter string, fn func(*Message)) {
	wild := strings.IndexAny(filter, "+#")
	if wild < 0 {
		if m := t.get(filter); m != nil {
			fn(m)
		}
		return
	}
	base := strings.TrimSuffix(filter[:wild], "/") // a/# is for a, too
	for from := base; ; {
		misses, next := 0, ""
		t.tree.AscendGreaterOrEqual(&Message{Topic: from}, func(m *Message) bool {
			if wild > 0 && !within(base, m.Topic) {
				return false
			}
			if Matches(filter, m.Topic) {
				fn(m)
				misses = 0
				return true
			}
			if misses++; misses < leapAfter {
				return true
			}
			misses = 0
			next = leap(filter, m.Topic)
			return next == ""
		})
		if next == "" {
			return
		}
		from = next
	}
}

// within reports whether a topic is base or below it.
func within(base, topic string) bool {
	return strings.HasPrefix(topic, base) && (len(topic) == len(base) || topic[len(base)] == '/')
}

// leap is a place behind topic, which does not match filter, such that nothing between
// the two does; "" when that is not known. What it knows is where the first level is
// that differs: either the filter's is still to come, or nothing below the same level
// for the last + in front of it matches any more.
func leap(filter, topic string) string {
	plus, at := -1, 0 // where the level of topic ends that the last + has matched; where the present one begins
	for {
		f, fRest, fMore := strings.Cut(filter, "/")
		t, _, tMore := strings.Cut(topic[at:], "/")
		end := at + len(t)
		switch {
		case f == "#":
			return ""
		case f == "+":
			plus = end
		case f == t:
		case topicLess(t, f):
			return topic[:at] + f
		case plus >= 0:
			return behind(topic[:plus])
		default:
			return ""
		}
		switch {
		case !fMore:
			return behind(topic[:end])
		case !tMore:
			return topic + "/"
		}
		filter, at = fRest, end+1
	}
}
