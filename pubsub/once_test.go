package pubsub

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-iot/sluice/session"
)

// TestAPublishOfQoS2ThatTwoNodesSendReachesEverybodyOnce: its publisher has gone from the
// first to the second before the first had said that it was delivered.
func TestAPublishOfQoS2ThatTwoNodesSendReachesEverybodyOnce(t *testing.T) {
	f := newFleet(t, 3)
	const group = "$share/g/q/+"
	for _, n := range f.nodes {
		n.subscribe("q/#")
		n.subscribe(group)
	}
	f.nodes[0].subscribe("end") // all nodes know by then what was announced before
	const many = 50
	for i := range many {
		key := session.Key{Client: "p", Number: uint64(i + 1)}
		for k := range 2 {
			m := &session.Message{Topic: "q/x", Payload: []byte(fmt.Sprint(i)), QoS: 2, Origin: "p"}
			done := make(chan error, 1)
			f.nodes[(i+k)%3].hub.Publish(m, key, func(err error) { done <- err })
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, n := range f.nodes {
		n.publish("end", "end of "+n.id)
	}
	ends := func() (c int) {
		for _, got := range f.nodes[0].received() {
			if strings.HasPrefix(got, "end of") {
				c++
			}
		}
		return c
	}
	eventually(t, "what was sent last arrives", func() bool { return ends() == 3 })
	shares := 0
	for _, n := range f.nodes {
		var plain []string
		eventually(t, "everything has arrived at "+n.id, func() bool { return len(n.received()) >= many })
		for _, got := range n.received() {
			if text, ok := strings.CutSuffix(got, " "+group); ok {
				shares++
				got = text
			}
			if !strings.HasPrefix(got, "end") {
				plain = append(plain, got)
			}
		}
		slices.Sort(plain)
		if len(plain) != many || len(slices.Compact(plain)) != many {
			t.Errorf("%s was given %d messages, want %d different ones", n.id, len(plain), many)
		}
	}
	if shares != many {
		t.Errorf("the group was given %d messages, want %d", shares, many)
	}
}

func TestWhatWasHandedOverIsForgottenInTime(t *testing.T) {
	var o once
	for i := range uint64(3 * onceMax) {
		if !o.first(i + 1) {
			t.Fatalf("publish %d is new", i+1)
		}
		if i > 5 && o.first(i-5) {
			t.Fatalf("publish %d is forgotten after %d others", i-5, 6)
		}
	}
	if len(o.known) != onceMax || len(o.order) != onceMax {
		t.Fatalf("%d and %d are remembered, want %d", len(o.known), len(o.order), onceMax)
	}
	for range 2 {
		if !o.first(0) {
			t.Fatal("what has no fingerprint is always new")
		}
	}
}

func TestAGroupsOwnerForAPublishOfQoS2FollowsFromThePublish(t *testing.T) {
	var members []*target
	for i, weight := range []uint64{1, 2, 0, 5} {
		members = append(members, &target{origin: &origin{id: fmt.Sprintf("n%d", i)}, weight: weight * weightHere})
	}
	drawn := map[string]int{}
	for print := range uint64(8000) {
		first := choose(members, print+1)
		drawn[first.origin.id]++
		slices.Reverse(members)
		if again := choose(members, print+1); again != first {
			t.Fatalf("publish %d: %s, in another order %s", print+1, first.origin.id, again.origin.id)
		}
		without := slices.DeleteFunc(slices.Clone(members), func(m *target) bool { return m.origin.id == "n1" })
		if left := choose(without, print+1); first.origin.id != "n1" && left != first {
			t.Fatalf("publish %d: %s, and %s when another one has gone", print+1, first.origin.id, left.origin.id)
		}
	}
	if drawn["n2"] != 0 || drawn["n0"] < 700 || drawn["n0"] > 1300 || drawn["n3"] < 4500 || drawn["n3"] > 5500 {
		t.Errorf("drawn %v of weights 1, 2, 0, 5", drawn)
	}
}
