package broker

import (
	"sync"
	"sync/atomic"
)

// budget bounds the bytes in flight of a node. A connection that gets nothing is
// parked and woken in the order of arrival as others give back.
type budget struct {
	max    int64
	used   atomic.Int64
	parked atomic.Int64 // length of queue

	mu    sync.Mutex
	queue []*conn // bounded by the number of connections: one is in it at most once
}

// take is called with c.mu held. One publish is always allowed, however large. The
// last eighth is for urgent ones: telemetry that nobody commits does not keep a
// command from the devices whose shards are well.
func (g *budget) take(c *conn, n int64, urgent bool) bool {
	if g.try(n, urgent) {
		return true
	}
	if !c.queued {
		c.queued = true
		g.mu.Lock()
		g.queue = append(g.queue, c)
		g.parked.Store(int64(len(g.queue)))
		g.mu.Unlock()
	}
	return g.try(n, urgent) // somebody may have given back before we were in the queue
}

func (g *budget) try(n int64, urgent bool) bool {
	limit := g.max
	if !urgent {
		limit -= limit / 8
	}
	for {
		used := g.used.Load()
		if used > 0 && used+n > limit {
			return false
		}
		if g.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// give returns n bytes and wakes the first parked connection that has a use for
// them; that one wakes the next when its own publish is decided.
func (g *budget) give(n int64) {
	g.used.Add(-n)
	for g.parked.Load() > 0 {
		g.mu.Lock()
		if len(g.queue) == 0 {
			g.mu.Unlock()
			return
		}
		c := g.queue[0]
		g.queue[0] = nil
		g.queue = g.queue[1:]
		g.parked.Store(int64(len(g.queue)))
		g.mu.Unlock()
		if c.unpark() {
			return
		}
	}
}

// unpark lets the pump try again; false when the connection has nothing to hand over.
func (c *conn) unpark() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queued = false
	if c.closing || c.waiting.n == 0 {
		return false
	}
	c.kickLocked()
	return true
}
