package pubsub

import (
	"slices"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// Telemetry is in the log of its device's shard when it comes here, and a device must
// not wait for the shards of those who read it. So it follows its commit: it is routed by
// what is known of a shard whose leader is out of reach, it waits a second at most
// for such a shard to take it, and what is on its way there goes on without the device.

// silentAfter is how long a leader must not have spoken for its shard to be silent: an election
// takes less, as a rule, so that what it delays is waited for.
const silentAfter = lapseMin

// committed reports whether m has been committed as telemetry before it came here. An empty
// message to be retained is none: it clears.
func committed(m *session.Message) bool {
	return !(m.Retain && len(m.Payload) == 0) && telemetry.ParseTopic(m.Topic).Kind != telemetry.TopicOther
}

// following is telemetry on its way into the logs of the shards of its readers.
type following struct {
	finish func(error) // called once, not under mu

	mu    sync.Mutex
	left  []telemetry.ShardID // that have not answered
	ended bool
}

// answered takes the outcome of one shard.
func (f *following) answered(id telemetry.ShardID, err error) {
	f.mu.Lock()
	if i := slices.Index(f.left, id); i >= 0 {
		f.left = slices.Delete(f.left, i, i+1)
	}
	ends := !f.ended && (err != nil || len(f.left) == 0)
	f.ended = f.ended || ends
	f.mu.Unlock()
	if ends {
		f.finish(err)
	}
}

// look ends the wait if only silent shards have not answered; true when it is over. Nothing
// else ends it for a silent shard, so that what waits for one goes on in its order.
func (f *following) look(silent silence) (ended bool) {
	f.mu.Lock()
	over := f.ended
	ends := !over && !slices.ContainsFunc(f.left, func(id telemetry.ShardID) bool { return !silent[id] })
	f.ended = over || ends
	f.mu.Unlock()
	if ends {
		f.finish(nil)
	}
	return over || ends
}

// silence is the shards whose leaders have not been heard for a while.
type silence map[telemetry.ShardID]bool

// isSilent reports whether a shard was silent at the last beat.
func (h *Hub) isSilent(id telemetry.ShardID) bool {
	s := h.silent.Load()
	return s != nil && (*s)[id]
}

// silent lists the shards whose leaders this node has heard and has not heard of late.
func (r *routes) silent(now time.Time) (out silence) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, o := range r.sources {
		if o.peer == "" && !o.heard.IsZero() && now.Sub(o.heard) >= silentAfter {
			if out == nil {
				out = silence{}
			}
			out[o.shard] = true
		}
	}
	return out
}

// follow puts telemetry into the logs of the shards that want it, and hands it to the nodes.
func (h *Hub) follow(r *route, m *session.Message, key session.Key, done func(error)) {
	f := &following{left: make([]telemetry.ShardID, 0, len(r.shards)), finish: func(err error) {
		if err == nil {
			h.toNodes(r, m, key)
		}
		done(err)
	}}
	for id := range r.shards {
		f.left = append(f.left, id)
	}
	h.followMu.Lock()
	h.followed = append(h.followed, f)
	h.followMu.Unlock()
	for id, groups := range r.shards {
		h.submitMessage(m.Urgent(), id, session.AppendMessage(nil, m, groups, key, false), func(a session.Answer, err error) {
			if err == nil {
				err = a.Status.Err()
			}
			if err != nil && h.isSilent(id) { // too much waits for it already
				h.metrics.dropped.WithLabelValues("shard_silent").Inc()
				err = nil
			}
			f.answered(id, err)
		})
	}
}

// lookAfterFollowed ends the waits for shards that are silent.
func (h *Hub) lookAfterFollowed(now time.Time) {
	silent := h.routes.silent(now)
	h.silent.Store(&silent)
	h.followMu.Lock()
	list := h.followed
	h.followed = nil
	h.followMu.Unlock()
	list = slices.DeleteFunc(list, func(f *following) bool { return f.look(silent) })
	h.followMu.Lock()
	h.followed = append(list, h.followed...)
	h.followMu.Unlock()
}

// mayFollow reports whether this node knows the filters of every shard, be it from a leader that
// it does not hear any more.
func (h *Hub) mayFollow(now time.Time) bool {
	h.waitMu.Lock()
	defer h.waitMu.Unlock()
	if h.isFresh(now) {
		return true
	}
	if !now.Before(h.wholeUntil) {
		if !h.routes.whole(h.shards.Count()) {
			return false
		}
		h.wholeUntil = now.Add(beat / 2)
	}
	h.metrics.lapsed.Inc()
	return true
}

// whole reports whether the filters of every shard are known as some leader of it had them.
func (r *routes) whole(shards uint32) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for id := range shards {
		if o := r.sources[shardSource(telemetry.ShardID(id))]; o == nil || !o.whole {
			return false
		}
	}
	return true
}
