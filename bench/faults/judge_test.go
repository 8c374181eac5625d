package faults

import (
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/shard"
)

// untimed is a history of n messages of which all were acknowledged.
func untimed(n uint64) bench.History {
	h := bench.History{Device: "d", NoTime: true, Sent: n}
	for i := range n {
		h.Acked = append(h.Acked, i)
	}
	return h
}

func rows(seqs ...float64) []bench.Stored {
	var out []bench.Stored
	for _, s := range seqs {
		out = append(out, bench.Stored{Time: bench.Epoch, Sensor: "sequence", Value: s})
	}
	return out
}

func judged(h bench.History, stored []bench.Stored, logs ...Log) Result {
	res := Result{}
	hist := &History{Clients: []bench.History{h}, Stored: map[string]map[string][]bench.Stored{"n0": {"d": stored}}, Logs: logs}
	hist.judge(&res)
	return res
}

func TestJudgeFindsEveryViolation(t *testing.T) {
	log := func(node string, commit uint64, hashes []uint64, seqs ...uint64) Log {
		return Log{Node: node, Shards: []ShardLog{{Commit: commit, First: 5, Hashes: hashes, Devices: map[string][]uint64{"d": seqs}}}}
	}
	for _, c := range []struct {
		name  string
		res   Result
		check string // "" passes
	}{
		{"whole", judged(untimed(3), rows(0, 1, 2), log("n0", 7, []uint64{1, 2, 3}, 0, 1, 0, 1, 2), log("n1", 7, []uint64{1, 2, 3})), ""},
		{"lost", judged(untimed(3), rows(0, 2)), "C1"},
		{"twice", judged(untimed(3), rows(0, 1, 1, 2)), "C1-C3"},
		{"never sent", judged(untimed(3), rows(0, 1, 2, 3)), "C1-C3"},
		{"out of order", judged(untimed(3), rows(0, 1, 2), log("n0", 7, nil, 0, 2, 1)), "C4"},
		{"logs differ", judged(untimed(3), rows(0, 1, 2), log("n0", 7, []uint64{1, 2, 3}), log("n1", 7, []uint64{1, 9, 3})), "C4"},
		{"logs differ behind the commit", judged(untimed(3), rows(0, 1, 2), log("n0", 6, []uint64{1, 2, 3}), log("n1", 7, []uint64{1, 2, 9})), ""},
	} {
		got := strings.Join(c.res.Failures, "\n")
		if c.check == "" && got != "" || c.check != "" && !strings.HasPrefix(got, c.check) {
			t.Errorf("%s: %q, want a failure of %q", c.name, got, c.check)
		}
	}
	if res := judged(untimed(3), rows(0, 2, 2, 9)); res.Verdict.Lost != 1 || res.Verdict.Twice != 1 || res.Verdict.Unsent != 1 {
		t.Errorf("counts %+v, want one of each", res.Verdict)
	}
}

func TestKeptHistoryIsJudgedTheSameAgain(t *testing.T) {
	dir := t.TempDir()
	h := &History{Fault: "F9", Seed: 4, Clients: []bench.History{untimed(3)}, Stored: map[string]map[string][]bench.Stored{"n0": {"d": rows(0, 2)}}}
	if err := h.write(dir); err != nil {
		t.Fatal(err)
	}
	res, err := Judge(dir)
	if err != nil {
		t.Fatal(err)
	}
	if res.ID != "F9" || res.Seed != 4 || res.Verdict.Lost != 1 || res.Passed() {
		t.Errorf("judged again: %+v", res)
	}
	if _, err := Judge(t.TempDir()); err == nil {
		t.Error("a folder without a history was judged")
	}
}

func TestDigestsAreComparedAtOneIndexOnly(t *testing.T) {
	st := func(node string, applied, digest uint64) replica {
		return replica{node, shard.ReplicaStatus{Applied: applied, Digest: digest}}
	}
	for _, c := range []struct {
		list []replica
		want string
	}{
		{[]replica{st("n0", 5, 1), st("n1", 5, 1)}, ""},
		{[]replica{st("n0", 5, 1), st("n1", 6, 2)}, "shard 0: n0 has applied 5"},
		{[]replica{st("n0", 5, 1), st("n1", 5, 2)}, divergence},
		{[]replica{st("n0", 5, 1)}, "shard 0 has 1 replicas on 2 nodes"},
	} {
		if got := compareDigests(map[uint32][]replica{0: c.list}, 2); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%v: %q, want %q", c.list, got, c.want)
		}
	}
}

func TestMeterTellsWhenTheRateIsBack(t *testing.T) {
	m := newMeter()
	m.start = time.Now().Add(-10 * time.Second)
	m.slots = make([]int, 100)
	for i := range m.slots {
		if i < 30 || i >= 55 { // gone from 3 s to 5.5 s
			m.slots[i] = 10
		}
	}
	at := func(d time.Duration) time.Time { return m.start.Add(d) }
	if got := m.rate(at(time.Second), at(3*time.Second)); got != 100 {
		t.Errorf("rate %v, want 100", got)
	}
	if d, ok := m.back(at(3*time.Second), 90, 500*time.Millisecond); !ok || d != 2500*time.Millisecond {
		t.Errorf("back after %v (%v), want 2.5s", d, ok)
	}
	if d, ok := m.back(at(3*time.Second), 200, 500*time.Millisecond); ok {
		t.Errorf("back after %v at a rate that never was", d)
	}
}

func TestRegisterHistoriesAreJudged(t *testing.T) {
	read := func(at int64, v string) Operation {
		return Operation{Kind: OpRead, Read: v, Call: at, Return: at + 1}
	}
	put := func(at int64, v string) Operation {
		return Operation{Kind: OpPut, Write: v, Done: true, Call: at, Return: at + 1}
	}
	swap := func(at int64, from, to string, done, unknown bool) Operation {
		return Operation{Kind: OpSwap, Expect: from, Write: to, Done: done, Unknown: unknown, Call: at, Return: at + 1}
	}
	for _, c := range []struct {
		name string
		ok   bool
		ops  []Operation
	}{
		{"in order", true, []Operation{read(0, ""), swap(2, "", "a", true, false), read(4, "a"), swap(6, "b", "c", false, false)}},
		{"stale read", false, []Operation{put(0, "a"), put(2, "b"), read(4, "a")}},
		{"two swaps from one value", false, []Operation{put(0, "a"), swap(2, "a", "b", true, false), swap(4, "a", "c", true, false)}},
		{"a refusal without a reason", false, []Operation{put(0, "a"), swap(2, "a", "b", false, false), read(4, "a")}},
		{"unknown took place late", true, []Operation{put(0, "a"), swap(2, "a", "b", false, true), read(4, "a"), read(6, "b")}},
		{"unknown never took place", true, []Operation{put(0, "a"), swap(2, "a", "b", false, true), read(4, "a"), put(6, "c"), read(8, "c")}},
		{"unknown took place and was undone", false, []Operation{put(0, "a"), swap(2, "a", "b", false, true), read(4, "b"), read(6, "a")}},
	} {
		var res Result
		linearizable(c.ops, &res)
		if res.Passed() != c.ok {
			t.Errorf("%s: passed %v (%v)", c.name, res.Passed(), res.Failures)
		}
	}
}

func TestNodeThatHoldsMoreThanBeforeIsFound(t *testing.T) {
	before := resources{"n0", 100, 50, 100 << 20}
	for _, c := range []struct {
		now  resources
		want bool
	}{
		{resources{"n0", 120, 60, 200 << 20}, false},
		{resources{"n0", 1100, 60, 200 << 20}, true},
		{resources{"n0", 120, 2050, 200 << 20}, true},
		{resources{"n0", 120, 60, 2 << 30}, true},
	} {
		if got := c.now.exceeds(&before); got != c.want {
			t.Errorf("%+v against %+v: %v", c.now, before, got)
		}
	}
}

func TestJudgeFindsEveryViolationOfDelivery(t *testing.T) {
	for _, c := range []struct {
		name string
		d    Commands
		want string // part of the failure; "" passes
	}{
		{"whole, with a repeat", Commands{Sent: 4, Acked: []uint64{0, 1, 2}, Got: []uint64{0, 1, 0, 1, 2, 3}}, ""},
		{"lost", Commands{Sent: 3, Acked: []uint64{0, 1, 2}, Got: []uint64{0, 2}}, "have not arrived: [1]"},
		{"out of order", Commands{Sent: 3, Acked: []uint64{0}, Got: []uint64{0, 2, 1}}, "came first behind"},
		{"another's", Commands{Sent: 1, Acked: []uint64{0}, Got: []uint64{0}, Foreign: []string{"x"}}, "was given"},
		{"never sent", Commands{Sent: 1, Acked: []uint64{0}, Got: []uint64{0, 7}}, "was given command 7 of 1"},
		{"without its session", Commands{Sent: 1, Acked: []uint64{0}, Got: []uint64{0}, Lost: true}, "session is gone"},
	} {
		res := Result{}
		c.d.judge(&res)
		got := strings.Join(res.Failures, "\n")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	probes := []probe{{topic: "routes/a", payload: "p"}, {topic: "nobody/home", payload: "q"}, {topic: routeShared, payload: "s"}}
	on := map[string]routeState{"routes/+": routeOn, "$share/crew/jobs/left": routeOn}
	for _, c := range []struct {
		name string
		got  map[string]int
		want string
	}{
		{"once", map[string]int{"p": 1, "s": 1}, ""},
		{"twice", map[string]int{"p": 2, "s": 1}, "2 times"},
		{"not", map[string]int{"s": 1}, "0 times"},
		{"nobody's", map[string]int{"p": 1, "q": 1, "s": 1}, `"q" 1 times`},
		{"nobody's share", map[string]int{"p": 1}, "reached 0 of 1"},
	} {
		res := Result{}
		r := &routes{churners: []*churner{{id: "c", state: on, got: c.got}, {id: "off", state: map[string]routeState{}, got: map[string]int{}}}}
		r.compare(probes, &res)
		got := strings.Join(res.Failures, "\n")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
