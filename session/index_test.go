package session

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// The examples of MQTT 5, 4.7.1 and 4.7.2.
func TestFiltersMatchAsTheStandardSays(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"sport/tennis/player1/#", "sport/tennis/player1", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
		{"sport/#", "sport", true},
		{"#", "a", true},
		{"#", "/a/b", true},
		{"sport/tennis/+", "sport/tennis/player1", true},
		{"sport/tennis/+", "sport/tennis/player1/ranking", false},
		{"sport/+", "sport", false},
		{"sport/+", "sport/", true},
		{"+/+", "/finance", true},
		{"/+", "/finance", true},
		{"+", "/finance", false},
		{"+/tennis/#", "sport/tennis", true},
		{"#", "$SYS/a", false},
		{"+/a", "$SYS/a", false},
		{"$SYS/#", "$SYS/a", true},
		{"$SYS/+", "$SYS/a", true},
		{"a/+/c", "a//c", true},
		{"a", "A", false},
		{"a/", "a", false},
	} {
		var x Index[int]
		x.Add(c.filter, 1)
		got := false
		x.Match(c.topic, func(int) { got = true })
		if got != c.want {
			t.Errorf("index: %q matches %q: got %v", c.filter, c.topic, got)
		}
		if got := Matches(c.filter, c.topic); got != c.want {
			t.Errorf("Matches(%q, %q) = %v", c.filter, c.topic, got)
		}
		x.Filters(func(f string) {
			if f != c.filter {
				t.Errorf("%q is listed as %q", c.filter, f)
			}
		})
		if !x.Has(c.filter) {
			t.Errorf("%q is not there", c.filter)
		}
		x.Remove(c.filter, 2)
		x.Remove(c.filter, 1)
		if x.Len() != 0 || len(x.exact)+len(x.single) != 0 || len(x.tree.children) != 0 {
			t.Errorf("%q leaves something behind: %+v", c.filter, x)
		}
	}
}

func TestIndexAgreesWithMatchingOneByOne(t *testing.T) {
	levels := []string{"a", "b", "", "+", "#"}
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func(wild int) string {
		s := levels[rnd.IntN(wild)]
		for range rnd.IntN(4) {
			if s[max(0, len(s)-1):] == "#" {
				return s
			}
			s += "/" + levels[rnd.IntN(wild)]
		}
		return s
	}
	var x Index[int]
	var filters []string
	for i := range 300 {
		f := random(5)
		filters = append(filters, f)
		x.Add(f, i)
	}
	for i := 0; i < 300; i += 3 {
		x.Remove(filters[i], i)
		filters[i] = ""
	}
	left := map[string]bool{}
	for i, f := range filters {
		if i%3 != 0 {
			left[f] = true
		}
	}
	x.Filters(func(f string) {
		if !left[f] {
			t.Errorf("filter %q is listed twice, or nothing stands under it", f)
		}
		delete(left, f)
	})
	if len(left) > 0 {
		t.Errorf("filters that are not listed: %v", left)
	}
	for range 500 {
		topic := random(3)
		var got, want []int
		x.Match(topic, func(i int) { got = append(got, i) })
		for i, f := range filters {
			if i%3 != 0 && Matches(f, topic) {
				want = append(want, i)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("topic %q: got %v, want %v", topic, got, want)
		}
	}
}

func TestHomeOfATopicIsItsDeviceOrItself(t *testing.T) {
	for filter, want := range map[string]string{
		"devices/d1/command": "d1", "devices/d1/#": "d1", "devices/d1/+": "d1", "devices/d1": "devices/d1",
		"devices/+/command": "", "devices/#": "", "a/b": "a/b", "a/+": "", "#": "", "devices//x": "devices//x",
	} {
		if got := HomeOf(filter); got != want {
			t.Errorf("HomeOf(%q) = %q, want %q", filter, got, want)
		}
	}
}
