package devcluster

import (
	"runtime"
	"testing"
)

// Nobody listens on the ports of a cluster whose nodes are down: another one is not
// given them all the same.
func TestPortsAreGivenOutOnce(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("ports are held on Linux alone")
	}
	given := map[int]bool{}
	for range blocksHeld / 2 {
		first, err := FreePorts(blockPorts + 1)
		if err != nil {
			t.Fatal(err)
		}
		for p := first; p <= first+blockPorts; p++ {
			if given[p] {
				t.Fatalf("port %d is given out a second time", p)
			}
			given[p] = true
		}
	}
	held.Lock()
	n := len(held.blocks)
	held.Unlock()
	for range blocksHeld {
		if _, err := FreePorts(1); err != nil {
			t.Fatal(err)
		}
	}
	held.Lock()
	defer held.Unlock()
	if n != blocksHeld || len(held.blocks) != blocksHeld {
		t.Errorf("%d, then %d blocks are held, want %d", n, len(held.blocks), blocksHeld)
	}
}
