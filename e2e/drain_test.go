package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
)

// TestDrainThatIsEndedLetsTheNodeServeAgain in the same process, with leaderships,
// and under load.
func TestDrainThatIsEndedLetsTheNodeServeAgain(t *testing.T) {
	c := start(t)
	fleet, stop := publish(t, c)
	first, drained := c.Nodes()[0], c.Nodes()[1]
	began := metric(t, drained, "process_start_time_seconds")
	for range 2 { // it can be done again
		succeeds(t, first, "drain", drained.ID)
		eventually(t, "the node is drained", func() bool {
			st, err := status(t, first)
			return err == nil && leads(st.Shards, drained.ID) == 0 && clientOf(t, drained).Ready(t.Context()) != nil
		})
		succeeds(t, first, "drain", drained.ID, "--cancel")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := drained.WaitReady(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tryMQTT(t, drained, mqttOptions{id: "back"}); err != nil {
			t.Fatalf("the node takes no clients: %v", err)
		}
		eventually(t, "it leads shards again", func() bool {
			st, err := status(t, first)
			return err == nil && leads(st.Shards, drained.ID) > 0
		})
	}
	if now := metric(t, drained, "process_start_time_seconds"); now != began {
		t.Errorf("the process was started at %v, and now at %v", began, now)
	}
	succeeds(t, first, "drain", first.ID, "--cancel") // of a node that does not drain: nothing
	fails(t, first, "n9", "drain", "n9", "--cancel")
	stop()
	everybodyVotes(t, drained)
	judge(t, c, fleet)
	ledgerAddsUp(t, c, fleet)
}

// leads counts the shards that a node leads.
func leads(shards []api.Shard, node string) (n int) {
	for i := range shards {
		if string(shards[i].Leader) == node {
			n++
		}
	}
	return n
}
