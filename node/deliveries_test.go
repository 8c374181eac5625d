package node

import (
	"testing"

	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// A shard hears of the index below which nothing is open any more, in whatever
// order its events are delivered, and however many an entry has.
func TestDeliveriesConfirmWhatHasNoOlderOneOpen(t *testing.T) {
	got := map[telemetry.ShardID]uint64{}
	d := newDeliveries(func(id telemetry.ShardID, index uint64) { got[id] = index })
	var events []shard.Event
	for _, i := range []uint64{5, 5, 7, 9} {
		events = append(events, shard.Event{Shard: 1, Index: i})
	}
	d.expect(events)
	d.expect([]shard.Event{{Shard: 2, Index: 3}})
	for _, step := range []struct {
		shard telemetry.ShardID
		index uint64
		want  uint64 // confirmed of shard 1
	}{{1, 9, 0}, {1, 5, 4}, {2, 3, 4}, {1, 5, 5}, {1, 7, 9}} {
		d.done(step.shard, step.index)
		if got[1] != step.want {
			t.Errorf("after %d: confirmed up to %d, want %d", step.index, got[1], step.want)
		}
	}
	if got[2] != 3 || len(d.open) != 0 {
		t.Errorf("shard 2 confirmed up to %d, open %v", got[2], d.open)
	}
	d.expect([]shard.Event{{Shard: 1, Index: 11}, {Shard: 1, Index: 11, Repeat: true}})
	if d.done(1, 11); got[1] != 10 {
		t.Errorf("one of two tellings: confirmed up to %d, want 10", got[1])
	}
	if d.done(1, 11); got[1] != 11 {
		t.Errorf("both tellings: confirmed up to %d, want 11", got[1])
	}

	// Led elsewhere meanwhile: what was not delivered is confirmed there, and holds
	// nothing up when it is this node's turn again.
	d.expect([]shard.Event{{Shard: 1, Index: 13}, {Shard: 1, Index: 14}})
	d.done(1, 14)
	d.forget(1)
	if d.done(1, 13); got[1] != 11 {
		t.Errorf("led elsewhere: confirmed up to %d, want 11", got[1])
	}
	d.expect([]shard.Event{{Shard: 1, Index: 20}})
	if d.done(1, 20); got[1] != 20 {
		t.Errorf("led here again: confirmed up to %d, want 20", got[1])
	}
}
