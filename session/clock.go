package session

import (
	"container/heap"
	"slices"
)

// due makes the will of a session one that the leader has to send.
func (st *State) due(s *state) {
	s.willAt = 0
	if s.will == "" {
		return
	}
	m := s.will.unpack()
	if m.Expires > 0 { // an interval that begins now
		m.Expires += st.now
	}
	st.wills = append(st.wills, Will{st.nextWill, s.client, m})
	st.nextWill++
	st.effects.Wills = true
	s.will = ""
}

// advance moves the clock and does what has become due.
func (st *State) advance(now int64) {
	st.now = max(st.now, now)
	for len(st.timers) > 0 && st.timers[0].at <= st.now {
		t := heap.Pop(&st.timers).(timer)
		s := st.sessions[t.client]
		if s == nil || s.timer != t.at {
			continue
		}
		s.timer = 0
		st.ring(s)
	}
}

// ring does what is due for a session whose client is away.
func (st *State) ring(s *state) {
	st.touch(s)
	if s.endAt > 0 && s.endAt <= st.now {
		st.end(s)
		return
	}
	if s.willAt > 0 && s.willAt <= st.now {
		st.due(s)
	}
	if !s.connected && s.limits.age > 0 {
		for i := range s.queue {
			it := &s.queue[i]
			if it.acked {
				continue
			}
			if it.at+s.limits.age > st.now {
				break
			}
			st.drops.Aged++
			s.settle(it)
		}
		st.trim(s)
	}
	st.arm(s)
}

// arm puts the session's next deadline into the timers.
func (st *State) arm(s *state) {
	at := int64(0)
	for _, t := range [...]int64{s.endAt, s.willAt, s.oldest()} {
		if t > 0 && (at == 0 || t < at) {
			at = t
		}
	}
	if at == s.timer {
		return
	}
	s.timer = at
	if at == 0 {
		return
	}
	if len(st.timers) > 2*len(st.sessions)+timersSlack {
		st.timers = slices.DeleteFunc(st.timers, func(t timer) bool {
			x := st.sessions[t.client]
			return x == nil || x.timer != t.at
		})
		heap.Init(&st.timers)
	}
	heap.Push(&st.timers, timer{at, s.client})
}

// timersSlack is how many deadlines that nobody waits for any more may stand beside
// two a session: a client that comes and goes leaves one every time.
const timersSlack = 1024

// oldest is when the head of a waiting queue becomes too old.
func (s *state) oldest() int64 {
	if s.connected || s.limits.age == 0 || len(s.queue) == 0 {
		return 0
	}
	return s.queue[0].at + s.limits.age
}
