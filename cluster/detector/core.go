package detector

import (
	"maps"
	"slices"
	"time"
)

// Signal is one observation of a peer by one source.
type Signal uint8

// The signals. The mux reports the first five, gossip the others but the last, which
// the detector finds out itself.
const (
	Connected   Signal = iota // a connection is up and authenticated
	Reset                     // an established connection broke
	Refused                   // a dial was refused by the peer's machine
	Quiet                     // a ping over the connection is late: no evidence, a reason to look
	Silent                    // a ping over the connection was not answered in time
	Heard                     // gossip has an answer from the peer
	Suspected                 // gossip has no answer from the peer
	Unreachable               // quiet, and its machine answers no connect at all
	signals
)

func (s Signal) String() string {
	return [...]string{"connected", "reset", "refused", "quiet", "silent", "heard", "suspected", "unreachable"}[s]
}

// agreeing lists the pairs of independent signals, see doc.go; the first is hard
// evidence.
var agreeing = [...][2]Signal{{Reset, Refused}, {Reset, Suspected}, {Silent, Suspected}, {Refused, Suspected}, {Unreachable, Suspected}}

// Event tells that a peer is gone or back.
type Event struct {
	Peer   string
	Down   bool
	First  Signal // the two that agreed; for Up, both are the one that brought it back
	Second Signal
}

// core is the detector without a clock. Times passed in never go back.
type core struct {
	cfg   Config
	beat  time.Time // last tick
	deaf  time.Time // until then signals wait; zero: they do not
	peers map[string]*peer
}

type peer struct {
	seen [signals]time.Time // when each failure signal was last there; zero: not
	down bool
}

func newCore(cfg Config, now time.Time) *core {
	return &core{cfg: cfg, beat: now, peers: map[string]*peer{}}
}

// tick tells the core that this process is running, and returns what follows from
// the signals of a pause that nobody has taken back since.
func (c *core) tick(now time.Time) (paused bool, events []Event) {
	if paused = c.late(now); paused {
		c.void(now)
	}
	c.beat = now
	if !c.deaf.IsZero() && !now.Before(c.deaf) {
		c.deaf = time.Time{}
		for _, name := range slices.Sorted(maps.Keys(c.peers)) {
			if e, ok := c.judge(now, name, c.peers[name]); ok {
				events = append(events, e)
			}
		}
	}
	c.forget(now)
	return paused, events
}

// late reports whether this process has stood still: the next tick is overdue.
func (c *core) late(now time.Time) bool { return now.Sub(c.beat) > c.cfg.Tick+c.cfg.Slack }

// void takes back the silence that was our own, and opens the time in which peers
// may show that they are there.
func (c *core) void(now time.Time) {
	c.deaf = now.Add(c.cfg.Slack)
	for _, p := range c.peers {
		if !p.down {
			p.seen[Silent], p.seen[Unreachable] = time.Time{}, time.Time{}
		}
	}
}

// observe takes one signal and returns what follows from it.
func (c *core) observe(now time.Time, name string, s Signal) (Event, bool) {
	p := c.peers[name]
	if p == nil {
		if s == Connected || s == Heard || s == Quiet || len(c.peers) >= c.cfg.PeersMax {
			return Event{}, false
		}
		p = &peer{}
		c.peers[name] = p
	}
	switch s {
	case Connected:
		// The connection works: nothing the mux said before counts any more.
		p.seen[Reset], p.seen[Refused], p.seen[Silent], p.seen[Unreachable] = time.Time{}, time.Time{}, time.Time{}, time.Time{}
		return c.revive(name, p, s)
	case Heard:
		p.seen[Suspected] = time.Time{}
		if p.recent(now, c.cfg.Window, Reset, Refused, Silent, Unreachable) {
			return Event{}, false
		}
		return c.revive(name, p, s)
	case Quiet:
		return Event{}, false
	}
	if c.late(now) {
		c.void(now)
	}
	if (s == Silent || s == Unreachable) && now.Before(c.deaf) {
		return Event{}, false
	}
	p.seen[s] = now
	return c.judge(now, name, p)
}

// judge looks for an agreeing pair. In the moment after a pause only the one that
// cannot be our own doing counts: a refusal is what the kernel over there says
// now. Old signals do not count, not even a suspicion
// that stands: where a firewall eats UDP it would turn every reset into a death.
func (c *core) judge(now time.Time, name string, p *peer) (Event, bool) {
	pairs := agreeing[:]
	if now.Before(c.deaf) {
		pairs = agreeing[:1]
	}
	if p.down {
		return Event{}, false
	}
	for _, pair := range pairs {
		if p.recent(now, c.cfg.Window, pair[0]) && p.recent(now, c.cfg.Window, pair[1]) {
			p.down = true
			return Event{Peer: name, Down: true, First: pair[0], Second: pair[1]}, true
		}
	}
	return Event{}, false
}

func (p *peer) recent(now time.Time, window time.Duration, any ...Signal) bool {
	return slices.ContainsFunc(any, func(s Signal) bool {
		t := p.seen[s]
		return !t.IsZero() && now.Sub(t) <= window
	})
}

func (c *core) revive(name string, p *peer, s Signal) (Event, bool) {
	if !p.down {
		return Event{}, false
	}
	p.down = false
	return Event{Peer: name, First: s, Second: s}, true
}

// forget drops peers about which nothing is left to remember.
func (c *core) forget(now time.Time) {
	for name, p := range c.peers {
		if !p.down && !p.recent(now, c.cfg.Window, Reset, Refused, Silent, Suspected, Unreachable) {
			delete(c.peers, name)
		}
	}
}

func (c *core) isDown(name string) bool {
	p := c.peers[name]
	return p != nil && p.down
}
