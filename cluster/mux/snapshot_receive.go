package mux

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// installersMax bounds whose snapshot numbers a group remembers.
	installersMax = 64
	// ackBytes is how often the sender hears what raft has taken.
	ackBytes = 1 << 20
	// resumePatience is how long raft's main loop is kept waiting for the sender
	// to come back after its stream broke: it could be needed for a vote. It is
	// not kept at all when the sender's other connection is gone too.
	resumePatience = 3 * time.Second
	// resumeLook is how often that is looked at.
	resumeLook = 50 * time.Millisecond
)

// installID numbers a snapshot; within a session the higher one is the newer.
type installID struct {
	session, seq uint64
}

// installs is what a group knows of snapshots in both directions.
type installs struct {
	mu       sync.Mutex
	sending  map[raft.ServerID]*outgoing
	seen     map[string]installID // by sender
	incoming *incoming            // the last one
}

// send makes o the snapshot for target.
func (i *installs) send(target raft.ServerID, o *outgoing) {
	i.mu.Lock()
	old := i.sending[target]
	if i.sending == nil {
		i.sending = make(map[raft.ServerID]*outgoing)
	}
	i.sending[target] = o
	i.mu.Unlock()
	if old != nil {
		old.supersede()
	}
}

func (i *installs) sent(target raft.ServerID, o *outgoing) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.sending[target] == o {
		delete(i.sending, target)
	}
}

// begin makes in the group's snapshot unless it is an old one that comes late.
func (i *installs) begin(in *incoming) error {
	i.mu.Lock()
	last, known := i.seen[in.from]
	old := i.incoming
	if known && last.session == in.id.session && in.id.seq <= last.seq ||
		old != nil && !old.answered() && in.request.Term < old.request.Term {
		i.mu.Unlock()
		return ErrSuperseded
	}
	if i.seen == nil || len(i.seen) >= installersMax {
		i.seen = make(map[string]installID)
	}
	i.seen[in.from], i.incoming = in.id, in
	i.mu.Unlock()
	if old != nil {
		old.cancel(ErrSuperseded)
	}
	return nil
}

// find returns the snapshot that a sender goes on with, nil when it is another.
func (i *installs) find(from string, id installID) *incoming {
	i.mu.Lock()
	defer i.mu.Unlock()
	if in := i.incoming; in != nil && in.from == from && in.id == id {
		return in
	}
	return nil
}

// incoming is a snapshot on its way into raft. Raft reads it (Read), one
// goroutine per connection of the sender reports progress, and the goroutine of
// the first connection waits for raft's answer.
type incoming struct {
	m       *Mux
	from    string
	id      installID
	request *raft.InstallSnapshotRequest
	acks    chan struct{} // another ackBytes were taken
	done    chan struct{} // answer is there

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when stream or err change
	stream  *Stream       // nil: the sender is gone
	taken   int64
	told    int64
	err     error
	status  status
	answer  []byte
}

func (in *incoming) answered() bool {
	select {
	case <-in.done:
		return true
	default:
		return false
	}
}

// attach makes s the stream to read from and says where to go on.
func (in *incoming) attach(s *Stream) (taken int64, err error) {
	in.mu.Lock()
	old := in.stream
	if err = in.err; err == nil && !in.answered() {
		in.stream = s
		in.signal()
	}
	taken = in.taken
	in.mu.Unlock()
	if old != nil && err == nil {
		_ = old.nc.Close() // its own goroutine cleans up
	}
	return taken, err
}

// signal wakes the reader; mu is held.
func (in *incoming) signal() {
	close(in.changed)
	in.changed = make(chan struct{})
}

// cancel makes raft's next read fail.
func (in *incoming) cancel(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err != nil || in.answered() {
		return
	}
	in.err = err
	if in.stream != nil {
		_ = in.stream.nc.Close()
	}
	in.signal()
}

// Read implements io.Reader for raft: exactly the announced bytes, over as many
// connections as it takes.
func (in *incoming) Read(p []byte) (int, error) {
	deadline := time.Time{}
	for {
		in.mu.Lock()
		s, left, err, changed := in.stream, in.request.Size-in.taken, in.err, in.changed
		in.mu.Unlock()
		switch {
		case err != nil:
			return 0, err
		case left == 0:
			return 0, io.EOF
		case s == nil:
			if deadline.IsZero() {
				deadline = time.Now().Add(resumePatience)
			}
			if err := in.await(changed, deadline); err != nil {
				in.cancel(err)
			}
			continue
		}
		n, err := s.Read(p[:min(int64(len(p)), left)])
		if n > 0 && in.took(s, n) {
			return n, nil
		}
		if err != nil {
			in.detach(s)
		}
	}
}

// await waits for the sender to come back.
func (in *incoming) await(changed <-chan struct{}, deadline time.Time) error {
	look := time.NewTimer(resumeLook)
	defer look.Stop()
	select {
	case <-changed:
		return nil
	case <-in.m.done:
		return ErrClosed
	case <-look.C:
	}
	if !in.m.hears(in.from) || time.Now().After(deadline) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

func (in *incoming) detach(s *Stream) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stream == s {
		in.stream = nil
	}
	_ = s.nc.Close()
}

// took counts n bytes of s that raft has now. False: the sender has come back on
// another connection meanwhile and was told to go on from before them; they come
// again.
func (in *incoming) took(s *Stream, n int) bool {
	in.m.metrics.snapshotBytes.WithLabelValues("received").Add(float64(n))
	in.mu.Lock()
	if in.stream != s {
		in.mu.Unlock()
		return false
	}
	in.taken += int64(n)
	tell := in.taken-in.told >= ackBytes
	if tell {
		in.told = in.taken
	}
	in.mu.Unlock()
	if tell {
		select {
		case in.acks <- struct{}{}:
		default:
		}
	}
	return true
}

// hears reports whether peer has a connection to us.
func (m *Mux) hears(peer string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inbound[peer] != nil
}

// serveSnapshot passes a snapshot of peer to its group's raft and the answer back.
func (m *Mux) serveSnapshot(s *Stream, peer string, h header, first []byte) {
	t, in, answers, err := m.admitSnapshot(peer, h, first)
	var taken int64
	if err == nil {
		taken, err = in.attach(s)
	}
	if errors.Is(err, errKnown) {
		m.answerKnown(s, h, in.request)
		return
	}
	if err != nil {
		m.metrics.snapshots.WithLabelValues("received", "refused").Inc()
		m.logger.Info("refused a snapshot", "peer", peer, "group", h.group, "err", err)
		var text string
		switch h.status, text = errorStatus(err); {
		case errors.Is(err, ErrNoGroup):
			h.status, text = statusNoGroup, ""
		case errors.Is(err, errElse):
			h.status, text = statusWrongPeer, ""
		}
		_ = s.writeFrame(h, []byte(text))
		return
	}
	_ = s.writeFrame(h, binary.LittleEndian.AppendUint64(nil, uint64(taken)))
	if answers != nil {
		if err := t.push(raft.RPC{Command: in.request, Reader: in, RespChan: answers}); err != nil {
			in.finish(t, raft.RPCResponse{Error: err})
			answers = nil
		}
	}
	in.report(t, s, h, answers)
}

// admitSnapshot finds the snapshot that goes on, or begins one; answers is nil
// when raft has it already.
func (m *Mux) admitSnapshot(peer string, h header, first []byte) (*Transport, *incoming, chan raft.RPCResponse, error) {
	t := m.groupOf(h.group)
	if t == nil {
		return nil, nil, nil, ErrNoGroup
	}
	c := cursor{b: first}
	id, resume := installID{session: c.uint64(), seq: c.uint64()}, c.uint8()
	if c.err != nil {
		return nil, nil, nil, c.err
	}
	if resume != 0 {
		if in := t.installs.find(peer, id); in != nil {
			return t, in, nil, nil
		}
		return nil, nil, nil, ErrSuperseded
	}
	decoded, err := t.decode(kindSnapshot, c.b, []byte(peer))
	if err != nil {
		return nil, nil, nil, err
	}
	request, ok := decoded.(*raft.InstallSnapshotRequest)
	if !ok {
		return nil, nil, nil, errSpoke
	}
	if g := t.gate.Load(); g != nil {
		if g.Snapshot != nil {
			if err := g.Snapshot(request); err != nil {
				return nil, nil, nil, err
			}
		}
		if g.Known != nil && g.Known(request) {
			return nil, &incoming{request: request}, nil, errKnown
		}
	}
	in := &incoming{m: m, from: peer, id: id, request: request, acks: make(chan struct{}, 1),
		done: make(chan struct{}), changed: make(chan struct{})}
	return t, in, make(chan raft.RPCResponse, 1), t.installs.begin(in)
}

// errKnown: all that a snapshot holds is committed here.
var errKnown = errors.New("snapshot holds nothing new")

// answerKnown tells the sender of a snapshot that holds nothing new that the
// replica has it, without having read it.
func (m *Mux) answerKnown(s *Stream, h header, r *raft.InstallSnapshotRequest) {
	m.metrics.snapshots.WithLabelValues("received", "known").Inc()
	m.logger.Info("a snapshot holds nothing new", "peer", string(r.ID), "group", h.group, "index", r.LastLogIndex)
	answer, err := encodeResponse(nil, &raft.InstallSnapshotResponse{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: m.self, Addr: m.self}, Term: r.Term, Success: true,
	}, m.self)
	if err != nil || s.writeFrame(h, make([]byte, 8)) != nil { // from byte 0 on
		return
	}
	if s.writeFrame(h, answer) == nil {
		// Until the sender has heard it and closes: closing first, with bytes of its
		// in the socket, would reset the connection and take the answer along.
		_, _ = io.Copy(io.Discard, s)
	}
}

// push puts a request with an answer channel of its own before raft.
func (t *Transport) push(rpc raft.RPC) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrNoGroup
	}
	select {
	case t.consumer <- rpc:
		return nil
	default:
		return ErrBusy
	}
}

// report tells the sender on s how far raft is, a few times per StreamStall at
// least, and then its answer. With answers it stays until raft has answered,
// whatever becomes of s.
func (in *incoming) report(t *Transport, s *Stream, h header, answers <-chan raft.RPCResponse) {
	ticker := time.NewTicker(in.m.cfg.StreamStall/4 + 1)
	defer ticker.Stop()
	acks, ticks := in.acks, ticker.C
	working := h
	working.status = statusWorking
	for acks != nil || answers != nil {
		select {
		case r := <-answers:
			in.finish(t, r)
			answers = nil
		case <-in.done:
			h.status = in.status
			_ = s.writeFrame(h, in.answer)
			return
		case <-acks:
		case <-ticks:
		case <-t.done:
			in.cancel(ErrNoGroup)
			return
		case <-in.m.done:
			in.cancel(ErrClosed)
			return
		}
		in.mu.Lock()
		taken, mine := in.taken, in.stream == s
		in.mu.Unlock()
		if acks == nil || in.answered() {
			continue
		}
		if !mine || s.writeFrame(working, binary.LittleEndian.AppendUint64(nil, uint64(taken))) != nil {
			if acks != nil && !mine {
				select { // pass on what was for the other connection
				case in.acks <- struct{}{}:
				default:
				}
			}
			acks, ticks = nil, nil
		}
	}
}

// finish publishes raft's answer.
func (in *incoming) finish(t *Transport, r raft.RPCResponse) {
	var text string
	in.status, text = errorStatus(r.Error)
	in.answer = []byte(text)
	err := r.Error
	if err == nil {
		if in.answer, err = encodeResponse(nil, r.Response, in.m.self); err != nil {
			in.status, in.answer = statusError, []byte(err.Error())
		}
	}
	if done, ok := r.Response.(*raft.InstallSnapshotResponse); ok && err == nil && done.Success {
		if g := t.gate.Load(); g != nil && g.Installed != nil {
			g.Installed(in.request)
		}
	}
	in.m.metrics.snapshots.WithLabelValues("received", result(err)).Inc()
	close(in.done)
}
