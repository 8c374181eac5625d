package shard

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// ErrMoved ends a proposal whose leader had not answered when another one was known.
// Its fate is unknown: whoever sends it again does so under the number that it has.
var ErrMoved = errors.New("another leader is known by now")

// underway is what a router has sent to other nodes and not heard of again. A leader
// that only this node does not reach any more, or that was deposed and hangs, keeps its
// connection for seconds; the replicas elect another one sooner.
type underway struct {
	leader func(telemetry.ShardID) string // as far as this node knows, "" if it does not

	mu    sync.Mutex
	calls map[*sent]struct{}
	timer bool // look is due
}

type sent struct {
	shard telemetry.ShardID
	peer  string
	done  func([]byte, error)
}

// movedLook is how often calls under way are compared with the leaders: an election
// takes longer.
const movedLook = 50 * time.Millisecond

// follow returns the done of a call to a peer: the given one is called once, with the
// answer or with ErrMoved, whichever comes first.
func (u *underway) follow(id telemetry.ShardID, peer string, done func([]byte, error)) func([]byte, error) {
	s := &sent{id, peer, done}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.calls == nil {
		u.calls = map[*sent]struct{}{}
	}
	u.calls[s] = struct{}{}
	if !u.timer {
		u.timer = true
		time.AfterFunc(movedLook, u.look)
	}
	return func(answer []byte, err error) {
		if u.settle(s) {
			s.done(answer, err)
		}
	}
}

// settle reports whether the call has not been settled before.
func (u *underway) settle(s *sent) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, open := u.calls[s]
	delete(u.calls, s)
	return open
}

// look ends the calls whose shards are led by somebody else now.
func (u *underway) look() {
	u.mu.Lock()
	calls := make([]*sent, 0, len(u.calls))
	for s := range u.calls {
		calls = append(calls, s)
	}
	u.mu.Unlock()
	for _, s := range calls {
		if now := u.leader(s.shard); now != "" && now != s.peer && u.settle(s) {
			s.done(nil, fmt.Errorf("shard %d was led by %s and is by %s: %w", s.shard, s.peer, now, ErrMoved))
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.timer = len(u.calls) > 0; u.timer {
		time.AfterFunc(movedLook, u.look)
	}
}

// known is the peer that leads a shard as this node's replica, or another node, has
// said; "" when nobody has.
func (r *Router) known(id telemetry.ShardID) string {
	if s, ok := r.host.Shard(id); ok {
		return s.leader()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hints[id]
}
