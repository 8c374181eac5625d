package bench

import (
	"testing"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

func TestGapsAreQuantilesOfWhatWasSeen(t *testing.T) {
	if g := gapsOf(nil); g != (Gaps{}) {
		t.Errorf("nothing seen gives %+v", g)
	}
	var ds []time.Duration
	for i := range 200 {
		ds = append(ds, time.Duration((i*7)%200+1)*time.Millisecond)
	}
	if g, want := gapsOf(ds), (Gaps{Count: 200, P50: 101, P90: 181, P99: 199, Max: 200}); g != want {
		t.Errorf("got %+v, want %+v", g, want)
	}
}

func TestEveryShardHasAClientAndEveryNodeAsMany(t *testing.T) {
	nodes := []string{"a", "b", "c"}
	const shards = 24
	at, homes := map[telemetry.ShardID]int{}, map[string]int{}
	for _, w := range watchersOf(nodes, shards) {
		at[w.shard]++
		homes[w.home]++
		if telemetry.ShardOf(w.Device, shards) != w.shard || w.Addrs[0] != w.home || len(w.Addrs) != 3 {
			t.Errorf("client %s of shard %d begins at %v, home %s", w.Device, w.shard, w.Addrs, w.home)
		}
	}
	if len(at) != shards || homes["a"] != 8 || homes["b"] != 8 || homes["c"] != 8 {
		t.Errorf("%d shards, clients by node %v", len(at), homes)
	}
}

func TestGapIsTheLongestPauseSinceResetAndThePresentOne(t *testing.T) {
	w := &watcher{last: time.Now().Add(-time.Hour)}
	if w.gap() < time.Hour {
		t.Error("a client that hears nothing has no gap")
	}
	w.acked(0)
	if w.gap() < time.Hour {
		t.Error("an ack ends the pause and forgets it")
	}
	w.reset()
	if g := w.gap(); g > time.Minute {
		t.Errorf("gap of %v right after reset", g)
	}
}
