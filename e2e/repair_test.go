package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/devcluster"
)

// A node that has lost or damaged its directory comes back by itself, as another
// incarnation, and is a voter of all its shards again; meanwhile it neither votes
// nor leads, and nothing that was acknowledged is lost.

// repairMax bounds a repair of 24 small shards, two at a time, on a busy machine.
const repairMax = 4 * time.Minute

func TestNodeWithADeletedDirectoryIsRebuiltUnderLoad(t *testing.T) {
	c := start(t)
	fleet, stop := publish(t, c)
	flushes(t, c) // rows are in the store, not only in the log
	victim := c.Nodes()[1]
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(victim.Data); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	everybodyVotes(t, victim)
	t.Logf("rebuilt under load in %v", time.Since(began))
	stop()
	judge(t, c, fleet)
	ledgerAddsUp(t, c, fleet)

	// With another node dead, whatever is acknowledged or read needs the rebuilt one.
	other := c.Nodes()[0]
	if err := other.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, n := range c.Nodes()[1:] {
		if err := n.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		for _, s := range fleet {
			stored, err := readings(ctx, n, s.Device)
			if err != nil {
				t.Fatalf("read %s through %s: %v", s.Device, n.ID, err)
			}
			for _, err := range s.Judge(stored) {
				t.Errorf("through %s: %v", n.ID, err)
			}
		}
		if got := metric(t, n, "sluice_shard_digest_mismatches_total"); got != 0 {
			t.Errorf("%s: rows of %v ranges differ from the leader's", n.ID, got)
		}
	}
}

func TestNodeWithADamagedLogIsRebuiltAndNeverLeadsMeanwhile(t *testing.T) {
	c := start(t)
	fleet, stop := publish(t, c)
	flushes(t, c)
	victim := c.Nodes()[2]
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	old := peerOf(t, victim)
	damageLog(t, victim)
	said := len(logOf(t, victim))
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	everybodyVotes(t, victim)
	stop()
	judge(t, c, fleet)
	ledgerAddsUp(t, c, fleet)
	if now := peerOf(t, victim); now == old {
		t.Errorf("it is still incarnation %s", now)
	}
	aside, err := filepath.Glob(filepath.Join(victim.Data, "damaged-*", "wal", "*.wal"))
	if err != nil || len(aside) == 0 {
		t.Errorf("the damaged log was not kept: %v, %v", aside, err)
	}
	log := logOf(t, victim)[said:]
	wants(t, "log of the damaged node", log, "is damaged at byte", "data directory set aside")
	before, _, _ := strings.Cut(log, "data directory set aside")
	if strings.Contains(before, "leading shard") {
		t.Errorf("it led under its old name:\n%s", before)
	}
	reported(t, "log", "is damaged at byte", victim, c.Nodes()[0])
}

func TestNodeWhoseLogIsGoneIsRebuilt(t *testing.T) {
	c := start(t)
	post(t, c.Nodes()[0], `{"device_id":"d","sensors":{"temperature":1}}`)
	n := c.Nodes()[0]
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(n.Data, "wal")); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if counts := post(t, c.Nodes()[1], `{"device_id":"d","sensors":{"temperature":2}}`); counts.Applied != 1 {
		t.Errorf("the other two: %+v, want the publish applied", counts)
	}
	everybodyVotes(t, n)
}

// TestOnlyNodeWithADamagedLogWaitsAndKeepsEverything: nobody is left to rebuild
// it from, so it must not begin anew.
func TestOnlyNodeWithADamagedLogWaitsAndKeepsEverything(t *testing.T) {
	c := start(t, func(o *devcluster.Options) { o.Nodes, o.Shards = 1, 4 })
	n := c.Nodes()[0]
	for i := range 300 {
		post(t, n, fmt.Sprintf(`{"device_id":"d%d","sensors":{"temperature":%d}}`, i%7, i))
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	damageLog(t, n)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says that it waits", func() bool {
		cl, err := n.Client()
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		st, err := cl.Status(t.Context())
		return err == nil && strings.Contains(strings.Join(st.Alarms, " "), "waits to be part of the cluster")
	})
	aside, err := filepath.Glob(filepath.Join(n.Data, "damaged-*", "wal", "*.wal"))
	if err != nil || len(aside) == 0 {
		t.Errorf("the damaged log was not kept: %v, %v", aside, err)
	}
}

// eventuallyMax is for a machine that is many times slower than it takes.
const eventuallyMax = 3 * time.Minute

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(eventuallyMax); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", eventuallyMax, what)
		}
	}
}

// everybodyVotes waits until a node that was just started is part of the cluster
// and, as it sees it, every shard has a leader and three voters.
func everybodyVotes(t *testing.T, n *devcluster.Node) { allVote(t, n, 3) }

func allVote(t *testing.T, n *devcluster.Node, replicas int) {
	t.Helper()
	last := ""
	for end := time.Now().Add(repairMax); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		st, err := status(t, n) // it knows no shards before it is part of the cluster again
		if err != nil {
			last = err.Error()
			continue
		}
		waiting := 0
		for _, sh := range st.Shards {
			ok := sh.Leader != "" && len(sh.Replicas) == replicas
			for _, r := range sh.Replicas {
				ok = ok && (r.Role == api.RoleLeader || r.Role == api.RoleVoter)
			}
			if !ok {
				waiting++
			}
		}
		if last = fmt.Sprintf("%d shards lack voters, alarms %q", waiting, st.Alarms); waiting == 0 && len(st.Alarms) == 0 {
			return
		}
	}
	t.Fatalf("%s is not rebuilt within %v: %s", n.ID, repairMax, last)
}

// status asks the first of the nodes that answers for a cluster.
func status(t *testing.T, nodes ...*devcluster.Node) (st api.Status, err error) {
	t.Helper()
	for _, n := range nodes {
		cl, cerr := n.Client()
		if cerr != nil {
			t.Fatal(cerr)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		st, err = cl.Status(ctx)
		cancel()
		cl.Close()
		if err == nil && len(st.Shards) > 0 {
			return st, nil
		}
		if err == nil {
			err = fmt.Errorf("%s knows no shards: %q", n.ID, st.Alarms)
		}
	}
	return st, err
}

// logOf is what the processes of a node have said.
func logOf(t *testing.T, n *devcluster.Node) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Clean(n.Data) + ".log")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// peerOf reads which incarnation a directory belongs to.
func peerOf(t *testing.T, n *devcluster.Node) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.Data, "node.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), `"incarnation": "`)
	inc, _, ok2 := strings.Cut(rest, `"`)
	if !ok || !ok2 {
		t.Fatalf("no incarnation in %s", b)
	}
	return inc
}

// damageLog flips bits early in the log of a node: far from its end, so that it
// is no torn write.
func damageLog(t *testing.T, n *devcluster.Node) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(n.Data, "wal", "*.wal"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("log segments %v, %v", segments, err)
	}
	slices.Sort(segments)
	flip(t, segments[0], 20_000) // some hundred entries behind the segment's checkpoint; eight bytes, since seven may be the padding of a record
}
