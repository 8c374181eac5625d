package faults

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

func TestWatchSeesWhatHasMovedSinceTheFault(t *testing.T) {
	s := &series{first: map[string]float64{}, last: map[string]float64{}, moved: map[string]bool{}, peak: map[string]float64{}}
	w := &watch{nodes: map[string]*series{"n0": s}}
	s.add(map[string]float64{`a{state="dead"}`: 1, "h_sum": 1, "h_count": 10, `g{peer="x"}`: 3})
	w.begin()
	for metric, above := range map[string]float64{`a{state="`: 0, "h": 0.01, "g": 4} {
		if w.saw(metric, above) {
			t.Errorf("%s has moved before the fault", metric)
		}
	}
	s.add(map[string]float64{`a{state="dead"}`: 2, "h_sum": 1.4, "h_count": 12, `g{peer="x"}`: 5})
	for metric, above := range map[string]float64{`a{state="`: 0, "h": 0.19, "g": 4} {
		if !w.saw(metric, above) {
			t.Errorf("%s has not moved", metric)
		}
	}
	if w.saw("h", 0.21) {
		t.Error("a mean of 0.2 is above 0.21")
	}
	if w.saw("b", 0) {
		t.Error("a metric that does not exist has moved")
	}
}

func TestNodeThatLedBeforeItSetTheDamageAsideIsFound(t *testing.T) {
	aside := "level=INFO msg=\"damaged replica set aside, it is being rebuilt\" shard=3\n"
	led := "level=INFO msg=\"leading shard\" shard=3 term=4\n"
	other := "level=INFO msg=\"leading shard\" shard=30 term=4\n"
	for text, fine := range map[string]bool{other + aside + led: true, led + aside: false, other: false} {
		if err := ledWhileDamaged(text, "00003"); (err == nil) != fine {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestWrongScoreIsFound replays the log of a shard and compares what is stored.
func TestWrongScoreIsFound(t *testing.T) {
	enc := block.NewBuilder()
	for i := range 50 {
		at := bench.Epoch.UnixMicro() + int64(i)
		enc.Add(&telemetry.Message{Device: "d", Time: at, Received: at, Readings: []telemetry.Reading{{Sensor: "x", Value: telemetry.FloatValue(float64(i % 7))}}})
	}
	entry, err := enc.Append(nil, block.Header{Origin: "n0.1", Epoch: 1, Seq: 1})
	if err != nil {
		t.Fatal(err)
	}
	healthy := shard.NewReplay(0)
	healthy.Apply(1, entry)
	seen := &Run{replicasSeen: map[uint32][]replica{0: {{"n0", shard.ReplicaStatus{Applied: 1, Digest: healthy.Digest()}}}}}
	stored := func(change float32) map[string]map[string][]bench.Stored {
		res := Result{}
		p := seen.replays("n0", &History{}, &res)(0)
		if _, err := p.apply(&raft.Log{Index: 1, Term: 1, Type: raft.LogCommand, Data: entry}, 1); err != nil {
			t.Fatal(err)
		}
		out := map[string][]bench.Stored{}
		for k, score := range p.scores {
			out[k.device] = append(out[k.device], bench.Stored{Time: time.UnixMicro(k.time), Sensor: k.sensor, Value: k.value, Score: score + change})
		}
		return map[string]map[string][]bench.Stored{"n0": out}
	}
	if n := seen.replays("n9", &History{}, &Result{})(0).committed(); n != 0 {
		t.Errorf("%d entries of a node that is no replica are taken for committed", n)
	}
	for _, change := range []float32{0, 0.25} {
		res := Result{}
		p := seen.replays("n0", &History{Stored: stored(change)}, &res)(0)
		admitted, err := p.apply(&raft.Log{Index: 1, Term: 1, Type: raft.LogCommand, Data: entry}, 1)
		if err != nil || !admitted {
			t.Fatalf("admitted %v, %v", admitted, err)
		}
		p.compare()
		found := strings.HasPrefix(strings.Join(res.Failures, "\n"), "C9")
		if found != (change != 0) || res.Replayed != 50 {
			t.Errorf("scores off by %v: %d compared, %q", change, res.Replayed, res.Failures)
		}
	}
}
