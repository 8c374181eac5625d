package pubsub

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// routes is the aggregated index: who, of all nodes and shards, must be given a
// message on a topic. Every source's filters are as its owner last announced them.
type routes struct {
	self string

	mu      sync.RWMutex
	sources map[string]*origin
	index   session.Index[*target]
	own     int          // plain filters of this node's clients: its broker finds those itself
	filters atomic.Int64 // announced by all sources together
}

// origin is one source as this node knows it.
type origin struct {
	id     string
	peer   string // "" for a shard
	shard  telemetry.ShardID
	mark   mark
	plain  *target
	shared map[string]*target
	known  map[string]bool // plain filters
	until  time.Time       // may be relied on until then
	lapsed bool            // it was not, for a while
	whole  bool            // the filters are all that its owner had at some time

	heard   time.Time // when its owner last spoke of it
	missed  time.Time // when a peer first said that it hears a leader that this node does not; zero since it does
	strayed time.Time // when a peer last said so, for long enough
}

// target is where a matching filter leads; group is the whole filter of a shared
// subscription.
type target struct {
	origin *origin
	group  string
	weight uint64
}

func newRoutes(self string) *routes { return &routes{self: self, sources: map[string]*origin{}} }

func shardSource(id telemetry.ShardID) string { return "s:" + strconv.FormatUint(uint64(id), 10) }

// shardOfSource is the inverse of shardSource; false for a node.
func shardOfSource(source string) (telemetry.ShardID, bool) {
	text, ok := strings.CutPrefix(source, "s:")
	n, err := strconv.ParseUint(text, 10, 32)
	return telemetry.ShardID(n), ok && err == nil
}

func (r *routes) originLocked(id string) *origin {
	o := r.sources[id]
	if o == nil {
		o = &origin{id: id, shared: map[string]*target{}, known: map[string]bool{}}
		o.plain = &target{origin: o}
		if shard, ok := shardOfSource(id); ok {
			o.shard = shard
		} else {
			o.peer = id
		}
		r.sources[id] = o
	}
	return o
}

// apply takes news of one source: everything (reset) or what changed since the version
// that is known here; of this node's own, changes only. It reports whether they fitted.
func (r *routes) apply(id string, m mark, reset bool, changes []change) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.originLocked(id)
	if m.gen < o.mark.gen || !reset && m.gen>>eraBits != o.mark.gen>>eraBits {
		return false
	}
	if reset {
		r.clearLocked(o)
		o.whole = false
	}
	for _, c := range changes {
		r.setLocked(o, c)
	}
	o.mark = m
	return true
}

func (r *routes) clearLocked(o *origin) {
	for f := range o.known {
		r.setLocked(o, change{f, 0})
	}
	for f := range o.shared {
		r.setLocked(o, change{f, 0})
	}
}

func (r *routes) setLocked(o *origin, c change) {
	plain, shared := session.SplitShared(c.filter)
	if shared {
		t := o.shared[c.filter]
		switch {
		case t == nil && c.weight > 0:
			t = &target{origin: o, group: c.filter, weight: c.weight}
			o.shared[c.filter] = t
			r.index.Add(plain, t)
		case t != nil && c.weight == 0:
			delete(o.shared, c.filter)
			r.index.Remove(plain, t)
		case t != nil:
			t.weight = c.weight
		}
	} else if o.peer == r.self && o.peer != "" {
		if c.weight > 0 { // told of changes only
			r.own++
		} else {
			r.own--
		}
	} else if c.weight > 0 != o.known[plain] {
		if c.weight > 0 {
			o.known[plain] = true
			r.index.Add(plain, o.plain)
		} else {
			delete(o.known, plain)
			r.index.Remove(plain, o.plain)
		}
	}
	r.filters.Store(int64(r.index.Len() + r.own))
}

// renew lets a source be relied on until then.
func (r *routes) renew(id string, gen uint64, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o := r.sources[id]; o != nil && o.mark.gen == gen && until.After(o.until) {
		o.until, o.whole = until, true
		o.hear(time.Now())
	}
}

// renewOwn renews a source that this node owns.
func (r *routes) renewOwn(id string, now, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.sources[id]
	if o == nil {
		return
	}
	o.hear(now)
	o.whole = true
	if until.After(o.until) {
		o.until = until
	}
}

// lapseMin is how long a shard must have been out of reach to count as lost from
// sight: a change of its leader takes less, as a rule.
const lapseMin = time.Second

// returned lists the shards that can be relied on again after they were out of
// reach.
func (r *routes) returned(shards uint32, now time.Time) (out []telemetry.ShardID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range shards {
		id := telemetry.ShardID(n)
		o := r.sources[shardSource(id)]
		switch {
		case o == nil:
		case now.Sub(o.until) > lapseMin:
			o.lapsed = true
		case o.lapsed && now.Before(o.until):
			o.lapsed = false
			out = append(out, id)
		}
	}
	return out
}

// drop forgets a source whose owner will not come back.
func (r *routes) drop(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o := r.sources[id]; o != nil {
		r.clearLocked(o)
		delete(r.sources, id)
	}
}

// marks is what is known of the sources, for the next pull.
func (r *routes) marks() map[string]mark {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make(map[string]mark, len(r.sources))
	for id, o := range r.sources {
		out[id] = o.mark
	}
	return out
}

// fresh reports whether every shard's source can be relied on at now: only then
// does finding no subscriber mean that there is none.
func (r *routes) fresh(shards uint32, now time.Time) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for id := range shards {
		if o := r.sources[shardSource(telemetry.ShardID(id))]; o == nil || now.After(o.until) {
			return false
		}
	}
	return true
}

// route is where one message goes.
type route struct {
	local  []string                       // shared groups whose message a client of this node gets
	peers  map[string][]string            // nodes with subscribers, and the groups that are theirs
	shards map[telemetry.ShardID][]string // shards with durable subscribers, likewise
}

// find decides for a topic: every node and shard with a plain filter that matches,
// and for each shared group one of those that have members, by their number.
// reachable tells which nodes can be sent to, for a shared group or for all. A publish
// of QoS 2, which has a fingerprint, is decided alike on every node.
func (r *routes) find(topic string, print uint64, reachable func(peer string, shared bool) bool) route {
	var out route
	var groups map[string][]*target
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.index.Match(topic, func(t *target) {
		o := t.origin
		if o.peer != "" && o.peer != r.self && !reachable(o.peer, t.group != "") {
			return
		}
		if t.group == "" {
			out.add(o, r.self, "")
			return
		}
		if groups == nil {
			groups = map[string][]*target{}
		}
		groups[t.group] = append(groups[t.group], t)
	})
	for group, members := range groups {
		out.add(choose(members, print).origin, r.self, group)
	}
	return out
}

func (r *route) add(o *origin, self, group string) {
	switch {
	case o.peer == self:
		if group != "" {
			r.local = append(r.local, group)
		}
	case o.peer != "":
		if r.peers == nil {
			r.peers = map[string][]string{}
		}
		r.peers[o.peer] = appendGroup(r.peers[o.peer], group)
	default:
		if r.shards == nil {
			r.shards = map[telemetry.ShardID][]string{}
		}
		r.shards[o.shard] = appendGroup(r.shards[o.shard], group)
	}
}

func appendGroup(list []string, group string) []string {
	if group == "" {
		return list
	}
	return append(list, group)
}

// choose draws one of the members' owners by weight, the same one on every node for a
// publish with a fingerprint. A weight above weightHere
// counts members that are connected: while there are any, nobody else is drawn.
func choose(members []*target, print uint64) *target {
	total, best := uint64(0), uint64(0)
	for _, t := range members {
		best = max(best, t.weight/weightHere)
	}
	weight := func(t *target) uint64 {
		if best > 0 {
			return t.weight / weightHere
		}
		return t.weight
	}
	if print > 0 {
		return settled(members, print, weight)
	}
	for _, t := range members {
		total += weight(t)
	}
	at := rand.Uint64N(max(total, 1))
	for _, t := range members {
		if w := weight(t); at < w {
			return t
		} else {
			at -= w
		}
	}
	return members[0]
}

// weightHere is the weight of one connected member of a shared group; one that is
// away weighs 1.
const weightHere = 1 << 20

// decodeNews reads the answer to a pull and applies it. A source that is complete
// with it may be relied on until the lease ends; seen are the shards that the peer hears.
func (r *routes) decodeNews(body []byte, until time.Time) (complete bool, seen []telemetry.ShardID, err error) {
	rd := wire.NewReader(body)
	if v := rd.Byte(); v != pullVersion {
		return false, nil, errVersion(v)
	}
	complete = true
	for range rd.Count(6) {
		id, gen, reset := rd.String(), rd.Uint(), rd.Bool()
		ver, head := rd.Uint(), rd.Uint()
		var changes []change
		for range rd.Count(2) {
			changes = append(changes, change{rd.String(), rd.Uint()})
		}
		if rd.Err() != nil {
			return false, nil, rd.Err()
		}
		ok := r.apply(id, mark{gen, ver}, reset, changes)
		if ok && ver == head {
			r.renew(id, gen, until)
		}
		complete = complete && ver == head
	}
	seen = decodeSight(rd)
	return complete, seen, rd.Err()
}
