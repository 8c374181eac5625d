package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/devcluster"
)

const (
	leakClients   = 200
	leakFailOvers = 5
	leakWithin    = 2 * time.Minute // until everything is given back
	// What a node may hold more than at first: files of its store that are kept
	// open, connections that are just being closed.
	leakGoroutines = 25
	leakFiles      = 25
)

func TestNodeGivesBackWhatClientsAndFailOversTook(t *testing.T) {
	c := start(t)
	n := c.Nodes()[0]
	resources := func() (goroutines, files, heap, rss float64) {
		return metric(t, n, "go_goroutines"), metric(t, n, "process_open_fds"), metric(t, n, "go_memstats_heap_inuse_bytes"), metric(t, n, "process_resident_memory_bytes")
	}
	goroutines, files, heap, rss := resources()
	t.Logf("before: %v goroutines, %v files, heap %.0f MiB, resident %.0f MiB", goroutines, files, heap/(1<<20), rss/(1<<20))

	var fleet []*bench.Survivor
	addrs := mqttAddrs(c)
	for i := range leakClients {
		fleet = append(fleet, &bench.Survivor{Addrs: []string{addrs[0], addrs[1+i%2]}, Device: fmt.Sprintf("leak-%d", i), Window: 4, Pause: 100 * time.Millisecond, Patience: soakPatience})
	}
	stop := runFleet(t, fleet)
	for i := range leakFailOvers {
		lose(t, c.Nodes()[1+i%2], fleet)
	}
	stop()
	g, f, _, _ := resources()
	t.Logf("at the end of the load: %v goroutines, %v files", g, f)
	for end := time.Now().Add(leakWithin); time.Now().Before(end); time.Sleep(time.Second) {
		if g, f, heap, rss = resources(); g <= goroutines+leakGoroutines && f <= files+leakFiles {
			break
		}
	}
	t.Logf("after: %v goroutines, %v files, heap %.0f MiB, resident %.0f MiB", g, f, heap/(1<<20), rss/(1<<20))
	if g > goroutines+leakGoroutines {
		t.Errorf("%v goroutines, %v before", g, goroutines)
	}
	if f > files+leakFiles {
		t.Errorf("%v files are open, %v before", f, files)
	}
}

// lose kills a node, lets every client connect anew, and brings the node back.
func lose(t *testing.T, n *devcluster.Node, fleet []*bench.Survivor) {
	t.Helper()
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, s := range fleet {
		s.Switch()
	}
	time.Sleep(time.Second)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), leadersMax)
	defer cancel()
	if err := n.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}
