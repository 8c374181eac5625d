package session

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func (s Subscription) Subscribed() string { return s.Filter }

func TestFiltersAreAMapInOrder(t *testing.T) {
	var l Filters[Subscription]
	want := map[string]byte{}
	draw := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		filter := fmt.Sprint("f/", draw.IntN(50))
		switch draw.IntN(3) {
		case 0:
			l.Remove(filter)
			delete(want, filter)
		default:
			qos := byte(draw.IntN(3))
			l.Put(Subscription{Filter: filter, QoS: qos})
			want[filter] = qos
		}
		if got := l.Get(filter); got.QoS != want[filter] || (got.Filter == "") != (len(want) == 0 || !has(want, filter)) {
			t.Fatalf("%s: got %+v, want %d", filter, got, want[filter])
		}
		if len(l) != len(want) || !slices.IsSortedFunc(l, func(a, b Subscription) int { return slices.Compare([]byte(a.Filter), []byte(b.Filter)) }) {
			t.Fatalf("%d subscriptions, want %d in order: %v", len(l), len(want), l)
		}
	}
	for filter := range want {
		l.Remove(filter)
	}
	if l != nil {
		t.Errorf("an empty list keeps %d places", cap(l))
	}
}

func has(m map[string]byte, k string) bool { _, ok := m[k]; return ok }
