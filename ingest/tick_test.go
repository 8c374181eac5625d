package ingest

import (
	"sync"
	"testing"
)

// Messages without a time of their own are told apart by the time of their
// receipt alone, so no two of a node may share one.
func TestMessagesReceivedInTheSameMicrosecondGetTimesOfTheirOwn(t *testing.T) {
	const goroutines, each, received = 8, 1000, 1_769_181_886_000_000
	p := &Pipeline{}
	var mu sync.Mutex
	seen := map[int64]bool{}
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			last := int64(0)
			for range each {
				at := p.tick(received)
				if at <= last || at < received {
					t.Errorf("tick gave %d after %d, want later than it and than the receipt", at, last)
				}
				last = at
				mu.Lock()
				if seen[at] {
					t.Errorf("tick gave %d twice", at)
				}
				seen[at] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if at := p.tick(received + 1_000_000); at != received+1_000_000 {
		t.Errorf("a later receipt got %d, want its own time", at)
	}
}
