package session

import (
	"container/heap"
	"slices"
)

// Bounds of one shard. They are the same on every replica, so they are no
// configuration.
const (
	sessionsMax      = 1 << 20   // a shard with more could not be snapshotted in time
	subscriptionsMax = 10_000    // of a session; the broker's own limit is lower
	retainedMax      = 1 << 17   // messages
	retainedBytesMax = 256 << 20 // their bytes
	receivedMax      = 65_535    // QoS 2 publishes of a client that wait for their release
	keysMax          = 1 << 16   // of QoS 2 publishes, remembered to recognise a repeat
)

// State is the sessions, queues, retained messages and wills of one shard. See the
// package comment.
type State struct {
	now      int64
	sessions map[string]*state
	index    Index[*sub]
	groups   map[string]*group
	retained topics
	kept     int // bytes of retained
	origins  map[string]*origin
	keys     []uint64 // of QoS 2 publishes, oldest first
	known    map[uint64]struct{}
	wills    []Will // due, oldest first
	nextWill uint64
	serial   uint64 // the last epoch of a session or number of a publish; unique, so that a later session of a client is never taken for an earlier one
	drops    Drops

	timers  timers
	owners  map[Owner]int // connected sessions
	backlog map[*state]struct{}
	effects Effects
	views   []*View
}

// Owner is a process that holds connections.
type Owner struct {
	Node  string
	Epoch uint64
}

// Drops counts messages that a durable session did not get.
type Drops struct{ Full, Aged, Expired uint64 }

// Will is one that is due: its client is gone for long enough.
type Will struct {
	ID      uint64
	Client  string
	Message *Message
}

// state is one session.
type state struct {
	client    string
	identity  string
	epoch     uint64
	owner     Owner // the last one
	since     int64 // when its CONNECT came in, by the clock of the leaders
	connected bool
	durable   bool
	expiry    int64
	limits    limits
	subs      Filters[*sub]
	queue     []Item // numbers ascend by one; the first is not acknowledged
	first     uint64 // number of queue[0], or of the next message
	live      int    // items not acknowledged
	sent      uint64 // number of the last message that may have been on the wire
	bytes     int
	received  []receipt
	will      packed // "" is none
	willDelay int64
	willAt    int64 // 0 is never
	endAt     int64 // 0 is never
	timer     int64 // what is in timers for it; 0 is nothing
}

type limits struct {
	count, bytes int
	age          int64
}

// receipt is a QoS 2 publish of the client that it has not released.
type receipt struct {
	id        uint16
	number    uint64
	delivered bool
}

// sub is a subscription of a durable session in the index.
type sub struct {
	s *state
	Subscription
}

// Subscribed is the filter.
func (v *sub) Subscribed() string { return v.Filter }

// group is the members of a shared filter.
type group struct {
	members []*sub
	turn    uint64
}

// origin is a node that proposes: its last batch and what that was answered.
type origin struct {
	epoch, seq uint64
	answers    []byte
}

// Item is a message in a session's queue.
type Item struct {
	Seq      uint64 // 0: of QoS 0, for a client that is connected, in no queue
	Message  *Message
	QoS      byte // granted
	Retain   bool
	Released bool // QoS 2: the client has it
	IDs      []uint32
	at       int64 // when it was queued
	acked    bool
}

// PacketID is the packet id under which every node sends the item.
func (it *Item) PacketID() uint16 { return uint16((it.Seq-1)%65_535) + 1 }

// Delivery is an item for a connected client.
type Delivery struct {
	Node  string
	Epoch uint64 // of the session
	To    string
	Item  Item
}

// FilterChange is the new weight of a filter among the durable sessions: 0 or 1,
// for a shared one members that are here and away.
type FilterChange struct {
	Filter     string
	Here, Away uint64
}

// Effects is what an entry means for the world outside; only the leader acts on it.
type Effects struct {
	Deliveries []Delivery
	Filters    []FilterChange
	Wills      bool // some became due
}

// Empty reports that there is nothing to do.
func (e *Effects) Empty() bool { return len(e.Deliveries)+len(e.Filters) == 0 && !e.Wills }

// New returns an empty state.
func New() *State {
	return &State{sessions: map[string]*state{}, groups: map[string]*group{}, retained: newTopics(),
		origins: map[string]*origin{}, known: map[uint64]struct{}{}, owners: map[Owner]int{}, backlog: map[*state]struct{}{}, nextWill: 1}
}

// TakeEffects returns what has happened since the last call.
func (st *State) TakeEffects() Effects {
	e := st.effects
	st.effects = Effects{}
	return e
}

// NextDue is when the state wants to be told the time, 0 for never.
func (st *State) NextDue() int64 {
	for len(st.timers) > 0 {
		t := st.timers[0]
		if s := st.sessions[t.client]; s != nil && s.timer == t.at {
			return t.at
		}
		heap.Pop(&st.timers)
	}
	return 0
}

// Owners lists the processes that hold connections of sessions of this shard.
func (st *State) Owners() []Owner {
	out := make([]Owner, 0, len(st.owners))
	for o := range st.owners {
		out = append(out, o)
	}
	return out
}

// Wills lists the wills that are due.
func (st *State) Wills() []Will { return slices.Clone(st.wills) }

// Counts are the state's figures.
type Counts struct {
	Sessions, Connected, Queued, QueuedBytes, Retained, Wills int
	Drops                                                     Drops
}

// Counts returns the figures of this moment.
func (st *State) Counts() Counts {
	c := Counts{Sessions: len(st.sessions), Retained: st.retained.len(), Wills: len(st.wills), Drops: st.drops}
	for _, n := range st.owners {
		c.Connected += n
	}
	for s := range st.backlog {
		c.Queued += s.live
		c.QueuedBytes += s.bytes
	}
	return c
}

// Hint says how far a connected client's queue goes.
type Hint struct {
	Owner  Owner
	Client string
	Epoch  uint64
	Last   uint64
}

// Hints lists the connected sessions with something in their queue.
func (st *State) Hints() []Hint {
	var out []Hint
	for s := range st.backlog {
		if s.connected {
			out = append(out, Hint{s.owner, s.client, s.epoch, s.last()})
		}
	}
	return out
}

// Fetch returns what is queued for a session from a number on, at most max items
// and about bytesMax bytes, and the number of the newest.
func (st *State) Fetch(ref Ref, from uint64, maximum, bytesMax int) (items []Item, last uint64, err error) {
	s := st.sessions[ref.Client]
	if s == nil || s.epoch != ref.Epoch {
		return nil, 0, ErrFenced
	}
	start := max(from, s.first) - s.first
	for i := start; i < uint64(len(s.queue)) && len(items) < maximum && bytesMax > 0; i++ {
		if it := s.queue[i]; !it.acked {
			items = append(items, it)
			bytesMax -= it.Message.Bytes()
		}
	}
	return items, s.last(), nil
}

// Filters lists all filters of durable sessions with their weights.
func (st *State) Filters() []FilterChange {
	out := make([]FilterChange, 0, st.index.Len()+len(st.groups))
	st.index.Filters(func(f string) { out = append(out, FilterChange{Filter: f, Here: 1}) })
	for f := range st.groups {
		out = append(out, st.weigh(f))
	}
	return out
}

// weigh is the present weight of a filter.
func (st *State) weigh(filter string) FilterChange {
	c := FilterChange{Filter: filter}
	if g := st.groups[filter]; g != nil {
		for _, m := range g.members {
			if m.s.connected {
				c.Here++
			} else {
				c.Away++
			}
		}
		return c
	}
	if st.index.Has(filter) {
		c.Here = 1
	}
	return c
}

func (s *state) last() uint64 { return s.first + uint64(len(s.queue)) - 1 }

// timers is a heap of (when, client); entries that are no longer a session's are
// void. The order is total, so that all replicas go through it alike.
type timers []timer

type timer struct {
	at     int64
	client string
}

func (t timers) Len() int      { return len(t) }
func (t timers) Swap(i, j int) { t[i], t[j] = t[j], t[i] }
func (t timers) Less(i, j int) bool {
	return t[i].at < t[j].at || t[i].at == t[j].at && t[i].client < t[j].client
}
func (t *timers) Push(x any) { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	old := *t
	x := old[len(old)-1]
	*t = old[:len(old)-1]
	return x
}
