package shard

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/store/postgres/pgtest"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// newDatabaseCluster has a real database in the place of the embedded store.
func newDatabaseCluster(t *testing.T, nodes int, shards uint32, o pgtest.Options) (*testCluster, *pgtest.Server, string) {
	s := pgtest.Start(t, o)
	url := s.Database(t)
	c := makeTestCluster(t, nodes, shards)
	c.flush.Interval, c.database = 50*time.Millisecond, func(*testNode) string { return url }
	c.start()
	return c, s, url
}

func scan[T any](t *testing.T, url, sql string, args ...any) []T {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return out
}

// flushed waits until nothing is pending in either lane.
func (c *testCluster) flushed(id telemetry.ShardID) {
	c.t.Helper()
	var last ReplicaStatus
	eventually(c.t, "everything is flushed", func() bool {
		if l := c.leader(id); l != nil {
			last = l.status(id)
			return last.PendingMessages == 0 && last.PendingRows == 0 && last.LateRows == 0
		}
		return false
	})
}

// once holds what the database has of a device against what was acknowledged.
func (p *publisher) once(url string) {
	p.c.t.Helper()
	const sql = "select count(*)::text || ' rows, ' || count(distinct (time, sensor, value))::text || ' different' from telemetry where device_id = $1"
	if got, want := scan[string](p.c.t, url, sql, p.device)[0], fmt.Sprintf("%d rows, %[1]d different", 3*p.acked); got != want {
		p.c.t.Fatalf("%s: the database has %s, want %s", p.device, got, want)
	}
}

// TestLeaderDiesAtEveryStepOfATransaction cuts the leader's connection at some
// byte of its next transactions, in both directions, and takes the leader away at
// that moment; the next one finds out what became of them.
func TestLeaderDiesAtEveryStepOfATransaction(t *testing.T) {
	t.Run("in order", func(t *testing.T) { killLeaders(t, FlushConfig{RowsMax: 2000}, 1) })
	t.Run("with gaps", func(t *testing.T) { killLeaders(t, FlushConfig{RowsMax: 60, GapAfter: time.Nanosecond}, 4) })
}

// killLeaders publishes more blocks at once where many should wait.
func killLeaders(t *testing.T, flush FlushConfig, many int) {
	s := pgtest.Start(t, pgtest.Options{})
	url := s.Database(t)
	proxies := map[string]*pgtest.Proxy{}
	c := makeTestCluster(t, 3, 1)
	c.flush = flush
	c.flush.Interval = 20 * time.Millisecond
	c.database = func(n *testNode) string {
		if proxies[n.peer] == nil {
			proxies[n.peer] = pgtest.NewProxy(t, s.Addr())
		}
		return proxies[n.peer].URL(url)
	}
	c.start()
	p := c.publisher(0)
	p.publish(3)
	c.flushed(0)
	for i, step := range []struct{ up, down int64 }{{0, -1}, {150, -1}, {700, -1}, {1500, -1}, {-1, 40}, {-1, 250}, {-1, 500}, {2300, -1}} {
		var l *testNode
		eventually(t, "somebody leads", func() bool { l = c.leader(0); return l != nil })
		proxies[l.peer].Allow(step.up, step.down)
		p.publish(2 * many)
		l.kill()
		proxies[l.peer].Allow(-1, -1)
		p.publish(1)
		l.start()
		c.flushed(0)
		p.once(url)
		if i%4 == 3 {
			p.check(c.nodes[i%3])
		}
	}
	c.sameDigests(0)
}

// TestLeadershipMovesWhileBatchesAreWritten, back and forth under load.
func TestLeadershipMovesWhileBatchesAreWritten(t *testing.T) {
	c, _, url := newDatabaseCluster(t, 3, 2, pgtest.Options{})
	a, b := c.publisher(0), c.publisher(1)
	for range 12 {
		a.publish(4)
		b.publish(4)
		for id := range telemetry.ShardID(2) {
			if l := c.leader(id); l != nil {
				if sh, ok := l.host.Shard(id); ok {
					_ = sh.HandOver("") // it may have lost it already
				}
			}
		}
	}
	for id, p := range []*publisher{a, b} {
		c.flushed(telemetry.ShardID(id))
		p.once(url)
		p.check(c.nodes[id])
	}
}

// TestDatabaseThatLostItsTailIsRefilled: it fails over to a copy that is behind,
// and gets the lost rows of both lanes, devices and anomalies from the log.
func TestDatabaseThatLostItsTailIsRefilled(t *testing.T) {
	c, s, url := newDatabaseCluster(t, 3, 1, pgtest.Options{})
	p := c.publisher(0)
	p.publish(3)
	p.publishLate(2)
	c.flushed(0)
	p.once(url)
	if err := s.Save(); err != nil {
		t.Fatal(err)
	}
	p.publish(5)
	p.publishLate(3)
	p.publish(5)
	c.flushed(0)
	p.once(url)
	if err := s.FailOver(); err != nil {
		t.Fatal(err)
	}
	p.check(c.nodes[1]) // what is missing comes from the log already
	p.publish(2)
	eventually(t, "the rows are back", func() bool {
		return scan[int64](t, url, "select count(*) from telemetry where device_id = $1", p.device)[0] == int64(3*p.acked)
	})
	c.flushed(0)
	p.once(url)
	p.check(c.nodes[2])
	if seen := scan[int64](t, url, "select (extract(epoch from last_seen) * 1000000)::bigint from devices where device_id = $1", p.device); len(seen) != 1 || seen[0] != p.received {
		t.Errorf("the device was last seen at %v, want %d", seen, p.received)
	}
	c.sameDigests(0)
}

// TestWhatTheLogNoLongerHasIsSaidAndAccepted: flushing stops with the range that
// is gone, goes on when an operator accepts that, and the database remembers.
func TestWhatTheLogNoLongerHasIsSaidAndAccepted(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	url := s.Database(t)
	c := makeTestCluster(t, 1, 1)
	c.flush.Interval, c.flush.Retain, c.database = 50*time.Millisecond, time.Millisecond, func(*testNode) string { return url }
	c.start()
	p := c.publisher(0)
	p.publish(3)
	c.flushed(0)
	if err := s.Save(); err != nil {
		t.Fatal(err)
	}
	before := p.acked
	sh, _ := c.nodes[0].host.Shard(0)
	state := func() (durable, kept uint64) {
		sh.fsm.mu.Lock()
		defer sh.fsm.mu.Unlock()
		return sh.fsm.pending.durable, sh.fsm.pending.kept
	}
	saved, _ := state()
	eventually(t, "some of what the copy lacks is no longer kept", func() bool {
		p.publish(2)
		c.flushed(0)
		_, kept := state()
		return kept > saved
	})
	lost := p.acked - before
	if err := s.FailOver(); err != nil {
		t.Fatal(err)
	}
	p.publish(1)
	eventually(t, "the loss is said", func() bool { return strings.Contains(sh.Status(false).Lost, "accept-loss 0") })
	if n := scan[int64](t, url, "select count(*) from telemetry where device_id = $1", p.device)[0]; n != int64(3*before) {
		t.Errorf("%d rows before the loss is accepted, want the %d of the copy", n, 3*before)
	}
	if err := sh.AcceptLoss(); err != nil {
		t.Fatal(err)
	}
	c.flushed(0)
	eventually(t, "what the log has is written", func() bool { return sh.Status(false).Lost == "" && !sh.flush.fallenBack() })
	p.publish(2)
	c.flushed(0)
	n := scan[int64](t, url, "select count(*) from telemetry where device_id = $1", p.device)[0]
	if n <= int64(3*before) || n > int64(3*p.acked) || n < int64(3*(p.acked-lost)) {
		t.Errorf("%d rows in the end, of %d acknowledged and at most %d lost", n, 3*p.acked, 3*lost)
	}
	if got := scan[string](t, url, "select kind || ' ' || shard from dead_letters"); len(got) != 1 || got[0] != "lost 0" {
		t.Errorf("dead letters %q", got)
	}
	if err := sh.AcceptLoss(); err == nil {
		t.Error("nothing is lost any more, and that was accepted")
	}
}

// TestLateRowsTakeTheirOwnLane and are in every answer at any moment.
func TestLateRowsTakeTheirOwnLane(t *testing.T) {
	c, _, url := newDatabaseCluster(t, 3, 1, pgtest.Options{})
	p := c.publisher(0)
	for i := range 10 {
		p.publish(2)
		p.publishLate(2)
		p.check(c.nodes[i%3])
	}
	c.flushed(0)
	p.once(url)
	p.check(c.nodes[0])
	lanes := scan[int64](t, url, "select count(*) from flush_watermarks where last_index > 0 and lane < 2")[0]
	if late := scan[int64](t, url, "select count(*) from telemetry where time < received - interval '10 minutes'")[0]; lanes != 2 || late != 20*10*3 {
		t.Errorf("%d lanes, %d late rows", lanes, late)
	}
	l := c.leader(0)
	if l == nil {
		t.Fatal("nobody leads")
	}
	st := l.status(0)
	if st.Durable != st.Flushed {
		t.Errorf("durable up to %d, flushed up to %d: the late lane holds the log", st.Durable, st.Flushed)
	}
	// A restart finds both lanes where they were.
	for _, n := range c.nodes {
		n.kill()
	}
	for _, n := range c.nodes {
		n.start()
	}
	p.publishLate(1)
	p.publish(1)
	p.check(c.nodes[1])
	c.flushed(0)
	p.once(url)
}

// TestOutageCostsDiskNotMemory: while the database is away, blocks go back to the
// log and marks to disk, and come back as they were.
func TestOutageCostsDiskNotMemory(t *testing.T) {
	c, s, url := newDatabaseCluster(t, 1, 1, pgtest.Options{})
	p := c.publisher(0)
	p.publish(1)
	c.flushed(0)
	sh, _ := c.nodes[0].host.Shard(0)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	const keep = 64
	sh.flush.marksMax.Store(keep)
	m := sh.fsm.machine
	m.mu.Lock()
	m.pending.blocksMax = keep
	m.mu.Unlock()
	p.publish(2*runBlocks + 100)
	p.publishLate(runBlocks)
	eventually(t, "marks are on disk, and the bookkeeping of most blocks is packed", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.pending.marks <= keep && len(m.pending.cold) > 2 && len(m.pending.blocks) < runBlocks+keep
	})
	if sh.flush.spillBytes.Load() == 0 {
		t.Error("nothing is counted on disk")
	}
	if err := sh.snapshot(); err != nil { // reads them back
		t.Fatal(err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	c.flushed(0)
	p.once(url)
	p.check(c.nodes[0])
}

// publishLate sends blocks of messages that were measured a day earlier.
func (p *publisher) publishLate(blocks int) {
	p.c.t.Helper()
	for range blocks {
		p.seq++
		var ms []telemetry.Message
		for range 10 {
			m := message(p.device, epoch2026+int64(p.acked+len(ms))*second, float64(len(ms)), 40, 1013.25)
			m.Received = m.Time + 24*3600*second
			ms = append(ms, m)
		}
		p.received = max(p.received, ms[9].Received)
		p.send(encode(p.c.t, block.Header{Origin: "n7.0000000f", Epoch: 1, Seq: p.seq, Shard: p.id}, ms...))
		p.acked += len(ms)
	}
}
