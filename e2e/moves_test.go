package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/devcluster"
)

// TestFourthNodeGetsItsShareAndGivesItBack adds a node under load, drains it,
// stops it and evicts it; nothing that was acknowledged is lost on the way.
func TestFourthNodeGetsItsShareAndGivesItBack(t *testing.T) {
	c := start(t)
	fleet, stop := publish(t, c)
	began := time.Now()
	n3, err := c.Add("d")
	if err != nil {
		t.Fatal(err)
	}
	first := c.Nodes()[0]
	// 24 shards with three replicas on four nodes: 18 each, within the bound of 1.05.
	placed(t, first, "the new node has its share", func(st *api.Status, holds map[string]int) bool {
		return holds[n3.ID] >= 17 && holds[n3.ID] <= 19 && len(st.Moves) == 0 && st.ZoneSafe
	})
	t.Logf("a quarter of the replicas moved under load in %v", time.Since(began))
	began = time.Now()
	succeeds(t, first, "drain", n3.ID)
	placed(t, first, "the drained node is empty", func(st *api.Status, holds map[string]int) bool {
		return holds[n3.ID] == 0 && len(st.Moves) == 0
	})
	t.Logf("and back in %v, ten seconds of grace among them", time.Since(began))
	fails(t, first, "is alive and has", "nodes", "evict", "n1")
	if err := n3.Terminate(); err != nil {
		t.Fatal(err)
	}
	succeeds(t, first, "nodes", "evict", n3.ID)
	placed(t, first, "the cluster has forgotten it", func(st *api.Status, _ map[string]int) bool {
		return len(st.Nodes) == 3 && len(st.Alarms) == 0
	})
	stop()
	judgeVia(t, first, fleet)
	ledgerAddsUp(t, c, fleet)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, n3.Cmd[0], n3.Cmd[1:]...).CombinedOutput()
	if err == nil || ctx.Err() != nil || !strings.Contains(string(out), "was evicted from the cluster") {
		t.Errorf("the evicted directory came back: %v (%v)\n%s", err, ctx.Err(), out)
	}
}

// movesMax bounds 18 moves, two at a time, on a busy machine.
const movesMax = 3 * time.Minute

// placed waits until the table, all voters and all leaders are as they should be.
func placed(t *testing.T, n *devcluster.Node, what string, ok func(st *api.Status, holds map[string]int) bool) {
	t.Helper()
	last := ""
	for end := time.Now().Add(movesMax); time.Now().Before(end); time.Sleep(250 * time.Millisecond) {
		st, err := status(t, n)
		if err != nil {
			last = err.Error()
			continue
		}
		holds, waiting := map[string]int{}, 0
		for _, sh := range st.Shards {
			for _, r := range sh.Replicas {
				holds[string(r.Node)]++
			}
			if sh.Leader == "" || slices.ContainsFunc(sh.Replicas, func(r api.Replica) bool { return r.Role == api.RoleNonvoter }) {
				waiting++
			}
		}
		if last = fmt.Sprintf("replicas %v, %d shards without leader or voters, moves %v, alarms %q", holds, waiting, st.Moves, st.Alarms); waiting == 0 && ok(&st, holds) {
			return
		}
	}
	t.Fatalf("not within %v: %s: %s", movesMax, what, last)
}
