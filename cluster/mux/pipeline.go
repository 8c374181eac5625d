package mux

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// pipelineInflightMax bounds Config.MaxInflight: more only moves the queue from
// the leader's log, where entries still gather, into the network.
const pipelineInflightMax = 64

// pipeline sends appends without waiting for each answer. It is bound to one
// connection: order is what makes it correct.
//
// An append holds a slot from AppendEntries until its future was taken off out,
// which raft shows by asking it for its request: so out always has room, and a
// reader never waits for raft. After the first append without success raft stops
// taking; the pipeline is broken then, so that no sender waits for a slot.
type pipeline struct {
	t      *Transport
	c      *conn
	to     uint32 // incarnation of the follower
	slots  chan struct{}
	out    chan raft.AppendFuture
	broken chan struct{}
	once   sync.Once
}

// AppendEntriesPipeline implements raft.Transport.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if t.m.cfg.MaxInflight < 2 {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	to, err := incarnationOf(id, target)
	if err != nil {
		return nil, err
	}
	c, err := t.m.connection(string(target))
	if err != nil {
		return nil, err
	}
	return &pipeline{t: t, c: c, to: to, slots: make(chan struct{}, t.m.cfg.MaxInflight),
		out: make(chan raft.AppendFuture, t.m.cfg.MaxInflight), broken: make(chan struct{})}, nil
}

// AppendEntries implements raft.AppendPipeline. It waits while MaxInflight
// appends are under way.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	select {
	case p.slots <- struct{}{}:
	case <-p.broken:
		return nil, raft.ErrPipelineShutdown
	}
	if err := p.t.fit(args); err != nil {
		<-p.slots
		return nil, err
	}
	f := &appendFuture{p: p, start: time.Now(), args: args, resp: resp, done: make(chan struct{})}
	f.call.view, f.call.complete = true, f.complete
	f.call.deadline = p.t.m.now() + int64(p.t.m.cfg.RPCTimeout)
	frame := p.t.encode(p.to, args)
	frame.patient = idle(args)
	if err := p.c.request(header{kind: kindAppend, group: p.t.group}, frame, &f.call, true); err != nil {
		<-p.slots
		return nil, fmt.Errorf("pipeline of group %d: %w", p.t.group, err)
	}
	return f, nil
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.out }

// Close implements raft.AppendPipeline: answers to come go nowhere.
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.broken) })
	return nil
}

// appendFuture is one append of a pipeline.
type appendFuture struct {
	call  call
	p     *pipeline
	start time.Time
	args  *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse
	err   error
	done  chan struct{}
	free  atomic.Bool // the slot was freed
}

// complete runs on the reader. Raft looks at Success, not at the error, so a
// failed append is one without success.
func (f *appendFuture) complete(body []byte, err error) {
	if err == nil {
		err = decodeResponse(f.resp, body, f.p.c.peerBytes)
	}
	if err != nil {
		*f.resp = raft.AppendEntriesResponse{}
	}
	if !f.resp.Success {
		_ = f.p.Close()
	}
	f.err = err
	close(f.done)
	select {
	case f.p.out <- f:
	default: // somebody asked the future before it was out, and freed the slot
		_ = f.p.Close()
	}
}

// taken frees the slot.
func (f *appendFuture) taken() {
	if !f.free.Swap(true) {
		<-f.p.slots
	}
}

// Error implements raft.AppendFuture; it waits for the answer.
func (f *appendFuture) Error() error {
	<-f.done
	f.taken()
	return f.err
}

// Start implements raft.AppendFuture.
func (f *appendFuture) Start() time.Time { return f.start }

// Request implements raft.AppendFuture.
func (f *appendFuture) Request() *raft.AppendEntriesRequest {
	f.taken()
	return f.args
}

// Response implements raft.AppendFuture.
func (f *appendFuture) Response() *raft.AppendEntriesResponse {
	f.taken()
	return f.resp
}
