package node

import (
	"sync"
	"time"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/shard"
)

// gatherFor is how long the first anomaly of a device with peers is held back, and
// how long the shards' parts of a wave are collected before it is told: devices
// that report once in ten seconds have all spoken by then.
const gatherFor = 10 * time.Second

// gather holds back events of devices that have peers: what turns out to be the
// beginning of a wave is told as the wave alone.
type gather struct {
	mu   sync.Mutex
	held map[string][]heldEvent // by anomaly
}

// heldEvent is told late, when no wave has come of it, or dropped.
type heldEvent struct{ tell, drop func() }

func newGather() *gather { return &gather{held: map[string][]heldEvent{}} }

// pass calls tell now or late when the time is over, or drop. None may block: they
// are called in the order of the events, under a lock.
func (g *gather) pass(e *shard.Event, tell, late, drop func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	list, held := g.held[e.ID]
	switch {
	case held && e.Anomaly.Wave != "":
		delete(g.held, e.ID)
		for _, h := range list {
			h.drop()
		}
		drop()
	case held:
		g.held[e.ID] = append(list, heldEvent{late, drop})
	case e.Model != "" && e.Transition == anomaly.Opened:
		g.held[e.ID] = []heldEvent{{late, drop}}
		time.AfterFunc(gatherFor, func() { g.release(e.ID) })
	default:
		tell()
	}
}

func (g *gather) release(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, h := range g.held[id] {
		h.tell()
	}
	delete(g.held, id)
}
