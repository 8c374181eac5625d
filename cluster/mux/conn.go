package mux

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of one connection.
const (
	// pendingCallsMax is how many requests may wait for their answers: ten times
	// what 64 groups and a full publish window have under way.
	pendingCallsMax = 64 << 10
	// servedCallsMax is how many requests of a peer may wait for our handlers.
	servedCallsMax = pendingCallsMax
	// gatherDelay is how long heartbeats, appends without entries, and the answers
	// to both wait for others on a connection that is idle otherwise: hundreds of
	// groups send each a few of them per second, and a write and two wake-ups for
	// every one is most of what an idle node spends. Raft's timers are a hundred
	// times longer. Whatever else is sent takes them along at once.
	gatherDelay = 10 * time.Millisecond
	// controlPendingBytes is what may wait in the control queue: pings, votes
	// and answers of some 30 bytes each, for every group many times over.
	controlPendingBytes = 4 << 20
)

// call is a request that waits for its answer. Whoever removes it from
// conn.calls completes it; so it completes once.
type call struct {
	// complete gets the answer. It runs on the reader's goroutine, on the pings'
	// or on whoever ends the connection, and must not block.
	complete func(body []byte, err error)
	// view: body is valid only during complete (else it is complete's to keep).
	view     bool
	deadline int64 // Mux.now, 0 for none
	request  uint32
	conn     atomic.Pointer[conn]
}

// conn is one authenticated connection. The dialer sends requests and pings,
// the acceptor only answers.
type conn struct {
	m           *Mux
	nc          net.Conn
	peer        string
	peerBytes   []byte // peer, shared by every decoded message
	incarnation uint32 // of peer
	cluster     string // what peer said in the handshake
	owner       *peer  // of a connection we dialed, else nil
	dialed      bool

	heard  atomic.Int64 // Mux.now of the last byte read
	rtt    atomic.Int64 // smoothed round trip, ns; 0 before the first
	quiet  atomic.Bool  // Quiet was announced
	silent atomic.Bool  // Silent was announced
	served atomic.Int32 // requests of the peer not yet answered
	lastID atomic.Uint32

	mu        sync.Mutex
	work      sync.Cond // writer: something is queued, or the end
	space     sync.Cond // senders of raft appends: bytes were written, or the end
	queues    [classes]queue
	calls     map[uint32]*call
	dead      error
	gather    *time.Timer // wakes the writer for frames that are patient
	gathering bool        // it runs
}

// newConn; owner is nil for a connection that peer dialed.
func newConn(m *Mux, nc net.Conn, owner *peer, peer, cluster string) *conn {
	_, incarnation, _ := ParsePeer(peer) // the handshake has parsed it
	c := &conn{
		m: m, nc: nc, peer: peer, peerBytes: []byte(peer), incarnation: incarnation, cluster: cluster, owner: owner, dialed: owner != nil,
		calls: make(map[uint32]*call),
	}
	c.work.L, c.space.L = &c.mu, &c.mu
	c.heard.Store(m.now())
	return c
}

// queue holds the frames of one class in order.
type queue struct {
	frames fifo[*frame]
	bytes  int // of frames and of those being written
}

func (q *queue) push(f *frame) {
	q.frames.push(f)
	q.bytes += len(f.buf)
}

// pop moves frames of up to limit bytes, at least one, to batch.
func (q *queue) pop(batch []*frame, limit int) []*frame {
	for n := 0; q.frames.len() > 0; {
		f := q.frames.first()
		if n > 0 && n+len(f.buf) > limit {
			break
		}
		n += len(f.buf)
		batch = append(batch, f)
		q.frames.pop()
	}
	return batch
}

// full reports whether another n bytes are over limit; an empty queue takes any.
func (q *queue) full(n, limit int) bool { return q.bytes > 0 && q.bytes+n > limit }

func (c *conn) limit(cl class) int {
	switch cl {
	case classRaft:
		return c.m.cfg.RaftPendingBytes
	case classBulk:
		return c.m.cfg.BulkPendingBytes
	default:
		return controlPendingBytes
	}
}

// errDead is the inside of ErrNotConnected when a connection ended before the
// request was queued on it.
var errDead = fmt.Errorf("connection just ended: %w", ErrNotConnected)

// request queues f and registers cl under a new id (a nil cl wants no answer).
// With wait it waits for room until cl's deadline, else a full queue is ErrBusy.
// It takes f over in every case; on an error cl is not completed.
func (c *conn) request(h header, f *frame, cl *call, wait bool) error {
	h.incarnation = c.incarnation
	for {
		if cl != nil {
			if h.request = c.lastID.Add(1); h.request == 0 {
				continue
			}
		}
		f.seal(h)
		retry, err := c.enqueue(h, f, cl, wait)
		if err != nil {
			c.m.frames.put(f)
			return err
		}
		if !retry {
			return nil
		}
	}
}

func (c *conn) enqueue(h header, f *frame, cl *call, wait bool) (retry bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := &c.queues[f.class]
	for c.dead == nil && q.full(len(f.buf), c.limit(f.class)) {
		if !wait || cl != nil && cl.deadline != 0 && c.m.now() >= cl.deadline {
			c.m.metrics.busy.WithLabelValues("write queue").Inc()
			return false, fmt.Errorf("send to %s: %d bytes wait: %w", c.peer, q.bytes, ErrBusy)
		}
		c.space.Wait() // the pulse wakes it too, for the deadline
	}
	if c.dead != nil {
		return false, fmt.Errorf("send to %s: %w", c.peer, errDead)
	}
	if cl != nil {
		if c.calls[h.request] != nil {
			return true, nil // ids wrapped around onto one that still waits
		}
		if len(c.calls) >= pendingCallsMax {
			c.m.metrics.busy.WithLabelValues("calls").Inc()
			return false, fmt.Errorf("send to %s: %d calls wait: %w", c.peer, len(c.calls), ErrBusy)
		}
		cl.request = h.request
		cl.conn.Store(c)
		c.calls[h.request] = cl
	}
	c.push(q, f)
	return false, nil
}

// respond queues an answer. It never blocks; a peer that sends requests and does
// not read the answers loses the connection.
func (c *conn) respond(h header, f *frame) {
	h.response, h.incarnation = true, c.incarnation
	f.seal(h)
	c.mu.Lock()
	q := &c.queues[f.class]
	if c.dead != nil {
		c.mu.Unlock()
		c.m.frames.put(f)
		return
	}
	if q.full(len(f.buf), c.limit(f.class)) {
		c.mu.Unlock()
		c.m.frames.put(f)
		c.fail(fmt.Errorf("peer does not read its answers: %w", ErrBusy))
		return
	}
	c.push(q, f)
	c.mu.Unlock()
}

// push queues f and wakes the writer, at once or, for a patient frame, within
// gatherDelay; mu is held.
func (c *conn) push(q *queue, f *frame) {
	q.push(f)
	switch {
	case !f.patient:
		c.work.Signal()
	case c.gathering:
	case c.gather == nil:
		c.gathering = true
		c.gather = time.AfterFunc(gatherDelay, c.gathered)
	default:
		c.gathering = true
		c.gather.Reset(gatherDelay)
	}
}

// gathered ends the wait of patient frames.
func (c *conn) gathered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gathering = false
	c.work.Signal()
}

// refuse answers without executing.
func (c *conn) refuse(h header, s status, text string) {
	if h.request == 0 {
		return
	}
	f := c.m.frames.get(len(text))
	f.buf = append(f.buf, text...)
	h.status = s
	c.respond(h, f)
}

// finish takes the call an answer belongs to; nil when it timed out before.
func (c *conn) finish(request uint32) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := c.calls[request]
	delete(c.calls, request)
	return cl
}

// forget drops cl without completing it, and reports whether it was pending.
func (c *conn) forget(cl *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[cl.request] != cl {
		return false
	}
	delete(c.calls, cl.request)
	return true
}

// expire fails the calls whose deadline has passed and wakes senders that wait
// for room, so that they look at theirs.
func (c *conn) expire(now int64) {
	var late []*call
	c.mu.Lock()
	for id, cl := range c.calls {
		if cl.deadline != 0 && now >= cl.deadline {
			late = append(late, cl)
			delete(c.calls, id)
		}
	}
	c.space.Broadcast()
	c.mu.Unlock()
	for _, cl := range late {
		cl.complete(nil, fmt.Errorf("call %s: %w", c.peer, ErrTimeout))
	}
}

// fail ends the connection; the first caller's error is kept. Every pending call
// is completed here or was completed before.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.dead != nil {
		c.mu.Unlock()
		return
	}
	c.dead = err
	calls := c.calls
	c.calls = nil
	c.queues = [classes]queue{}
	if c.gather != nil {
		c.gather.Stop()
	}
	c.work.Broadcast()
	c.space.Broadcast()
	c.mu.Unlock()
	_ = c.nc.Close()
	if c.owner != nil {
		c.owner.lost(c)
	}
	lost := fmt.Errorf("call %s: %w (%w)", c.peer, ErrConnectionLost, err)
	for _, cl := range calls {
		cl.complete(nil, lost)
	}
}

// reason is why the connection ended.
func (c *conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}
