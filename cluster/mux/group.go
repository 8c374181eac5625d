package mux

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/serverid"
)

const (
	// consumerDepth is how many requests may wait for one group's raft: the
	// pipelines of a leader and of a deposed one, votes of all peers. Beyond it
	// peers are told that the group is busy, and raft tries again.
	consumerDepth = 64
	// beatsMax is the same for heartbeats: a peer has one under way.
	beatsMax = 16
)

// Gate lets the owner of a group refuse what its raft should not see. The
// functions run on a reader's goroutine and must not block; any may be nil.
type Gate struct {
	// Append judges a request with entries, before raft, whose own way to handle
	// a full disk deletes the conflicting suffix first.
	Append func(*raft.AppendEntriesRequest) error
	// Snapshot judges a snapshot before its bytes are sent.
	Snapshot func(*raft.InstallSnapshotRequest) error
	// Known reports, likewise, that a snapshot is not newer than the local commit
	// index. Raft would install it and throw away entries behind it that count as
	// acknowledged here, so it is answered with success at once: what it says is
	// true of this replica. A refusal would make the leader send it for ever.
	Known func(*raft.InstallSnapshotRequest) bool
	// Installed is told that raft has installed a snapshot, so that the group
	// can be closed and opened again (hashicorp/raft#697).
	Installed func(*raft.InstallSnapshotRequest)
}

// inflight is a request raft has and has not answered.
type inflight struct {
	answers chan raft.RPCResponse
	c       *conn // nil: nobody waits (Poke)
	h       header
	idle    bool // the answer may wait for company
}

// beat is a heartbeat that waits for the fast path.
type beat struct {
	c       *conn
	h       header
	request raft.WithRPCHeader
}

// Transport is one group's raft.Transport. Requests of peers go to raft's
// consumer channel or, for heartbeats, to its handler; answers are collected by
// one goroutine, which exists only while something is unanswered.
type Transport struct {
	m        *Mux
	group    uint32
	server   uint32 // incarnation of the replica; requests for another one are refused
	consumer chan raft.RPC
	handler  atomic.Pointer[func(raft.RPC)]
	gate     atomic.Pointer[Gate]
	election atomic.Pointer[func() error]
	installs installs

	mu      sync.Mutex
	pending fifo[inflight] // in the order raft takes them
	beats   []beat
	spare   []beat
	running bool // the goroutine exists
	closed  bool
	wake    chan struct{}
	done    chan struct{}
	hurry   chan struct{} // closed by Interrupt
	hurried sync.Once
}

// Group returns the transport of a raft group whose replica here has never begun
// anew, or whatever there is of this group; the same one until it is closed. Raft
// closes it when it has shut down, and the group can be opened again.
func (m *Mux) Group(id uint32) *Transport { return m.GroupAs(id, 0) }

// GroupAs is Group for an incarnation of the replica: requests for another one are
// answered as if they had reached the wrong peer. One that another incarnation has
// left open is closed. 0 is the one that is open, or the first.
func (m *Mux) GroupAs(id, incarnation uint32) *Transport {
	t, other := m.groupAs(id, incarnation)
	if other != nil {
		other.end()
	}
	return t
}

func (m *Mux) groupAs(id, incarnation uint32) (t, other *Transport) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := *m.groups.Load()
	if t = old[id]; t != nil && (incarnation == 0 || t.server == incarnation) {
		return t, nil
	}
	other = t
	t = &Transport{m: m, group: id, server: max(incarnation, serverid.First), consumer: make(chan raft.RPC, consumerDepth),
		wake: make(chan struct{}, 1), done: make(chan struct{}), hurry: make(chan struct{})}
	m.replaceGroups(old, id, t)
	return t, other
}

// replaceGroups copies the map with one entry changed; mu is held.
func (m *Mux) replaceGroups(old map[uint32]*Transport, id uint32, t *Transport) {
	groups := make(map[uint32]*Transport, len(old)+1)
	for k, v := range old {
		groups[k] = v
	}
	if groups[id] = t; t == nil {
		delete(groups, id)
	}
	m.groups.Store(&groups)
}

func (m *Mux) groupOf(id uint32) *Transport { return (*m.groups.Load())[id] }

// Poke tells the local replica of a group to stand for election at once, as if
// the leader had handed over to it. Whether it should is the caller's to know.
func (m *Mux) Poke(group uint32) error {
	t := m.groupOf(group)
	if t == nil {
		return fmt.Errorf("poke group %d: %w", group, ErrNoGroup)
	}
	request := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: m.self, Addr: m.self}}
	if s := t.deliver(nil, header{kind: kindTimeoutNow, group: group}, request); s != statusOK {
		return fmt.Errorf("poke group %d: %w", group, remoteError("self", s, nil))
	}
	return nil
}

// SetGate replaces the group's gate.
func (t *Transport) SetGate(g Gate) { t.gate.Store(&g) }

// SetElectionGate keeps the local replica of a group out of elections while
// abstains returns an error: it is not heard when it asks for votes, and who asks
// for its own, or hands over to it, gets the error as answer. Raft is told nothing
// of that, so that it is as if the messages were lost. Heartbeats and entries pass.
// Poke passes too: whoever calls it knows. abstains runs on a reader's goroutine and
// must not block. The gate lasts until the group is closed; set it before raft
// starts.
func (t *Transport) SetElectionGate(abstains func() error) { t.election.Store(&abstains) }

// OnElection is SetElectionGate by the number of the group.
func (m *Mux) OnElection(group uint32, abstains func() error) {
	m.Group(group).SetElectionGate(abstains)
}

func (t *Transport) abstains() error {
	if f := t.election.Load(); f != nil {
		return (*f)()
	}
	return nil
}

// Interrupt ends the waiting of appends for peers without a connection, now and
// later. Call it before raft's Shutdown, which waits for them.
func (t *Transport) Interrupt() { t.hurried.Do(func() { close(t.hurry) }) }

// Close takes the group off the mux; peers are told that it does not run here.
func (t *Transport) Close() error {
	t.m.mu.Lock()
	if old := *t.m.groups.Load(); old[t.group] == t {
		t.m.replaceGroups(old, t.group, nil)
	}
	t.m.mu.Unlock()
	t.end()
	return nil
}

func (t *Transport) end() {
	t.Interrupt()
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.closed = true
		close(t.done)
	}
}

// errElse: a request is for another incarnation of the replica.
var errElse = errors.New("the replica is another incarnation")

// decode reads a request of peer that is for this incarnation of the replica.
func (t *Transport) decode(kind Kind, body, peer []byte) (raft.WithRPCHeader, error) {
	c := cursor{b: body}
	if to := c.uvarint(); c.err != nil || to != uint64(t.server) {
		return nil, cmp.Or(c.err, errElse)
	}
	request, err := decodeRequest(kind, c.b, peer)
	if err != nil {
		return nil, err
	}
	if id := request.GetRPCHeader().ID; !bytes.Equal(id, peer) && serverid.Peer(raft.ServerID(id)) != string(peer) {
		return nil, fmt.Errorf("raft server %q speaks on the connection of %s", id, peer)
	}
	return request, nil
}

// serveRaft hands a request to its group. An error ends the connection.
func (m *Mux) serveRaft(c *conn, h header, body []byte) error {
	if h.kind < kindAppend || h.kind > kindTimeoutNow {
		c.refuse(h, statusNoHandler, "")
		return nil
	}
	if h.request == 0 {
		return fmt.Errorf("raft request without an id: %w", errSpoke)
	}
	t := m.groupOf(h.group)
	if t == nil {
		c.refuse(h, statusNoGroup, "")
		return nil
	}
	request, err := t.decode(h.kind, body, c.peerBytes)
	if errors.Is(err, errElse) {
		m.metrics.dropped.WithLabelValues("replica").Inc()
		c.refuse(h, statusWrongPeer, "")
		return nil
	}
	if err != nil {
		m.metrics.dropped.WithLabelValues("malformed").Inc()
		c.refuse(h, statusMalformed, err.Error())
		return nil
	}
	// Raft refuses its vote to a server that is no voter in its own latest
	// configuration. Where that one lags behind a configuration that is committed,
	// the only majority left may need it. The paper has no such rule; a candidate
	// is judged by its log, and who was removed is not let in by the mux.
	if vote, ok := request.(*raft.RequestVoteRequest); ok {
		vote.ID = nil
	}
	if err := t.admit(request); err != nil {
		s, text := errorStatus(err)
		c.refuse(h, s, text)
		return nil
	}
	switch s := t.deliver(c, h, request); s {
	case statusOK:
	case statusBusy:
		m.metrics.busy.WithLabelValues("group").Inc()
		c.refuse(h, s, "")
	default:
		c.refuse(h, s, "")
	}
	return nil
}

// admit asks the gates about a request with entries or of an election.
func (t *Transport) admit(request any) error {
	switch request.(type) {
	case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest, *raft.TimeoutNowRequest:
		return t.abstains()
	}
	a, ok := request.(*raft.AppendEntriesRequest)
	if !ok || len(a.Entries) == 0 {
		return nil
	}
	if g := t.gate.Load(); g != nil && g.Append != nil {
		return g.Append(a)
	}
	return nil
}

// deliver puts a request before raft, without waiting.
func (t *Transport) deliver(c *conn, h header, request raft.WithRPCHeader) status {
	a, isAppend := request.(*raft.AppendEntriesRequest)
	isBeat := isAppend && heartbeat(a) && t.handler.Load() != nil
	t.mu.Lock()
	s := statusOK
	switch {
	case t.closed:
		s = statusNoGroup
	case isBeat && len(t.beats) >= beatsMax:
		s = statusBusy
	case isBeat:
		t.beats = append(t.beats, beat{c, h, request})
	default:
		answers := t.m.answerChannel()
		select {
		case t.consumer <- raft.RPC{Command: request, RespChan: answers}:
			t.pending.push(inflight{answers, c, h, idle(request)})
		default:
			s = statusBusy
		}
	}
	start := s == statusOK && !t.running
	t.running = t.running || start
	t.mu.Unlock()
	if s != statusOK {
		return s
	}
	if start {
		t.m.spawn(t.work)
		return s
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return s
}

func (m *Mux) answerChannel() chan raft.RPCResponse {
	if ch, ok := m.answers.Get().(chan raft.RPCResponse); ok {
		return ch
	}
	return make(chan raft.RPCResponse, 1)
}

// work runs heartbeats and collects answers until nothing is unanswered. Raft
// answers what came through the consumer in order, so waiting for the oldest is
// enough; heartbeats pass by.
func (t *Transport) work() {
	for {
		beats, head, ok := t.next()
		if !ok {
			return
		}
		for i := range beats {
			t.beat(&beats[i])
		}
		if head.answers == nil {
			continue
		}
		select {
		case r := <-head.answers:
			t.mu.Lock()
			t.pending.pop()
			t.mu.Unlock()
			t.answer(head.c, head.h, r, head.idle)
			t.m.answers.Put(head.answers)
		case <-t.wake:
		case <-t.m.done:
			return
		case <-t.done:
			t.abandon()
			return
		}
	}
}

// next takes the heartbeats that wait and looks at the oldest request; false
// when there is neither, and the goroutine must end.
func (t *Transport) next() (beats []beat, head inflight, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.spare[:cap(t.spare)])
	beats = t.beats
	t.beats, t.spare = t.spare[:0], t.beats
	if t.pending.len() > 0 {
		head = t.pending.first()
	}
	if len(beats) == 0 && head.answers == nil {
		t.running = false
		return nil, head, false
	}
	return beats, head, true
}

// beat runs raft's heartbeat handler. A raft that is shutting down ignores it.
func (t *Transport) beat(b *beat) {
	answers := t.m.answerChannel()
	fn := t.handler.Load()
	if fn == nil {
		b.c.refuse(b.h, statusNoGroup, "")
		return
	}
	(*fn)(raft.RPC{Command: b.request, RespChan: answers})
	select {
	case r := <-answers:
		t.answer(b.c, b.h, r, true)
		t.m.answers.Put(answers)
	default:
		b.c.refuse(b.h, statusNoGroup, "")
	}
}

func (t *Transport) answer(c *conn, h header, r raft.RPCResponse, patient bool) {
	if c == nil {
		return
	}
	if s, text := errorStatus(r.Error); s != statusOK {
		c.refuse(h, s, text)
		return
	}
	f := t.m.frames.get(responseBytesMax)
	var err error
	if f.buf, err = encodeResponse(f.buf, r.Response, t.m.self); err != nil {
		t.m.frames.put(f)
		c.refuse(h, statusError, err.Error())
		return
	}
	f.patient = patient
	c.respond(h, f)
}

// abandon answers what a closed group's raft no longer will.
func (t *Transport) abandon() {
	t.mu.Lock()
	pending, beats := t.pending, t.beats
	t.pending, t.beats, t.running = fifo[inflight]{}, nil, false
	t.mu.Unlock()
	for pending.len() > 0 {
		if in := pending.pop(); in.c != nil {
			in.c.refuse(in.h, statusNoGroup, "")
		}
	}
	for _, b := range beats {
		b.c.refuse(b.h, statusNoGroup, "")
	}
}
