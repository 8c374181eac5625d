package shard

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// TestQueriesAfterAWriteHoldIt names writes on every node, as soon as they are
// acknowledged, while leaders change.
func TestQueriesAfterAWriteHoldIt(t *testing.T) {
	c := newTestCluster(t, 3, 2)
	p := c.publisher(1)
	p.publish(1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for k := range 30 {
		p.seq++
		data := encode(t, block.Header{Origin: "n7.0000000f", Epoch: 1, Seq: p.seq, Shard: 1}, message(p.device, epoch2026+int64(p.acked)*second, 1, 40, 1013.25))
		index := c.acknowledged(p, data)
		p.acked++
		n := c.nodes[k%3]
		if err := n.router.Await(ctx, p.device, []telemetry.Write{{Shard: 0, Index: 1 << 40}, {Shard: 1, Index: index}}); err != nil {
			t.Fatalf("await entry %d on %s: %v", index, n.peer, err)
		}
		q := queryAll(p.device)
		q.Sensor = "temperature"
		points, err := n.router.Readings(ctx, q)
		if err != nil || len(points) != p.acked {
			t.Fatalf("%d readings after write %d on %s, want %d: %v", len(points), index, n.peer, p.acked, err)
		}
		if err := n.router.Await(ctx, p.device, []telemetry.Write{{Shard: 1, Index: index + 1000}}); !errors.Is(err, ErrNotReached) {
			t.Fatalf("a write of another cluster: %v", err)
		}
		if k%7 == 6 {
			if l := c.leader(1); l != nil {
				s, _ := l.host.Shard(1)
				_ = s.HandOver("") // whoever leads, the answer must hold the write
			}
		}
	}
	for _, writes := range [][]telemetry.Write{{{Shard: 0, Index: 1 << 40}}, {{Shard: 77, Index: 1}}} {
		if err := c.nodes[0].router.Await(ctx, "", writes); !errors.Is(err, ErrNotReached) {
			t.Errorf("%v: %v", writes, err)
		}
	}
}

// acknowledged sends a block until it is acknowledged and returns its index.
func (c *testCluster) acknowledged(p *publisher, data []byte) uint64 {
	c.t.Helper()
	type answer struct {
		res Result
		err error
	}
	var index uint64
	eventually(c.t, "acknowledgement", func() bool {
		ch := make(chan answer, 1)
		c.nodes[int(p.seq)%3].router.Propose(1, data, func(res Result, err error) { ch <- answer{res, err} })
		a := <-ch
		index = a.res.Index
		return a.err == nil && a.res.Status == StatusApplied
	})
	return index
}
