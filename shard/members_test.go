package shard

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/serverid"
)

func TestStepsKeepTheQuorumAndGoOneAtATime(t *testing.T) {
	// x and y are evicted; the second incarnation of C, and all before, are gone.
	gone := func(want []string) func(raft.ServerID) bool {
		return func(id raft.ServerID) bool {
			return (id == "x" || id == "y") && !slices.Contains(want, string(id)) || serverid.Peer(id) == "C" && serverid.Incarnation(id) < 3
		}
	}
	group := func(voters string, nonvoters string) (out []raft.Server) {
		for _, p := range strings.Fields(voters) {
			out = append(out, raft.Server{ID: raft.ServerID(p), Suffrage: raft.Voter})
		}
		for _, p := range strings.Fields(nonvoters) {
			out = append(out, raft.Server{ID: raft.ServerID(p), Suffrage: raft.Nonvoter})
		}
		return out
	}
	for _, c := range []struct {
		what    string
		servers []raft.Server
		want    []string
		steps   []step
	}{
		{"nothing to do", group("a b c", ""), []string{"a", "b", "c"}, []step{{"settled", "a"}}},
		{"an evicted one goes first", group("a b x", ""), []string{"a", "b", "c"}, []step{{"remove", "x"}}},
		{"then its successor comes", group("a b", ""), []string{"a", "b", "c"}, []step{{"add", "c"}}},
		{"and votes when it is ready", group("a b", "c"), []string{"a", "b", "c"}, []step{{"promote", "c"}}},
		{"one that leaves stays until the other votes", group("a b c", "d"), []string{"a", "b", "d"}, []step{{"promote", "d"}}},
		{"then it goes", group("a b c d", ""), []string{"a", "b", "d"}, []step{{"remove", "c"}}},
		{"the leader hands over before it goes", group("a b c d", ""), []string{"b", "c", "d"}, []step{{"resign", "a"}}},
		{"a move that was given up", group("a b c", "d"), []string{"a", "b", "c"}, []step{{"remove", "d"}}},
		{"two are built side by side", group("a", "b"), []string{"a", "b", "c"}, []step{{"promote", "b"}, {"add", "c"}}},
		{"a nonvoter of an evicted node goes too", group("a b c", "y"), []string{"a", "b", "c"}, []step{{"remove", "y"}}},
		{"no table, no change", group("a b c", ""), nil, nil},
		{"a damaged one goes first", group("a b C", ""), []string{"a", "b", "C"}, []step{{"remove", "C"}}},
		{"a damaged one that had begun anew too", group("a b", "C~2"), []string{"a", "b", "C"}, []step{{"remove", "C~2"}}},
		{"then it comes as what it says", group("a b", ""), []string{"a", "b", "C"}, []step{{"add", "C"}}},
		{"and votes as that", group("a b", "C~3"), []string{"a", "b", "C"}, []step{{"promote", "C~3"}}},
		{"and is what it should be", group("a b C~3", ""), []string{"a", "b", "C"}, []step{{"settled", "a"}}},
		{"one that leaves does so as what it is", group("a b C~3 d", ""), []string{"a", "b", "d"}, []step{{"remove", "C~3"}}},
	} {
		if got := steps(c.servers, c.want, "a", gone(c.want)); !slices.Equal(got, c.steps) {
			t.Errorf("%s: %v, want %v", c.what, got, c.steps)
		}
	}
}

// voters waits until every running node of the group agrees on its voters.
func (c *testCluster) voters(want ...string) {
	c.t.Helper()
	slices.Sort(want)
	eventually(c.t, "the voters are as they should be", func() bool {
		for _, n := range c.nodes {
			if n.mux == nil || !slices.Contains(want, n.peer) {
				continue
			}
			for s := range c.shards {
				sh, ok := n.host.Shard(ShardOfGroup(s + 1))
				if !ok {
					return false
				}
				got := sh.voters()
				if slices.Sort(got); !slices.Equal(got, want) {
					return false
				}
			}
		}
		return true
	})
}

func TestWipedNodeIsBuiltAnewAndHoldsEverything(t *testing.T) {
	c := newTestCluster(t, 3, 3)
	p := c.publisher(0)
	p.publish(30)
	victim := c.nodes[1]
	victim.kill()
	p.publish(5)
	old := victim.wipe("0000beef")
	c.evict(old)
	victim.start()
	c.place(nil, nil)
	c.voters(c.peers()...)
	p.publish(5)
	for _, n := range c.nodes {
		p.check(n)
	}
	c.sameDigests(0)
	eventually(t, "its store is complete", func() bool { return len(victim.files.Missing(0, victim.host.Stored()[0])) == 0 })
}

// lag leaves three replicas dead, with entries that the leader a and b have and the
// third lacks.
func (c *testCluster) lag(p *publisher) (a, b, lagging *testNode) {
	c.t.Helper()
	eventually(c.t, "somebody leads", func() bool { a = c.leader(p.id); return a != nil })
	rest := slices.DeleteFunc(slices.Clone(c.nodes), func(n *testNode) bool { return n == a })
	b, lagging = rest[0], rest[1]
	lagging.kill()
	p.publish(5)
	b.kill()
	a.kill()
	return a, b, lagging
}

// TestWipedReplicaElectsNobodyWhoLacksAnEntry: an entry is on A and B, C lags, B
// is wiped, A dies. C must not lead with B's help, whatever B calls itself.
func TestWipedReplicaElectsNobodyWhoLacksAnEntry(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	p.publish(3)
	a, b, lagging := c.lag(p)
	old := b.wipe("0000beef")
	lagging.start()
	b.start() // nobody evicts the old one: that takes a quorum which is not there
	for _, n := range []*testNode{lagging, b} {
		n.host.stand(n.host.all()[0])
	}
	// Twice raft's election timeout, and all that stands at once.
	for end := time.Now().Add(2*heartbeatTimeout + standAfter); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if l := c.leader(0); l != nil {
			t.Fatalf("%s leads without the entry", l.peer)
		}
	}
	if s, _ := b.host.Shard(0); b.host.all()[0].votes() || s.raft.LastIndex() != 0 {
		t.Fatalf("the wiped replica votes, its log ends at %d", s.raft.LastIndex())
	}
	a.start()
	c.evict(old)
	c.place(nil, nil)
	c.voters(c.peers()...)
	for _, n := range c.nodes {
		p.check(n)
	}
	c.sameDigests(0)
}

func TestShardMovesToAnotherNodeAndBack(t *testing.T) {
	c := newTestCluster(t, 3, 2)
	n3 := &testNode{c: c, peer: "n3.00000004", dir: t.TempDir(), gate: newGate()}
	all := append(c.peers(), n3.peer)
	ps := []*publisher{c.publisher(0), c.publisher(1)}
	for _, p := range ps {
		p.publish(20)
	}
	c.mu.Lock()
	c.want = all[:3]
	c.mu.Unlock()
	c.nodes = append(c.nodes, n3)
	n3.start()
	for round, leaver := range []*testNode{c.nodes[0], n3} {
		want := slices.DeleteFunc(slices.Clone(all), func(p string) bool { return p == leaver.peer })
		c.place(want, []string{leaver.peer})
		c.voters(want...)
		for _, p := range ps {
			p.publish(3)
		}
		eventually(t, "the move is reported", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.settled > 0
		})
		c.place(want, nil)
		if got := leaver.host.all(); len(got) != 0 || len(leaver.files.Shards()) != 0 {
			t.Fatalf("round %d: %d replicas and rows of %v are left on %s", round, len(got), leaver.files.Shards(), leaver.peer)
		}
		if term, err := leaver.log.Group(GroupOf(0)).GetUint64(keyTerm); err != nil || term == 0 {
			t.Errorf("%s has forgotten its term: %d, %v", leaver.peer, term, err)
		}
		for _, p := range ps {
			p.publish(3)
			p.check(leaver)
		}
		c.mu.Lock()
		c.settled = 0
		c.mu.Unlock()
	}
}

func TestReplicaWithADamagedSnapshotIsRebuiltFromItsPeers(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	p.publish(40)
	victim := c.nodes[1]
	victim.cutLog(p)
	victim.kill()
	rotSnapshots(t, victim.dir, "state.bin")
	victim.start()
	if _, ok := victim.host.Shard(0); ok || len(victim.host.Damaged()) != 1 {
		t.Fatalf("the damaged replica runs: %v, reported %v", ok, victim.host.Damaged())
	}
	p.publish(3)
	eventually(t, "it is rebuilt", func() bool { _, ok := victim.host.Shard(0); return ok && len(victim.host.Damaged()) == 0 })
	c.voters(c.peers()...)
	p.publish(3)
	p.check(victim)
	c.sameDigests(0)
	if aside, err := filepath.Glob(filepath.Join(victim.dir, "shards", "*.damaged-*")); err != nil || len(aside) != 1 {
		t.Errorf("set aside: %v, %v", aside, err)
	}
	if got := victim.incarnation(0); got != 2 {
		t.Errorf("it is incarnation %d", got)
	}
	// Nothing of that is forgotten, and a second time is like the first.
	victim.cutLog(p)
	victim.kill()
	victim.start()
	c.voters(c.peers()...)
	if got := victim.incarnation(0); got != 2 {
		t.Errorf("after a restart it is incarnation %d", got)
	}
	victim.kill()
	rotSnapshots(t, victim.dir, "state.bin")
	victim.start()
	eventually(t, "it is rebuilt again", func() bool { return victim.incarnation(0) == 3 })
	c.voters(c.peers()...)
	p.publish(3)
	p.check(victim)
	c.sameDigests(0)
}

func TestUnfinishedSnapshotIsNoDamageWhileTheLogReachesBack(t *testing.T) {
	const id = "2-40-1700000000000"
	for _, c := range []struct {
		what        string
		first, last uint64 // of the log
		sum         string // content of the file that finishes a snapshot; "" is none
		damaged     bool
	}{
		{"unfinished, the whole log", 1, 50, "", false},
		{"unfinished, being installed over a short log", 1, 20, "", false},
		{"unfinished, the first one of a new replica", 0, 0, "", false},
		{"unfinished, but the log begins behind it", 31, 50, "", true},
		{"rotten, the whole log", 1, 50, "x", false},
		{"rotten, and the log ends before it", 1, 20, "x", true},
		{"rotten, and the log begins behind it", 41, 50, "x", true},
		{"rotten, without a log", 0, 0, "x", true},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "snapshots", id)
		if err := os.MkdirAll(path, 0o750); err != nil {
			t.Fatal(err)
		}
		if c.sum != "" {
			if err := os.WriteFile(filepath.Join(path, "meta.sum"), []byte(c.sum), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		log := raft.NewInmemStore()
		for i := c.first; i <= c.last && c.first > 0; i++ {
			if err := log.StoreLog(&raft.Log{Index: i, Term: 1}); err != nil {
				t.Fatal(err)
			}
		}
		spared := false
		name, err := CheckSnapshots(quiet(), dir, log, func(string, error) { spared = true })
		if spared != (c.sum != "" && !c.damaged) {
			t.Errorf("%s: told that it is damaged and not needed: %v", c.what, spared)
		}
		if damaged := name == id && err != nil; damaged != c.damaged || name == "" && err != nil {
			t.Errorf("%s: damaged %q, %v, want %v", c.what, name, err, c.damaged)
		}
		if _, err := os.Stat(path); (err == nil) != c.damaged {
			t.Errorf("%s: its directory: %v", c.what, err)
		}
	}
}

// TestRetirementCutShortIsFinishedBeforeTheReplicaIsOpened: a crash behind the
// first of its steps leaves the record, and the next start does the rest.
func TestRetirementCutShortIsFinishedBeforeTheReplicaIsOpened(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	p.publish(5)
	n := c.nodes[2]
	term, err := n.log.Group(GroupOf(0)).GetUint64(keyTerm)
	if err != nil || term == 0 {
		t.Fatalf("term %d, %v", term, err)
	}
	if err := n.host.beginRetirement(0, n.log.Group(GroupOf(0)), retirement{Rows: true}); err != nil {
		t.Fatal(err)
	}
	n.kill()
	c.mu.Lock()
	c.want = []string{c.nodes[0].peer, c.nodes[1].peer} // the group goes on without it
	c.mu.Unlock()
	n.start()
	if got := n.host.all(); len(got) != 0 {
		t.Fatalf("%d replicas are open although the table has none here", len(got))
	}
	c.place([]string{c.nodes[0].peer, c.nodes[1].peer}, nil)
	c.voters(c.nodes[0].peer, c.nodes[1].peer)
	c.place(nil, nil) // and it comes back
	s, ok := n.host.Shard(0)
	if !ok {
		t.Fatal("it is not open again")
	}
	if got, err := n.log.Group(GroupOf(0)).GetUint64(keyTerm); err != nil || got < term {
		t.Errorf("it has forgotten its term: %d after %d, %v", got, term, err)
	}
	if _, err := os.Stat(n.host.retirementFile(0)); err == nil {
		t.Error("the record of the retirement is still there")
	}
	c.voters(c.peers()...)
	p.publish(3)
	p.check(n)
	if s.raft.LastIndex() == 0 {
		t.Error("its log is empty")
	}
	c.sameDigests(0)
}
