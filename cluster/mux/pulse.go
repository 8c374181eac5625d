package mux

import (
	"errors"
	"time"
)

var errSilent = errors.New("peer is silent")

// pulse pings every peer, judges silence, and expires raft calls.
func (m *Mux) pulse() {
	ticker := time.NewTicker(m.cfg.PingInterval)
	defer ticker.Stop()
	last := m.now()
	for {
		select {
		case <-m.done:
			return
		case <-ticker.C:
		}
		now := m.now()
		// Late ourselves (a paused process, a busy machine): the silence is ours.
		late := now-last > 2*int64(m.cfg.PingInterval)
		last = now
		for _, c := range m.connections() {
			if late {
				c.heard.Store(now)
			}
			m.judge(c, now)
			c.expire(now)
			if c.dialed {
				c.ping(now)
			}
		}
	}
}

// GiveUp ends the connection to a peer that is silent, before DeadAfter does:
// somebody else holds the peer for gone, too. What waits for its answers fails
// now, and can be sent to its successor. A connection that is heard of is kept.
func (m *Mux) GiveUp(peer string) {
	for _, c := range m.connections() {
		if c.dialed && c.peer == peer && c.silent.Load() {
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
		if !c.silent.Swap(true) {
			m.logger.Warn("peer is silent", "peer", c.peer, "dur", quiet)
			m.emit(Event{Peer: c.peer, Kind: Silent})
		}
	default:
		if c.silent.Swap(false) {
			m.emit(Event{Peer: c.peer, Kind: Up})
		}
	}
}
