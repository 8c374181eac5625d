package session

import (
	"slices"
)

// connect gives a session to a connection. What was there before stays, unless the
// client asked for a clean start or its session was not durable.
func (st *State) connect(c *Connect) (Status, []byte) {
	s := st.sessions[c.Client]
	var out Connected
	if s != nil {
		if s.identity != c.Identity {
			return StatusIdentity, nil
		}
		if s.connected && st.now-c.Waited < s.since && s.owner != (Owner{c.Node, c.NodeEpoch}) {
			return StatusFenced, nil // the client has connected elsewhere while this one waited for a leader
		}
		st.touch(s)
		if s.connected {
			s.sent = s.last()
			out.Node, out.NodeEpoch, out.Before = s.owner.Node, s.owner.Epoch, s.epoch
		}
		switch {
		case c.Clean || !s.durable:
			st.end(s)
			s = nil
		case s.connected && s.willDelay == 0:
			st.due(s) // the connection that is taken over ends without a good-bye
		}
	}
	if s == nil {
		if len(st.sessions) >= sessionsMax {
			return StatusFull, nil
		}
		s = &state{client: c.Client, identity: c.Identity, first: 1}
		st.sessions[c.Client] = s
	} else {
		out.Present = true
	}
	st.disown(s)
	st.serial++
	s.epoch, s.owner = st.serial, st.ownerOf(c.Node, c.NodeEpoch)
	s.since = st.now - c.Waited
	s.durable, s.expiry = c.Durable, c.Expiry
	s.limits = limits{c.QueueMax, c.QueueBytes, c.QueueAge}
	s.will, s.willDelay, s.willAt, s.endAt = pack(c.Will), c.WillDelay, 0, 0
	st.own(s)
	st.arm(s)
	out.Epoch, out.First, out.Last, out.Sent = s.epoch, s.first, s.last(), s.sent
	for _, x := range s.received {
		out.Received = append(out.Received, x.id)
	}
	for _, v := range s.subs {
		out.Subs = append(out.Subs, v.Subscription)
	}
	return StatusOK, out.append(nil)
}

// own and disown keep count of a process's connections, and of the members of
// shared groups that are here.
func (st *State) own(s *state) {
	s.connected = true
	st.owners[s.owner]++
	st.shifted(s)
}

func (st *State) disown(s *state) {
	if !s.connected {
		return
	}
	s.connected = false
	if st.owners[s.owner]--; st.owners[s.owner] <= 0 {
		delete(st.owners, s.owner)
	}
	st.shifted(s)
}

// leaveAs ends a connection whose owner tells what becomes of the will.
func (st *State) leaveAs(s *state, will bool, minDelay int64) {
	if !will {
		s.will = ""
	} else if s.will != "" {
		s.willDelay = max(s.willDelay, minDelay)
	}
	st.leave(s)
}

// attach makes a session its owner's again after the owner was given up.
func (st *State) attach(s *state) {
	if s.connected {
		return
	}
	s.willAt, s.endAt = 0, 0
	st.own(s)
	st.arm(s)
}

// leave ends the connection of a session: its will and its end come in time.
func (st *State) leave(s *state) {
	if !s.connected {
		return
	}
	if !s.durable || s.expiry == 0 {
		st.end(s)
		return
	}
	st.disown(s)
	s.endAt = st.now + s.expiry
	if s.will != "" {
		s.willAt = st.now + min(s.willDelay, s.expiry)
		if s.willDelay == 0 {
			st.due(s)
		}
	}
	st.arm(s)
}

// end removes a session; its will is due at the latest now.
func (st *State) end(s *state) {
	st.due(s)
	st.disown(s)
	for len(s.subs) > 0 {
		st.drop(s, s.subs[len(s.subs)-1].Filter)
	}
	delete(st.backlog, s)
	delete(st.sessions, s.client)
}

// gone ends all connections of a process and its predecessors.
func (st *State) gone(node string, epoch uint64) {
	var lost []string
	for client, s := range st.sessions {
		if s.connected && s.owner.Node == node && s.owner.Epoch <= epoch {
			lost = append(lost, client)
		}
	}
	slices.Sort(lost)
	for _, client := range lost {
		s := st.sessions[client]
		st.touch(s)
		s.sent = s.last() // nobody knows
		st.leave(s)
	}
}
