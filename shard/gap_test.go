package shard

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
	"github.com/sluice-iot/sluice/telemetry"
)

// gapCluster has a database and live lanes that leave a gap as soon as more waits
// than one block or two.
func gapCluster(t *testing.T, nodes int, retain time.Duration) (*testCluster, *pgtest.Server, string) {
	s := pgtest.Start(t, pgtest.Options{})
	url := s.Database(t)
	c := makeTestCluster(t, nodes, 1)
	c.flush = FlushConfig{Interval: 50 * time.Millisecond, RowsMax: 200, GapAfter: time.Nanosecond, Retain: retain}
	c.database = func(*testNode) string { return url }
	c.start()
	return c, s, url
}

// hold keeps a node's backlog lane from writing, until the test lets it.
func (n *testNode) hold() { n.host.turns.backlog <- struct{}{} }

func (n *testNode) letGo() { <-n.host.turns.backlog }

// openGap leaves a gap that nobody drains.
func (c *testCluster) openGap(p *publisher, s *pgtest.Server, url string, blocks int) {
	c.t.Helper()
	c.flushed(p.id)
	if err := s.Stop(); err != nil {
		c.t.Fatal(err)
	}
	p.publish(blocks)
	for _, n := range c.nodes {
		if n.mux != nil {
			n.hold()
		}
	}
	if err := s.Restart(); err != nil {
		c.t.Fatal(err)
	}
	c.gapIsOpen(p, url)
}

func (c *testCluster) gapIsOpen(p *publisher, url string) {
	c.t.Helper()
	eventually(c.t, "the live edge is in the database, and a gap before it", func() bool {
		l := c.leader(p.id)
		if l == nil {
			return false
		}
		st := l.status(p.id)
		return gapIn(c.t, url) > 0 && p.newest(url) && st.BacklogRows > 0 && st.PendingRows == st.BacklogRows && st.PendingMessages*3 == st.BacklogRows
	})
}

// gapIn is how many entries the gap in the database has.
func gapIn(t *testing.T, url string) int64 {
	t.Helper()
	return scan[int64](t, url, "select coalesce(sum(until - last_index), 0)::bigint from flush_watermarks where lane = 2")[0]
}

// newest reports whether the database has the latest reading.
func (p *publisher) newest(url string) bool {
	p.c.t.Helper()
	at := epoch2026 + int64(p.acked-1)*second
	return scan[int64](p.c.t, url, "select count(*) from telemetry where device_id = $1 and time = to_timestamp($2::bigint / 1e6)", p.device, at)[0] == 3
}

// drained lets the backlog in and checks that everything is there once.
func (c *testCluster) drained(p *publisher, url string) {
	c.t.Helper()
	for _, n := range c.nodes {
		if n.mux != nil {
			n.letGo()
		}
	}
	c.flushed(p.id)
	p.once(url)
	if gap := gapIn(c.t, url); gap != 0 {
		c.t.Errorf("a gap of %d entries when all is flushed", gap)
	}
	for _, n := range c.nodes {
		p.check(n)
	}
	c.sameDigests(p.id)
}

// TestWhatIsNewGoesBeforeTheBacklog: after an outage the live edge is in the
// database while the gap before it is open; every answer is whole, the log keeps
// what the gap needs, whoever leads goes on, and another outage leaves no second
// gap.
func TestWhatIsNewGoesBeforeTheBacklog(t *testing.T) {
	c, s, url := gapCluster(t, 3, time.Millisecond)
	p := c.publisher(0)
	p.publish(1)
	p.publishLate(1)
	c.openGap(p, s, url, 12)
	for range 3 {
		p.publish(3)
		c.gapIsOpen(p, url)
	}
	whole := func() {
		t.Helper()
		for _, n := range c.nodes {
			if n.mux != nil {
				p.check(n)
			}
		}
	}
	whole()
	l := c.leader(0)
	if l == nil {
		t.Fatal("nobody leads")
	}
	sh, _ := l.host.Shard(0)
	if err := sh.snapshot(); err != nil {
		t.Fatal(err)
	}
	gapFrom := uint64(scan[int64](t, url, "select last_index from flush_watermarks where lane = 2")[0])
	for _, n := range c.nodes {
		if _, first := n.entries(0); first > gapFrom+1 || n.status(0).Durable > gapFrom {
			t.Fatalf("%s: the log begins at %d, stored for good up to %d, the gap begins at %d", n.peer, first, n.status(0).Durable, gapFrom)
		}
	}
	// Leadership changes, then its holder dies, and comes back with what it had.
	eventually(t, "somebody else leads", func() bool {
		_ = sh.HandOver("") // tried again
		n := c.leader(0)
		return n != nil && n != l
	})
	p.publish(2)
	c.gapIsOpen(p, url)
	if l = c.leader(0); l == nil {
		t.Fatal("nobody leads")
	}
	l.kill()
	p.publish(2)
	c.gapIsOpen(p, url)
	whole()
	l.start()
	l.hold()
	// The database goes away again.
	ends := scan[int64](t, url, "select until from flush_watermarks where lane = 2")[0]
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	p.publish(12)
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	c.gapIsOpen(p, url)
	if again := scan[int64](t, url, "select until from flush_watermarks where lane = 2")[0]; again != ends {
		t.Errorf("the gap ended at %d, and now at %d", ends, again)
	}
	whole()
	c.drained(p, url)
}

// TestDatabaseFallsBackAroundAGap: to before it was left, to one that is larger,
// and to one that had been drained.
func TestDatabaseFallsBackAroundAGap(t *testing.T) {
	c, s, url := gapCluster(t, 2, 15*time.Minute)
	p := c.publisher(0)
	p.publish(2)
	back := func() {
		t.Helper()
		if err := s.FailOver(); err != nil {
			t.Fatal(err)
		}
		p.check(c.nodes[0])
		p.publish(1)
	}
	save := func() {
		t.Helper()
		if err := s.Save(); err != nil {
			t.Fatal(err)
		}
	}
	c.flushed(0)
	save()
	c.openGap(p, s, url, 12)
	back()
	c.drained(p, url)

	c.openGap(p, s, url, 12)
	save()
	p.publish(3)
	c.gapIsOpen(p, url)
	back()
	c.gapIsOpen(p, url)
	save()
	c.drained(p, url) // and now back to where it was open

	back()
	c.flushed(0)
	eventually(t, "the gap is drained again", func() bool {
		return scan[int64](t, url, "select count(*) from telemetry where device_id = $1", p.device)[0] == int64(3*p.acked)
	})
	p.once(url)
	p.check(c.nodes[1])
	c.sameDigests(0)
}

// TestReplicaInstalledWhileAGapIsOpen gets the gap with the snapshot, leads, and
// drains what only the snapshot has.
func TestReplicaInstalledWhileAGapIsOpen(t *testing.T) {
	c, s, url := gapCluster(t, 3, time.Millisecond)
	p := c.publisher(0)
	p.publish(20)
	var leader, late *testNode
	eventually(t, "somebody leads", func() bool { leader = c.leader(0); return leader != nil })
	late = c.nodes[slices.IndexFunc(c.nodes, func(n *testNode) bool { return n != leader })]
	count, first := late.entries(0)
	last := first + count + 8
	late.kill()
	eventually(t, "the survivors' logs begin behind the late node's", func() bool {
		p.publish(5)
		c.flushed(0)
		for _, n := range c.nodes {
			if n == late {
				continue
			}
			sh, _ := n.host.Shard(0)
			_ = sh.snapshot() // nothing new is no matter
			if _, first := n.entries(0); first <= last+1 {
				return false
			}
		}
		return true
	})
	c.openGap(p, s, url, 12)
	for _, n := range c.nodes {
		if n == late {
			continue
		}
		sh, _ := n.host.Shard(0)
		if err := sh.snapshot(); err != nil {
			t.Fatal(err)
		}
	}
	late.start()
	late.hold()
	eventually(t, "it has the gap", func() bool {
		sh, ok := late.host.Shard(0)
		if !ok { // it is being opened again after the installation
			return false
		}
		sh.fsm.mu.Lock()
		defer sh.fsm.mu.Unlock()
		return sh.fsm.pending.watermarks.Gap.Open() && sh.fsm.pending.gapRows > 0
	})
	eventually(t, "it leads", func() bool {
		if n := c.leader(0); n != nil && n != late {
			if sh, ok := n.host.Shard(0); ok {
				_ = sh.HandOver(late.peer) // tried again
			}
		}
		return c.leader(0) == late
	})
	p.publish(2)
	c.drained(p, url)
}

// TestReportsOfAGapAddUp: whatever the database does, and in whichever order and
// how often the log hears of it, a replica counts each row and message once, and
// never more than is stored.
func TestReportsOfAGapAddUp(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := pending{retain: true}
		index := uint64(0)
		var blocks []*pendingBlock
		var has telemetry.Watermarks // the database
		reports := []telemetry.Watermarks{has}
		upTo := func(from, to uint64) uint64 { return rapid.Uint64Range(from, to).Draw(rt, "to") }
		messages := uint64(0)
		actions := map[string]func(*rapid.T){
			"block": func(*rapid.T) {
				index += upTo(1, 3)
				late := uint32(upTo(0, 2)) // each with a row
				b := &pendingBlock{index: index, messages: [2]uint32{uint32(upTo(0, 9)), late}, rows: [2]uint32{uint32(upTo(0, 40)), late}}
				blocks = append(blocks, b)
				p.add(b)
			},
			"live": func(rt *rapid.T) {
				from := has.To[0]
				if from == index {
					return
				}
				has.To[0] = upTo(from+1, index)
				if end := upTo(from, has.To[0]-1); !has.Gap.Open() && end > from {
					has.Gap = telemetry.Gap{From: from, To: end}
				}
			},
			"late": func(*rapid.T) { has.To[1] = upTo(has.To[1], index) },
			"backlog": func(*rapid.T) {
				if has.Gap.Open() {
					if has.Gap.From = upTo(has.Gap.From+1, has.Gap.To); !has.Gap.Open() {
						has.Gap = telemetry.Gap{}
					}
				}
			},
			"report": func(rt *rapid.T) {
				reports = append(reports, has)
				r := reports[upTo(uint64(max(0, len(reports)-4)), uint64(len(reports)-1))]
				for lane := range telemetry.Lane(telemetry.Lanes) {
					entry := flushedEntry(lane, r.To[lane], telemetry.Gap{})
					if lane == telemetry.LaneLive {
						entry = flushedEntry(lane, r.To[lane], r.Gap)
					}
					body, err := controlBody(entry)
					if err != nil {
						rt.Fatal(err)
					}
					l, to, gap, err := decodeFlushed(body)
					if err != nil {
						rt.Fatal(err)
					}
					n, err := p.flushed(l, to, gap)
					if err != nil {
						rt.Fatal(err)
					}
					messages += n
				}
			},
			"restart": func(rt *rapid.T) {
				head := p.head()
				q := pending{retain: true}
				if err := q.decode(wire.NewReader(head.append(nil))); err != nil {
					rt.Fatal(err)
				}
				for b := range p.between(p.durable, 1<<62).all() {
					if err := q.restoreBlock(b); err != nil {
						rt.Fatal(err)
					}
				}
				p = q
			},
			"": func(rt *rapid.T) {
				if err := agree(&p, blocks, has, messages); err != nil {
					rt.Fatal(err)
				}
			},
		}
		rt.Repeat(actions)
	})
}

// agree holds what a replica counts against the blocks and the database.
func agree(p *pending, blocks []*pendingBlock, has telemetry.Watermarks, messages uint64) error {
	var rows [telemetry.Lanes]uint64
	var gapRows, counted uint64
	stored := true
	for _, b := range blocks {
		for lane := range telemetry.Lane(telemetry.Lanes) {
			known := p.watermarks.Has(lane, b.index)
			switch {
			case known && !has.Has(lane, b.index):
				return fmt.Errorf("block %d counts as stored (%+v), the database has %+v", b.index, p.watermarks, has)
			case known:
				counted += uint64(b.messages[lane])
			case b.index > p.watermarks.To[lane]:
				rows[lane] += uint64(b.rows[lane])
			default:
				gapRows += uint64(b.rows[lane])
			}
			stored = stored && (known || b.rows[lane] == 0 && lane == telemetry.LaneLate)
		}
		if b.index <= p.durable && !stored {
			return fmt.Errorf("block %d is let go of (%d), but not stored: %+v", b.index, p.durable, p.watermarks)
		}
	}
	if rows != p.rows || gapRows != p.gapRows || counted != messages {
		return fmt.Errorf("%v and %d rows wait, %d messages are stored; counted were %v, %d and %d", rows, gapRows, counted, p.rows, p.gapRows, messages)
	}
	return nil
}

// TestAPartOfAGapSaysNothingOfTheNextOne: a backlog lane writes the last part of a
// gap, and before it says so in the log another lane sees the gap closed, and leaves
// one behind it.
func TestAPartOfAGapSaysNothingOfTheNextOne(t *testing.T) {
	p := pending{retain: true}
	report := func(w telemetry.Watermarks) {
		t.Helper()
		if _, err := p.flushed(telemetry.LaneLive, w.To[telemetry.LaneLive], w.Gap); err != nil {
			t.Fatal(err)
		}
	}
	live := func(to uint64, gap telemetry.Gap) (w telemetry.Watermarks) {
		w.To[telemetry.LaneLive], w.Gap = to, gap
		return w
	}
	report(live(50, telemetry.Gap{From: 10, To: 40}))
	part := span{from: 10, to: 40, gapEnd: 40, live: 50}
	report(live(50, telemetry.Gap{}))
	next := telemetry.Gap{From: 50, To: 80}
	report(live(90, next))
	report(part.drained())
	if p.watermarks != live(90, next) || p.durable != 50 {
		t.Errorf("stored as the log knows: %+v, and for good up to %d; want a gap of %v and 50", p.watermarks, p.durable, next)
	}
}

// TestWhoeverShowsTheLiveEdgeShowsTheGapBehindIt: a database is read that has got,
// since the pending part was looked at, a live edge and a gap behind it.
func TestWhoeverShowsTheLiveEdgeShowsTheGapBehindIt(t *testing.T) {
	c, s, url := gapCluster(t, 1, 0)
	n, p := c.nodes[0], c.publisher(0)
	p.publish(3)
	c.flushed(p.id)
	replica, ok := n.host.Shard(p.id)
	if !ok {
		t.Fatal("no replica")
	}
	f := replica.flush
	before := f.unflushed()
	c.openGap(p, s, url, 20)
	defer n.letGo()
	have, err := f.stores.Shared.Watermarks(t.Context(), p.id)
	if err != nil || !have.Gap.Open() || have.To[telemetry.LaneLive] <= before.applied {
		t.Fatalf("the database has %+v, %v; want a gap behind %d", have, err, before.applied)
	}
	var blocks blockRange
	blocks, ok = f.behind(before, have)
	if !ok {
		t.Fatal("nothing has drained the gap, and its blocks are not pending")
	}
	missed := 0
	for b := range blocks.all() {
		if have.Gap.Holds(b.index) {
			missed++
		}
	}
	if missed == 0 {
		t.Error("the blocks of the gap are not among those that the database lacks")
	}
}
