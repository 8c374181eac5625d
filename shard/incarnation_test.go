package shard

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/serverid"
	"github.com/sluice-iot/sluice/telemetry"
)

// nobodyLeads watches for twice raft's election timeout, and all that stands at
// once.
func (c *testCluster) nobodyLeads(id telemetry.ShardID) {
	c.t.Helper()
	for end := time.Now().Add(2*heartbeatTimeout + standAfter); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if l := c.leader(id); l != nil {
			c.t.Fatalf("%s leads without what was acknowledged", l.peer)
		}
	}
}

// incarnation of a shard's replica on a node; 0 when none is open.
func (n *testNode) incarnation(id telemetry.ShardID) uint32 {
	if s, ok := n.host.Shard(id); ok {
		return serverid.Incarnation(s.server)
	}
	return 0
}

// cutLog publishes until the log of a node no longer reaches behind its snapshots.
func (n *testNode) cutLog(p *publisher) {
	n.c.t.Helper()
	eventually(n.c.t, "the log of "+n.peer+" begins behind its first entry", func() bool {
		p.publish(1)
		first, err := n.log.Group(GroupOf(p.id)).FirstIndex()
		return err == nil && first > 1
	})
}

// TestRottenReplicaElectsNobodyWhoLacksAnEntry: an entry is on A and B, C lags, the
// snapshots of B rot, A dies. C must not lead with B's help; nor may B let go of its
// log, which may be the last one that has the entry.
func TestRottenReplicaElectsNobodyWhoLacksAnEntry(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	p.publish(40)
	for _, n := range c.nodes {
		n.cutLog(p)
	}
	a, b, lagging := c.lag(p)
	rotSnapshots(t, b.dir, "state.bin")
	lagging.start()
	b.start()
	if len(b.host.Damaged()) != 1 {
		t.Fatalf("damaged: %v", b.host.Damaged())
	}
	lagging.host.stand(lagging.host.all()[0])
	c.nobodyLeads(0)
	if last, err := b.log.Group(GroupOf(0)).LastIndex(); err != nil || last == 0 || len(b.host.Damaged()) != 1 {
		t.Fatalf("the log of the damaged replica ends at %d, %v, damaged %v", last, err, b.host.Damaged())
	}
	a.start()
	c.voters(c.peers()...)
	if got := b.incarnation(0); got != 2 {
		t.Errorf("it is incarnation %d", got)
	}
	for _, n := range c.nodes {
		p.check(n)
	}
	c.sameDigests(0)
}

// TestThirdOfFiveWhoHeardOfNoRebuildIsNotElected: C has fallen behind, D and E have
// begun anew one after the other, and A and B, who know of it, are down. C asks D
// and E for their votes, under the ids that it knows. If they were still the servers
// of these ids they would give them, with their empty logs, and what A and B have
// would be lost; the second half shows that.
func TestThirdOfFiveWhoHeardOfNoRebuildIsNotElected(t *testing.T) {
	for _, same := range []bool{false, true} {
		t.Run(map[bool]string{false: "other servers", true: "the same servers"}[same], func(t *testing.T) {
			c := newTestCluster(t, 5, 1)
			p := c.publisher(0)
			p.publish(3)
			var a *testNode
			eventually(t, "somebody leads", func() bool { a = c.leader(0); return a != nil })
			rest := slices.DeleteFunc(slices.Clone(c.nodes), func(n *testNode) bool { return n == a })
			b, lagging, emptied := rest[0], rest[1], rest[2:]
			lagging.kill()
			p.publish(5)
			for _, n := range emptied { // what follows on a start is what a rebuild does
				log := n.log.Group(GroupOf(0))
				if err := n.host.beginRetirement(0, log, retirement{Aside: "damaged"}); err != nil {
					t.Fatal(err)
				}
				n.kill()
			}
			a.kill()
			b.kill()
			lagging.start()
			for _, n := range emptied {
				if same {
					n.pretendFirst(t)
				}
				n.start()
				if s, ok := n.host.Shard(0); !ok || s.raft.LastIndex() != 0 {
					t.Fatalf("%s has not begun anew: %v", n.peer, ok)
				}
			}
			lagging.host.stand(lagging.host.all()[0])
			if same {
				eventually(t, "the one that lags is elected", func() bool { return c.leader(0) == lagging })
				return
			}
			c.nobodyLeads(0)
			a.start()
			b.start()
			c.voters(c.peers()...)
			for _, n := range c.nodes {
				p.check(n)
			}
			for _, n := range emptied {
				if got := n.incarnation(0); got != 2 {
					t.Errorf("%s is incarnation %d", n.peer, got)
				}
			}
			c.sameDigests(0)
		})
	}
}

// pretendFirst makes a replica that is about to begin anew the server again that it
// was.
func (n *testNode) pretendFirst(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(n.host.retirementFile(0))
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.Replace(b, []byte(`"incarnation":2`), []byte(`"incarnation":1`), 1)
	if bytes.Equal(b, first) {
		t.Fatalf("no second incarnation in %s", b)
	}
	if err := os.WriteFile(n.host.retirementFile(0), first, 0o600); err != nil {
		t.Fatal(err)
	}
}

// memoryLog is a log whose operations fail from the one numbered failAt on.
type memoryLog struct {
	*raft.InmemStore
	failAt, ops int
}

var errInjected = errors.New("injected")

func (l *memoryLog) op() error {
	if l.ops++; l.failAt > 0 && l.ops >= l.failAt {
		return errInjected
	}
	return nil
}

func (l *memoryLog) SetFloor(uint64)         {}
func (l *memoryLog) BytesSince(uint64) int64 { return 0 }

func (l *memoryLog) Set(key, value []byte) error {
	return errors.Join(l.op(), l.InmemStore.Set(key, value))
}

func (l *memoryLog) SetUint64(key []byte, value uint64) error {
	if err := l.op(); err != nil {
		return err
	}
	return l.InmemStore.SetUint64(key, value)
}

func (l *memoryLog) Remove() error {
	if err := l.op(); err != nil {
		return err
	}
	l.InmemStore = raft.NewInmemStore()
	return nil
}

// TestReplicaThatBeginsAnewKeepsItsVoteWhereverItStops: at every operation of the log.
func TestReplicaThatBeginsAnewKeepsItsVoteWhereverItStops(t *testing.T) {
	for failAt := 1; ; failAt++ {
		log := &memoryLog{InmemStore: raft.NewInmemStore()}
		h := &Host{logger: slog.New(slog.DiscardHandler), cfg: HostConfig{Dir: t.TempDir()}, deps: Deps{Log: func(uint32) Log { return log }}}
		must := func(err error) {
			if err != nil {
				t.Helper()
				t.Fatalf("failing at %d: %v", failAt, err)
			}
		}
		must(os.MkdirAll(h.dir(0), 0o750))
		must(errors.Join(log.SetUint64(keyTerm, 7), log.SetUint64(keyVoteTerm, 6), log.Set(keyVote, []byte("n1")), log.SetUint64(keyIncarnation, 4)))
		must(log.StoreLog(&raft.Log{Index: 1, Term: 7}))
		log.ops, log.failAt = 0, failAt
		err := h.setAside(0)
		log.failAt = 0
		if failAt%2 == 0 { // asked again by the leader, or started again
			must(h.setAside(0))
		} else {
			must(h.finishRetirement(0, log))
		}
		incarnation, ierr := incarnationOf(log)
		term, terr := log.GetUint64(keyTerm)
		voteTerm, verr := log.GetUint64(keyVoteTerm)
		vote, gerr := log.Get(keyVote)
		must(errors.Join(ierr, terr, verr, gerr))
		last, lerr := log.LastIndex()
		must(lerr)
		if err != nil && incarnation != 5 || err == nil && incarnation < 5 || term != 7 || voteTerm != 6 || string(vote) != "n1" || last != 0 {
			t.Errorf("failing at %d: incarnation %d, term %d, vote %q in %d, the log ends at %d", failAt, incarnation, term, vote, voteTerm, last)
		}
		if aside, _ := filepath.Glob(h.dir(0) + ".damaged-*"); len(aside) != 1 {
			t.Errorf("failing at %d: set aside %v", failAt, aside)
		}
		if err == nil {
			return
		}
	}
}
