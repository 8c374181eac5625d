package mux

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/serverid"
)

var (
	_ raft.Transport   = (*Transport)(nil)
	_ raft.WithPreVote = (*Transport)(nil) // or raft silently goes without
	_ raft.WithClose   = (*Transport)(nil)
)

// responseBytesMax is room for any answer of raft with the ids of a peer; longer
// ones (votes of protocol 0 with a peer list) grow the buffer.
const responseBytesMax = 128

// Consumer implements raft.Transport.
func (t *Transport) Consumer() <-chan raft.RPC { return t.consumer }

// LocalAddr implements raft.Transport: the address is the peer id.
func (t *Transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.m.cfg.Self) }

// EncodePeer implements raft.Transport. Raft asks for its own address before
// every request, hence the shared copy; nobody changes it.
func (t *Transport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte {
	if string(addr) == t.m.cfg.Self {
		return t.m.self
	}
	return []byte(addr)
}

// DecodePeer implements raft.Transport.
func (t *Transport) DecodePeer(b []byte) raft.ServerAddress {
	if string(b) == t.m.cfg.Self {
		return raft.ServerAddress(t.m.cfg.Self)
	}
	return raft.ServerAddress(b)
}

// SetHeartbeatHandler implements raft.Transport.
func (t *Transport) SetHeartbeatHandler(cb func(rpc raft.RPC)) {
	if cb == nil {
		t.handler.Store(nil)
		return
	}
	t.handler.Store(&cb)
}

// AppendEntries implements raft.Transport. Of more entries than fit a frame it
// sends the first ones and cuts args.Entries to them; raft goes on from there.
func (t *Transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := t.fit(args); err != nil {
		return err
	}
	if heartbeat(args) {
		return t.call(id, target, kindHeartbeat, args, resp)
	}
	if t.m.connected(string(target)) == nil {
		t.hold(string(target))
	}
	return t.call(id, target, kindAppend, args, resp)
}

// RequestVote implements raft.Transport.
func (t *Transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := t.abstains(); err != nil {
		return err
	}
	return t.call(id, target, kindVote, args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := t.abstains(); err != nil {
		return err
	}
	return t.call(id, target, kindPreVote, args, resp)
}

// TimeoutNow implements raft.Transport.
func (t *Transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.call(id, target, kindTimeoutNow, args, resp)
}

// fit cuts a to what a frame holds, one entry at least.
func (t *Transport) fit(a *raft.AppendEntriesRequest) error {
	room := t.m.cfg.FrameBytesMax - headerBytes - rpcHeaderBytesMax(&a.RPCHeader, a.Leader) - 6*uvarintBytesMax
	for i, e := range a.Entries {
		if room -= entryBytes(e); room >= 0 {
			continue
		}
		if i == 0 {
			return fmt.Errorf("append entry %d of group %d: %d bytes: %w", e.Index, t.group, len(e.Data)+len(e.Extensions), ErrTooLarge)
		}
		a.Entries = a.Entries[:i]
		return nil
	}
	return nil
}

// hold waits for a connection to target, AppendHold at most.
func (t *Transport) hold(target string) {
	p, err := t.m.peer(target)
	if err != nil {
		return
	}
	t.m.Connect(target)
	timer := time.NewTimer(t.m.cfg.AppendHold)
	defer timer.Stop()
	select {
	case <-p.connected():
	case <-timer.C:
	case <-t.hurry:
	case <-t.m.done:
	}
}

// syncCall is a call of a raft goroutine that waits; recycled.
type syncCall struct {
	call
	response any
	done     chan error
}

func (m *Mux) syncCall() *syncCall {
	if s, ok := m.syncCalls.Get().(*syncCall); ok {
		return s
	}
	s := &syncCall{done: make(chan error, 1)}
	s.view = true
	s.complete = func(body []byte, err error) {
		if err == nil {
			err = decodeResponse(s.response, body, s.conn.Load().peerBytes)
		}
		s.done <- err
	}
	return s
}

// incarnationOf is which incarnation of its replica a server is; raft does not
// know more of it than its id. One without an id is the first.
func incarnationOf(id raft.ServerID, target raft.ServerAddress) (uint32, error) {
	if id == "" || string(id) == string(target) {
		return serverid.First, nil
	}
	peer, n, err := serverid.Parse(id)
	if err == nil && peer != string(target) {
		err = fmt.Errorf("server id %q does not belong to peer %s", id, target)
	}
	return n, err
}

// call sends a request and waits for the answer, RPCTimeout at most (checked
// every PingInterval).
func (t *Transport) call(id raft.ServerID, target raft.ServerAddress, kind Kind, request, response any) error {
	to, err := incarnationOf(id, target)
	if err != nil {
		return err
	}
	c, err := t.m.connection(string(target))
	if err != nil {
		return err
	}
	s := t.m.syncCall()
	s.response, s.deadline = response, t.m.now()+int64(t.m.cfg.RPCTimeout)
	f := t.encode(to, request)
	f.patient = idle(request)
	if err = c.request(header{kind: kind, group: t.group}, f, &s.call, kind == kindAppend); err == nil {
		err = <-s.done
	}
	s.response = nil
	s.conn.Store(nil)
	t.m.syncCalls.Put(s)
	return err
}

// encode makes a request for an incarnation of a replica.
func (t *Transport) encode(to uint32, request any) *frame {
	f := t.m.frames.get(uvarintBytesMax + requestBytesMax(request))
	f.buf = encodeRequest(binary.AppendUvarint(f.buf, uint64(to)), request, t.m.self)
	return f
}

// connection returns the connection to a peer, waiting for QuickDial at most.
func (m *Mux) connection(id string) (*conn, error) {
	if c := m.connected(id); c != nil {
		return c, nil
	}
	type result struct {
		c   *conn
		err error
	}
	results := make(chan result, 1)
	if err := m.reach(id, func(c *conn, err error) { results <- result{c, err} }); err != nil {
		return nil, err
	}
	r := <-results
	return r.c, r.err
}
