package pubsub

import (
	"time"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// Some nodes may not reach each other while a third one reaches both. A shard whose
// leader is on the other side is lost here and works elsewhere: a client of it must not
// wait, but go there. A leader that is heard of answers pulls, so that a node knows which
// shards it sees; every answer to a pull tells which those are. A shard is astray that a
// peer sees and this node does not; one that nobody sees has no leader, and is waited for.
// Nobody is let in early, or stands for election, where a shard is astray. Lost is one that
// has been astray for a moment during which this process ran without a pause: clients are
// sent away.

const (
	// sightFresh is how old the last word of a leader may be for a node to say that it
	// sees the shard: a held pull and a little more.
	sightFresh = pullHold + 100*time.Millisecond
	// sightLost is how old it must be for a node to believe that it has lost the shard.
	// When a leader dies its peers have last heard of it within pullHold of each other:
	// while sightLost >= sightFresh + pullHold none of them takes it to be at another.
	sightLost = sightFresh + pullHold + 100*time.Millisecond
	// lostAfter is how long a shard must have been missed without a break to be lost.
	lostAfter = 2 * pullHold
	// pauseMax is how late the hub's beat may be. Beyond it, this process stood still, and
	// what it has missed says nothing.
	pauseMax = pullHold
	// strayMax is how long a peer's word counts without another one.
	strayMax = 2*pullHold + 100*time.Millisecond
	// strayLook is how often a CONNECT that waits looks whether its shard is astray.
	strayLook = 250 * time.Millisecond
)

// hear notes that the leader of a shard has spoken. mu is held.
func (o *origin) hear(now time.Time) { o.heard, o.missed, o.strayed = now, time.Time{}, time.Time{} }

// misses reports whether a shard that another node sees is astray. It must have been
// missed a moment before as well: after a pause of this process, the words of the
// leader may stand behind those of the other node. mu is held.
func (o *origin) misses(now time.Time) bool {
	age := now.Sub(o.heard)
	if age < sightLost-pullHold {
		return false
	}
	if o.missed.IsZero() {
		o.missed = now
	}
	return age >= sightLost && now.Sub(o.missed) >= pullHold/2
}

// lost reports whether it has been missed for longer. mu is held.
func (o *origin) lost(now time.Time) bool {
	return !o.strayed.IsZero() && now.Sub(o.strayed) <= strayMax && o.strayed.Sub(o.missed) >= lostAfter
}

// excuse forgets what was missed while this process stood still.
func (r *routes) excuse() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.sources {
		o.missed, o.strayed = time.Time{}, time.Time{}
	}
}

// seen lists the shards whose leaders this node hears.
func (r *routes) seen(now time.Time) (out []telemetry.ShardID) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, o := range r.sources {
		if o.peer == "" && !o.heard.IsZero() && now.Sub(o.heard) <= sightFresh {
			out = append(out, o.shard)
		}
	}
	return out
}

// compare takes what a peer sees, and returns what this node has lost.
func (r *routes) compare(seen []telemetry.ShardID, now time.Time) (out []session.Astray) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range seen {
		o := r.sources[shardSource(id)]
		if o == nil || o.heard.IsZero() || !o.misses(now) {
			continue
		}
		o.strayed = now
		if !o.lost(now) {
			continue
		}
		out = append(out, session.Astray{Shard: id, For: now.Sub(o.heard)})
	}
	return out
}

// astray reports whether a shard is, as far as is known at now.
func (r *routes) astray(id telemetry.ShardID, now time.Time) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	o := r.sources[shardSource(id)]
	return o != nil && !o.strayed.IsZero() && now.Sub(o.strayed) <= strayMax
}

// lost reports whether a shard is lost here.
func (r *routes) lost(id telemetry.ShardID, now time.Time) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	o := r.sources[shardSource(id)]
	return o != nil && o.lost(now)
}

// appendSight encodes the shards that a node sees.
func appendSight(dst []byte, seen []telemetry.ShardID) []byte {
	dst = wire.AppendUint(dst, uint64(len(seen)))
	for _, id := range seen {
		dst = wire.AppendUint(dst, uint64(id))
	}
	return dst
}

func decodeSight(rd *wire.Reader) (seen []telemetry.ShardID) {
	for range rd.Count(1) {
		seen = append(seen, telemetry.ShardID(rd.Uint()))
	}
	return seen
}

// Astray implements shard.Sessions.
func (h *Hub) Astray(id telemetry.ShardID) bool { return h.routes.astray(id, time.Now()) }

// missed takes what a peer sees.
func (h *Hub) missed(seen []telemetry.ShardID) {
	if list := h.routes.compare(seen, time.Now()); len(list) > 0 {
		h.client().Strayed(list)
	}
}

// astrays counts the shards that are.
func (r *routes) astrays(now time.Time) (n int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, o := range r.sources {
		if !o.strayed.IsZero() && now.Sub(o.strayed) <= strayMax {
			n++
		}
	}
	return n
}
