package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/devcluster"
)

// The clients keep the ledger and outlive the nodes; afterwards everything that
// was acknowledged must be stored, once, with its values, whichever node is
// asked.

const (
	survivors     = 24
	survivorPause = 5 * time.Millisecond
	settleMax     = 30 * time.Second
)

func TestKillOfAnyNodeLosesNothingAndStoresNothingTwice(t *testing.T) {
	for victim := range 3 {
		t.Run(fmt.Sprintf("n%d", victim), func(t *testing.T) {
			c := start(t)
			fleet, stop := publish(t, c)
			goesOn(t, fleet)
			n := c.Nodes()[victim]
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			goesOn(t, fleet)
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
			everybodyVotes(t, n)
			goesOn(t, fleet)
			stop()
			judge(t, c, fleet)
			ledgerAddsUp(t, c, fleet)
		})
	}
}

func TestKillOfAllNodesLosesNothing(t *testing.T) {
	c := start(t)
	fleet, stop := publish(t, c)
	goesOn(t, fleet)
	for _, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.Nodes() {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	goesOn(t, fleet)
	stop()
	judge(t, c, fleet)
}

// publish runs the fleet; stop ends it and waits for the last acks.
func publish(t *testing.T, c *devcluster.Cluster) (fleet []*bench.Survivor, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	addrs := mqttAddrs(c)
	var wg sync.WaitGroup
	for i := range survivors {
		s := &bench.Survivor{
			Addrs:  append(append([]string(nil), addrs[i%len(addrs):]...), addrs[:i%len(addrs)]...),
			Device: fmt.Sprintf("survivor-%d", i), Window: 32, Pause: survivorPause,
		}
		fleet = append(fleet, s)
		wg.Go(func() { s.Run(ctx, settleMax) })
	}
	stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(stop)
	return fleet, stop
}

// goesOnMax bounds an election, and clients that go elsewhere, on a busy machine.
const goesOnMax = 2 * time.Minute

// goesOn waits until every client has had something acknowledged that it sent from now
// on: more than what is in flight, and that for some time.
func goesOn(t *testing.T, fleet []*bench.Survivor) {
	t.Helper()
	enough := make([]int, len(fleet))
	for i, s := range fleet {
		enough[i] = s.Acked() + 3*s.Window
	}
	end := time.Now().Add(goesOnMax)
	for i, s := range fleet {
		for ; s.Acked() < enough[i]; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: nothing that is sent from now on is acknowledged within %v", s.Device, goesOnMax)
			}
		}
	}
}

func acked(fleet []*bench.Survivor) (n int) {
	for _, s := range fleet {
		n += s.Acked()
	}
	return n
}

func judge(t *testing.T, c *devcluster.Cluster, fleet []*bench.Survivor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var longest time.Duration
	for i, s := range fleet {
		if s.Acked() == 0 {
			t.Errorf("%s: nothing was acknowledged", s.Device)
		}
		longest = max(longest, s.LongestGap())
		stored, err := readings(ctx, c.Nodes()[i%len(c.Nodes())], s.Device)
		if err != nil {
			t.Errorf("read %s: %v", s.Device, err)
			continue
		}
		for _, err := range s.Judge(stored) {
			t.Error(err)
		}
	}
	t.Logf("%d acknowledged, longest time without an ack on a connection: %v", acked(fleet), longest)
}

// ledgerAddsUp compares the cluster's own books with the clients'.
func ledgerAddsUp(t *testing.T, c *devcluster.Cluster, fleet []*bench.Survivor) {
	t.Helper()
	cl, err := c.Nodes()[0].Client()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := cl.Ledger(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n := l.Totals
	if n.Received != n.Refused+n.Quarantined+n.Duplicate+n.Applied || n.Applied != n.Flushed+n.Pending {
		t.Errorf("ledger does not add up: %+v", n)
	}
	if got, want := n.Applied, uint64(acked(fleet)); got < want {
		t.Errorf("ledger has %d messages applied, the clients have %d acknowledged", got, want)
	}
}
