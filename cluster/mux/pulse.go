package mux

import (
	"errors"
	"time"
)

var errSilent = errors.New("peer is silent")

// looksPerPing is how often silence is judged between two pings: a peer is
// announced a twentieth of a second after SilentAfter, not at the next ping.
const looksPerPing = 10

// lateParts is the part of a ping interval by which a look has to be late before
// peers are excused: a busy machine is always late by a little.
const lateParts = 5

// pulse pings every peer, judges silence, and expires raft calls.
func (m *Mux) pulse() {
	every := m.cfg.PingInterval / looksPerPing
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	last := m.now()
	for looks := 1; ; looks++ {
		select {
		case <-m.done:
			return
		case <-ticker.C:
		}
		now := m.now()
		late := now - last - int64(every)
		last = now
		for _, c := range m.connections() {
			if late > int64(m.cfg.PingInterval/lateParts) {
				c.excuse(late, now)
			}
			m.judge(c, now)
			if looks%looksPerPing != 0 {
				continue
			}
			c.expire(now)
			if c.dialed {
				c.ping(now)
			}
		}
	}
}

// excuse takes the time in which this process did not run (it was paused, or the
// machine is busy) out of a peer's silence.
func (c *conn) excuse(late, now int64) {
	heard := c.heard.Load()
	c.heard.CompareAndSwap(heard, min(heard+late, now)) // or else it was heard of right now
}

// GiveUp ends the connection to a peer that is quiet, before DeadAfter does:
// somebody else holds the peer for gone, too. What waits for its answers fails
// now, and can be sent to its successor. A connection that is heard of is kept.
func (m *Mux) GiveUp(peer string) {
	for _, c := range m.connections() {
		if c.dialed && c.peer == peer && c.quiet.Load() {
			c.fail(errSilent)
		}
	}
}

// judge announces silence and its end, and closes what was silent for too long.
// The acceptor only closes: it does not ping.
func (m *Mux) judge(c *conn, now int64) {
	quiet := time.Duration(now - c.heard.Load())
	switch {
	case quiet > m.cfg.DeadAfter:
		c.fail(errSilent)
	case !c.dialed:
	case quiet > m.cfg.SilentAfter:
		c.quiet.Store(true)
		if !c.silent.Swap(true) {
			m.logger.Warn("peer is silent", "peer", c.peer, "dur", quiet)
			m.emit(Event{Peer: c.peer, Kind: Silent})
		}
	case quiet > m.cfg.QuietAfter:
		if !c.quiet.Swap(true) {
			m.emit(Event{Peer: c.peer, Kind: Quiet})
		}
	default:
		silent := c.silent.Swap(false)
		if c.quiet.Swap(false) || silent {
			m.emit(Event{Peer: c.peer, Kind: Up})
		}
	}
}
