package pubsub

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// part lets two nodes not reach each other, or reach each other again.
func part(a, b *testNode, apart bool) {
	if apart {
		a.far.Store(b)
		b.far.Store(a)
		return
	}
	a.far.Store(nil)
	b.far.Store(nil)
}

// take connects a client of a node, whatever comes of it.
func (n *testNode) take(ctx context.Context, client string) error {
	_, err := n.hub.Connect(ctx, session.Connect{Client: client, Durable: true, Expiry: int64(time.Hour / time.Microsecond), QueueMax: 10, QueueBytes: 1 << 10}, nil)
	return err
}

// TestAShardThatOnlyAnotherNodeReachesIsNotWaitedFor: a client of it is sent there, one
// that waits already, too.
func TestAShardThatOnlyAnotherNodeReachesIsNotWaitedFor(t *testing.T) {
	f := newFleet(t, 3)
	leader, lost, other := f.nodes[0], f.nodes[1], f.nodes[2]
	part(leader, lost, true)
	waiting := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	go func() { waiting <- lost.take(ctx, "waits") }()
	if err := <-waiting; !errors.Is(err, session.ErrElsewhere) {
		t.Fatalf("a CONNECT that waits for a shard of another node ends with %v", err)
	}
	if err := lost.take(ctx, "c"); !errors.Is(err, session.ErrElsewhere) {
		t.Errorf("a CONNECT for a shard of another node ends with %v", err)
	}
	eventually(t, "the shard is astray", func() bool { return lost.hub.Astray(0) })
	eventually(t, "the broker is told", func() bool {
		lost.mu.Lock()
		defer lost.mu.Unlock()
		return slices.Contains(lost.strayed, 0)
	})
	if err := other.take(ctx, "c"); err != nil {
		t.Errorf("the node that reaches the shard refuses with %v", err)
	}
	part(leader, lost, false)
	eventually(t, "the shard is heard again", func() bool { return !lost.hub.Astray(0) })
	if err := lost.take(ctx, "c"); err != nil {
		t.Errorf("after the partition: %v", err)
	}
	eventually(t, "the session of the one that was refused is given back", func() bool {
		f.shard.mu.Lock()
		defer f.shard.mu.Unlock()
		return f.shard.state.Counts().Connected == 1
	})
}

// TestALeaderThatDiesIsNotTakenToBeElsewhere: nodes have heard of it last within a pull of
// each other, whatever they tell each other afterwards.
func TestALeaderThatDiesIsNotTakenToBeElsewhere(t *testing.T) {
	died := time.Now()
	for _, first := range []time.Duration{0, pullHold / 2, pullHold} { // before its death
		here, there := newRoutes("n1.00000001"), newRoutes("n2.00000002")
		for r, heard := range map[*routes]time.Time{here: died.Add(-first), there: died} {
			r.apply(shardSource(3), mark{1 << eraBits, 1}, true, nil)
			r.sources[shardSource(3)].hear(heard)
		}
		for now := died; now.Before(died.Add(10 * time.Second)); now = now.Add(beat) {
			if list := here.compare(there.seen(now), now); len(list) > 0 {
				t.Fatalf("heard of %v earlier than by the other node, the shard is taken for astray %v after its leader died", first, now.Sub(died))
			}
			if here.astray(3, now) {
				t.Fatal("the shard is astray")
			}
		}
	}
}

// TestAShardIsAstrayWhileAnotherNodeSaysSo, and no longer.
func TestAShardIsAstrayWhileAnotherNodeSaysSo(t *testing.T) {
	r, cut := newRoutes("n1.00000001"), time.Now()
	r.apply(shardSource(3), mark{1 << eraBits, 1}, true, nil)
	seen := []telemetry.ShardID{3, 4}
	if r.compare(seen, cut.Add(time.Hour)); r.astray(3, cut) || r.astray(4, cut) {
		t.Error("a shard is astray that this node has never heard of")
	}
	r.sources[shardSource(3)].hear(cut)
	now := cut.Add(sightLost)
	if list := r.compare(seen, now.Add(time.Hour)); len(list) > 0 {
		t.Errorf("astray are %v for a process that was paused and has yet to read what the leader has said", list)
	}
	r.sources[shardSource(3)].hear(cut)
	r.compare(seen, now.Add(-pullHold))
	if list := r.compare(seen, now); len(list) > 0 || !r.astray(3, now) || r.lost(3, now) || r.astrays(now) != 1 {
		t.Errorf("lost are %v already, or nothing is astray", list)
	}
	now = now.Add(lostAfter - pullHold)
	if list := r.compare(seen, now); len(list) != 1 || list[0] != (session.Astray{Shard: 3, For: now.Sub(cut)}) || !r.lost(3, now) {
		t.Errorf("lost are %v", list)
	}
	r.excuse()
	if r.astray(3, now) || r.lost(3, now) || len(r.compare(seen, now)) > 0 {
		t.Error("a process that stood still goes on missing what it missed before")
	}
	r.compare(seen, now.Add(pullHold))
	now = now.Add(lostAfter)
	if list := r.compare(seen, now); len(list) != 1 {
		t.Errorf("missed for long again, lost are %v", list)
	}
	if r.astray(3, now.Add(strayMax+time.Millisecond)) {
		t.Error("it is astray though nobody has said so for long")
	}
	r.sources[shardSource(3)].hear(now)
	if r.astray(3, now) {
		t.Error("it is astray though its leader has spoken")
	}
}
