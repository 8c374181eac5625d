package shard

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
	"github.com/sluice-iot/sluice/telemetry"
)

// TestReadsSeeEveryReadingOnceWhileRowsMove reads and counts through all nodes
// while one device publishes, its rows are flushed and (in the embedded store)
// compacted, leaders change and nodes are killed and started again: every answer holds each reading acknowledged
// before the question exactly once, and nothing that was not sent.
func TestReadsSeeEveryReadingOnceWhileRowsMove(t *testing.T) {
	t.Run("embedded", func(t *testing.T) { hammerUnion(t, newTestCluster(t, 3, 2)) })
	t.Run("database", func(t *testing.T) {
		c, _, _ := newDatabaseCluster(t, 3, 2, pgtest.Options{})
		hammerUnion(t, c)
	})
	t.Run("database with gaps", func(t *testing.T) {
		s := pgtest.Start(t, pgtest.Options{})
		url := s.Database(t)
		c := makeTestCluster(t, 3, 2)
		c.flush = FlushConfig{Interval: 50 * time.Millisecond, RowsMax: 100, GapAfter: time.Nanosecond}
		c.database = func(*testNode) string { return url }
		c.start()
		hammerUnion(t, c)
		if gaps := scan[int64](t, url, "select count(*) from flush_watermarks where lane = 2 and until > 0")[0]; gaps == 0 {
			t.Error("no gap was left")
		}
	})
}

// hammerBlocks of ten messages are published; a flush moves about sixty.
const hammerBlocks = 400

func hammerUnion(t *testing.T, c *testCluster) {
	p := c.publisher(1)
	var begun, acked atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	bad := make(chan error, 16)
	var reads, moves atomic.Int64
	for i := range 2 {
		wg.Go(func() {
			for k := i; ctx.Err() == nil; k++ {
				if err := hammerRead(ctx, c.nodes[k%len(c.nodes)], p.device, &begun, &acked); err != nil && ctx.Err() == nil {
					bad <- err
					return
				}
				reads.Add(1)
			}
		})
	}
	wg.Go(func() { hammerMove(ctx, c, &moves) })
	for k := range hammerBlocks {
		if k%130 == 129 { // its files are ahead of the log that it applies again
			n := c.nodes[k/130%len(c.nodes)]
			n.using.Lock()
			n.kill()
			n.start()
			n.using.Unlock()
		}
		begun.Add(10)
		p.publish(1)
		acked.Add(10)
		if len(bad) > 0 {
			break
		}
	}
	eventually(t, "some reads and moves", func() bool { return len(bad) > 0 || reads.Load() >= 20 && moves.Load() >= 3 })
	cancel()
	wg.Wait()
	close(bad)
	for err := range bad {
		t.Error(err)
	}
	t.Logf("%d answers, %d changes of leader or compactions", reads.Load(), moves.Load())
	p.check(c.nodes[0])
}

// hammerRead asks for the readings, or for their number, and judges the answer.
func hammerRead(ctx context.Context, n *testNode, device string, begun, acked *atomic.Int64) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if !n.using.TryRLock() {
		return nil // it is being killed
	}
	defer n.using.RUnlock()
	least := acked.Load()
	q := queryAll(device)
	q.Sensor, q.Desc = "temperature", rand.IntN(2) == 0
	points, err := n.router.Readings(ctx, q)
	if errors.Is(err, store.ErrUnavailable) && ctx.Err() == nil {
		return nil // a leader that has just lost its place, a segment on its way
	}
	if err != nil {
		return err
	}
	if most := begun.Load(); int64(len(points)) < least || int64(len(points)) > most {
		return fmt.Errorf("%d readings, %d were acknowledged before and %d sent", len(points), least, most)
	}
	for i := range points {
		at := i
		if q.Desc {
			at = len(points) - 1 - i
		}
		if points[i].Time != epoch2026+int64(at)*second {
			return fmt.Errorf("reading %d of %d is %+v", i, len(points), points[i])
		}
	}
	least = acked.Load()
	buckets, err := n.router.Buckets(ctx, store.Aggregate{Device: device, Sensor: "temperature", From: q.From, To: q.To, StepMicros: 7 * second, Limit: 1 << 20})
	if err != nil {
		if errors.Is(err, store.ErrUnavailable) && ctx.Err() == nil {
			return nil
		}
		return err
	}
	total := uint64(0)
	for i := range buckets {
		total += buckets[i].Count
		if i+1 < len(buckets) && i > 0 && buckets[i].Count != 7 {
			return fmt.Errorf("bucket %d of %d counts %d readings of a device that sends one a second: %+v", i, len(buckets), buckets[i].Count, buckets[i])
		}
	}
	if most := begun.Load(); int64(total) < least || int64(total) > most {
		return fmt.Errorf("buckets count %d readings, %d were acknowledged before and %d sent", total, least, most)
	}
	return nil
}

// hammerMove hands leadership round and compacts whatever there is.
func hammerMove(ctx context.Context, c *testCluster, moves *atomic.Int64) {
	for i := 0; ctx.Err() == nil; i++ {
		n := c.nodes[i%len(c.nodes)]
		n.using.RLock()
		if s, ok := n.host.Shard(1); ok && s.raft.State() == raft.Leader && s.HandOver("") == nil {
			moves.Add(1)
		}
		for _, id := range []telemetry.ShardID{0, 1} {
			if n.files == nil {
				break
			}
			if did, err := n.files.Compact(ctx, id); err == nil && did {
				moves.Add(1)
			}
		}
		n.using.RUnlock()
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}
