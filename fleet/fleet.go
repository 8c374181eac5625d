package fleet

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Bounds of an expression: it is evaluated for every device of every shard.
const (
	textBytesMax  = 4 << 10
	conditionsMax = 64
	depthMax      = 16
)

// Device is what an expression asks about one device.
type Device interface {
	ID() string
	Seen() (first, last int64)            // receive times, microseconds
	Attribute(key string) (string, bool)  // false: it has none
	Worst() (severity float64, open bool) // of its open anomalies
}

// Expression selects devices.
type Expression struct{ root node }

// Matches reports whether a device is selected.
func (e *Expression) Matches(d Device) bool { return e.root.matches(d) }

// Error says where an expression is not understood.
type Error struct {
	At   int // byte, from 1
	Text string
}

func (e *Error) Error() string { return fmt.Sprintf("where, character %d: %s", e.At, e.Text) }

// node is a part of an expression.
type node interface{ matches(Device) bool }

type (
	anyOf      []node
	allOf      []node
	not        struct{ of node }
	anomalous  struct{}
	exists     struct{ key string }
	comparison struct {
		of     field
		op     string // one of = != < <= > >=
		values []value
	}
	like struct {
		of     field
		pieces []string // between the stars
	}
)

// field is what is compared: a text or a number.
type field struct {
	kind fieldKind
	key  string // of an attribute
}

type fieldKind int

const (
	fieldID fieldKind = iota
	fieldAttribute
	fieldFirstSeen
	fieldLastSeen
	fieldSeverity
)

// value is a literal: a text, or a number (times are numbers of microseconds).
type value struct {
	text    string
	number  float64
	numeric bool
}

func (n anyOf) matches(d Device) bool {
	return slices.ContainsFunc(n, func(c node) bool { return c.matches(d) })
}

func (n allOf) matches(d Device) bool {
	return !slices.ContainsFunc(n, func(c node) bool { return !c.matches(d) })
}

func (n not) matches(d Device) bool { return !n.of.matches(d) }

func (anomalous) matches(d Device) bool {
	_, open := d.Worst()
	return open
}

func (n exists) matches(d Device) bool {
	_, ok := d.Attribute(n.key)
	return ok
}

func (n *comparison) matches(d Device) bool {
	for i := range n.values {
		if n.one(d, &n.values[i]) {
			return true
		}
	}
	return false
}

func (n *comparison) one(d Device, v *value) bool {
	c, ok := n.of.compare(d, v)
	if !ok {
		return n.op == "!="
	}
	switch n.op {
	case "=":
		return c == 0
	case "!=":
		return c != 0
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	case ">":
		return c > 0
	default:
		return c >= 0
	}
}

// compare orders a device's field and a value; not ok when there is nothing to
// compare.
func (f *field) compare(d Device, v *value) (int, bool) {
	var have float64
	switch f.kind {
	case fieldFirstSeen, fieldLastSeen:
		first, last := d.Seen()
		if have = float64(first); f.kind == fieldLastSeen {
			have = float64(last)
		}
	case fieldSeverity:
		have, _ = d.Worst()
	default:
		text, ok := f.text(d)
		if !ok {
			return 0, false
		}
		if !v.numeric {
			return strings.Compare(text, v.text), true
		}
		var err error
		if have, err = strconv.ParseFloat(text, 64); err != nil || have != have {
			return 0, false
		}
	}
	switch {
	case have < v.number:
		return -1, true
	case have > v.number:
		return 1, true
	}
	return 0, true
}

func (f *field) text(d Device) (string, bool) {
	if f.kind == fieldID {
		return d.ID(), true
	}
	return d.Attribute(f.key)
}

func (n *like) matches(d Device) bool {
	s, ok := n.of.text(d)
	if !ok {
		return false
	}
	first, last := n.pieces[0], n.pieces[len(n.pieces)-1]
	if len(n.pieces) == 1 {
		return s == first
	}
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	for _, p := range n.pieces[1 : len(n.pieces)-1] {
		i := strings.Index(s, p) // the first place is as good as any later one
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, last)
}
