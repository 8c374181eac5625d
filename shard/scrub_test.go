package shard

import (
	"context"
	"testing"
	"time"
)

// TestDamagedSnapshotOfARunningReplicaIsReplaced, also where it is the only
// replica: nobody else could rebuild it.
func TestDamagedSnapshotOfARunningReplicaIsReplaced(t *testing.T) {
	c := newTestCluster(t, 1, 1)
	p := c.publisher(0)
	p.publish(40)
	n := c.nodes[0]
	eventually(t, "there is a snapshot", func() bool {
		p.publish(1)
		s, ok := n.host.Shard(0)
		return ok && s.snapIndex.Load() > 0
	})
	for _, file := range []string{"state.bin", "meta.json"} {
		damaged := rotSnapshots(t, n.dir, file)
		name, err := SnapshotDamage(t.Context(), n.host.dir(0), Scrub{BytesPerSecond: 1 << 30})
		if name == "" || err == nil {
			t.Fatalf("%d files %s are damaged, and nothing is found: %v", damaged, file, err)
		}
		if !n.host.scrubSnapshots(t.Context()) || len(n.host.Rotten()) != 0 {
			t.Fatalf("%s: not replaced: %v", file, n.host.Rotten())
		}
		if name, err := SnapshotDamage(t.Context(), n.host.dir(0), Scrub{}); name != "" || err != nil {
			t.Fatalf("%s: snapshot %s is damaged: %v", file, name, err)
		}
	}
	p.publish(3)
	n.kill()
	n.start()
	if len(n.host.Damaged()) != 0 {
		t.Errorf("damaged after a restart: %v", n.host.Damaged())
	}
	p.publish(1)
	p.check(n)
}

func TestScrubComesBackSoonToWhatIsNotReplaced(t *testing.T) {
	looks := make(chan bool)
	go Scrub{Every: time.Millisecond}.Due(t.Context(), func(ctx context.Context) bool {
		select {
		case looks <- true:
		case <-ctx.Done():
		}
		return false
	})
	for range 3 {
		<-looks
	}
}
