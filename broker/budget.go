package broker

import (
	"sync"
	"sync/atomic"
	"time"
)

// budget bounds what is in flight of a node: all publishes in bytes, and telemetry by
// what the ingest path can commit in time. A connection that gets nothing is parked and
// woken in the order of arrival as others give back.
type budget struct {
	max       int64
	allowance func() int64 // of telemetry; nil: no bound but max
	used      atomic.Int64
	paced     atomic.Int64 // the part of used that is telemetry
	parked    atomic.Int64 // how many are in the queues

	mu     sync.Mutex
	urgent []*conn // whose next publish is urgent; each bounded by the number of connections: one is in one of them at most once
	bulk   []*conn
	timer  bool // wakes those who are parked when nothing is given back
}

const (
	// budgetShare is how much of its telemetry a connection may hand over before it is the
	// next one's turn: it wakes a pump and is answered in one write, which many publishes
	// must pay for.
	budgetShare = 64 << 10
	// budgetLook is how often the allowance is asked for while somebody waits for it.
	budgetLook = 50 * time.Millisecond
)

// take is called with c.mu held. One publish is always allowed, however large. The
// last eighth is for urgent ones: telemetry that nobody commits does not keep a
// command from the devices whose shards are well. Telemetry does not pass others'
// that waits already.
func (g *budget) take(c *conn, p *publish) bool {
	urgent := p.urgent()
	if p.plain || c.grant > 0 || g.parked.Load() == 0 {
		if g.try(p.bytes, urgent, !p.plain) {
			c.grant = max(0, c.grant-p.bytes)
			return true
		}
	}
	c.grant = 0
	if !c.queued {
		c.queued = true
		g.park(c, urgent)
	}
	return (p.plain || g.parked.Load() == 1) && g.try(p.bytes, urgent, !p.plain) // somebody may have given back before we were in the queue
}

func (g *budget) park(c *conn, urgent bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if urgent {
		g.urgent = append(g.urgent, c)
	} else {
		g.bulk = append(g.bulk, c)
	}
	g.parked.Add(1)
	if !g.timer && g.allowance != nil {
		g.timer = true
		time.AfterFunc(budgetLook, g.look)
	}
}

func (g *budget) try(n int64, urgent, telemetry bool) bool {
	limit := g.max
	if !urgent {
		limit -= limit / 8
	}
	if !telemetry || g.allowance == nil {
		return takeUpTo(&g.used, n, limit)
	}
	if !takeUpTo(&g.paced, n, g.allowance()) {
		return false
	}
	if !takeUpTo(&g.used, n, limit) {
		g.paced.Add(-n)
		return false
	}
	return true
}

// takeUpTo adds n to used unless that is more than limit then.
func takeUpTo(used *atomic.Int64, n, limit int64) bool {
	for {
		now := used.Load()
		if now > 0 && now+n > limit {
			return false
		}
		if used.CompareAndSwap(now, now+n) {
			return true
		}
	}
}

// give returns n bytes and wakes who has a use for them.
func (g *budget) give(n int64, telemetry bool) {
	if telemetry && g.allowance != nil {
		g.paced.Add(-n)
	}
	g.used.Add(-n)
	g.wake()
}

// wake wakes the first parked connection that may have a use for what there is; that one
// wakes the next when its own publishes are decided.
func (g *budget) wake() {
	for g.parked.Load() > 0 {
		c := g.next()
		if c == nil || c.unpark() {
			return
		}
	}
}

// next takes the first one out of the queues: of urgent ones, else of the others if
// there is room for a share. nil: nobody.
func (g *budget) next() *conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := &g.urgent
	if len(*list) == 0 {
		if list = &g.bulk; len(*list) == 0 || !g.roomy() {
			return nil
		}
	}
	c := (*list)[0]
	(*list)[0] = nil
	*list = (*list)[1:]
	g.parked.Add(-1)
	return c
}

// roomy reports whether it is worth to wake a connection for its telemetry.
func (g *budget) roomy() bool {
	if g.allowance == nil {
		return true
	}
	paced, allowance := g.paced.Load(), g.allowance()
	return paced == 0 || paced+min(budgetShare, allowance/8) <= allowance
}

// look wakes those who wait when the allowance has grown, or what is in flight does not
// count any more.
func (g *budget) look() {
	g.wake()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer = len(g.urgent)+len(g.bulk) > 0; g.timer {
		time.AfterFunc(budgetLook, g.look)
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
	c.grant = budgetShare
	c.kickLocked()
	return true
}
