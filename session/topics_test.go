package session

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRetainedMessagesAreFoundAsIfAllWereLookedAt: random topics and filters over few
// levels that look alike, so that filters skip, end early and go on below.
func TestRetainedMessagesAreFoundAsIfAllWereLookedAt(t *testing.T) {
	levels := []string{"a", "a-", "a.b", "b", "", "devices", "x1", "x10", "x2", "~", "\x01", "$s"}
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		name := func(wild bool) string {
			var out []string
			for range 1 + rnd.IntN(4) {
				l := levels[rnd.IntN(len(levels))]
				if wild && rnd.IntN(3) == 0 {
					l = "+"
				} else if rnd.IntN(3) == 0 {
					l = fmt.Sprint(rnd.IntN(40))
				}
				out = append(out, l)
			}
			if wild && rnd.IntN(3) == 0 {
				out = append(out, "#")
			}
			return strings.Join(out, "/")
		}
		list := newTopics()
		byTopic := map[string]*Message{}
		for range 1500 {
			m := &Message{Topic: name(false)}
			if rnd.IntN(5) == 0 {
				if old := byTopic[m.Topic]; old != nil {
					list.remove(old)
				}
				delete(byTopic, m.Topic)
				continue
			}
			list.put(m)
			byTopic[m.Topic] = m
		}
		if list.len() != len(byTopic) {
			t.Fatalf("%d messages, want %d", list.len(), len(byTopic))
		}
		for range 300 {
			filter := name(true)
			var got, want []string
			list.match(filter, func(m *Message) {
				if byTopic[m.Topic] != m {
					t.Fatalf("%q: another message than the last", m.Topic)
				}
				got = append(got, m.Topic)
			})
			for topic := range byTopic {
				if Matches(filter, topic) {
					want = append(want, topic)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, filter %q: %q, want %q", seed, filter, got, want)
			}
		}
	}
}

// TestALeapPassesNothingThatMatches goes from every topic that does not match to where
// leap says, and looks at all between.
func TestALeapPassesNothingThatMatches(t *testing.T) {
	var all []string
	for _, a := range []string{"a", "a-", "b", "c"} {
		all = append(all, a)
		for _, b := range []string{"0", "1", "1-", "t"} {
			all = append(all, a+"/"+b, a+"/"+b+"/t", a+"/"+b+"/u", a+"/"+b+"/t/v")
		}
	}
	slices.SortFunc(all, func(x, y string) int {
		if topicLess(x, y) {
			return -1
		}
		return 1
	})
	for _, filter := range []string{"+/1/t", "a/+/t", "+/+", "+/t", "b/+", "+/1/+", "+/+/u", "+/1/#", "c/+/t/v", "+"} {
		for _, from := range all {
			if Matches(filter, from) {
				continue
			}
			to := leap(filter, from)
			if to == "" {
				continue
			}
			if !topicLess(from, to) {
				t.Errorf("%s: from %q back to %q", filter, from, to)
			}
			for _, x := range all {
				if topicLess(from, x) && topicLess(x, to) && Matches(filter, x) {
					t.Errorf("%s: from %q to %q over %q", filter, from, to, x)
				}
			}
		}
	}
}

// BenchmarkRetained looks for retained messages among a million, two for each of 500,000
// devices in 100 plants, beside going through all of them.
func BenchmarkRetained(b *testing.B) {
	list := newTopics()
	byTopic := map[string]*Message{}
	for i := range 500_000 {
		for _, kind := range []string{"state", "config"} {
			m := &Message{Topic: fmt.Sprintf("plant-%02d/dev-%06d/%s", i%100, i, kind)}
			list.put(m)
			byTopic[m.Topic] = m
		}
	}
	for _, filter := range []string{"plant-07/dev-000107/+", "plant-07/+/state", "+/dev-000107/state", "+/+/state", "#"} {
		b.Run(strings.ReplaceAll(filter, "/", "|"), func(b *testing.B) {
			n, found := 0, 0
			for b.Loop() {
				n = 0
				list.match(filter, func(*Message) { n++ })
			}
			b.ReportMetric(float64(n), "found")
			began := time.Now()
			for topic := range byTopic {
				if Matches(filter, topic) {
					found++
				}
			}
			b.ReportMetric(time.Since(began).Seconds()*1e3, "ms-all")
			if found != n {
				b.Fatalf("%d found, want %d", n, found)
			}
		})
	}
}
