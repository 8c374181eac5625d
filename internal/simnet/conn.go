package simnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// windowBytes is what may be under way in one direction: a socket's buffers.
const windowBytes = 1 << 20

// stream is one direction of a connection.
type stream struct {
	n    *Net
	link link

	mu      sync.Mutex
	pieces  []piece
	bytes   int
	last    time.Time // when the last piece arrives: order is kept
	closed  bool      // the writer has closed; what is under way still arrives
	reset   bool      // nothing arrives any more, the reader gets an error
	changed chan struct{}
}

type piece struct {
	data []byte
	at   time.Time
}

func (n *Net) pair(from, to string) (here, there *conn) {
	out := &stream{n: n, link: link{from, to}, changed: make(chan struct{})}
	in := &stream{n: n, link: link{to, from}, changed: make(chan struct{})}
	here = &conn{n: n, link: out.link, out: out, in: in}
	there = &conn{n: n, link: in.link, out: in, in: out}

	return here, there
}

// change wakes everybody who waits for the stream; mu is held.
func (s *stream) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *stream) put(p []byte) (room bool, changed <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.reset {
		return false, nil, syscall.EPIPE
	}
	if s.bytes > 0 && s.bytes+len(p) > windowBytes {
		return false, s.changed, nil
	}
	at := time.Now().Add(s.n.delay())
	if at.Before(s.last) {
		at = s.last
	}
	s.last = at
	s.pieces = append(s.pieces, piece{append([]byte(nil), p...), at})
	s.bytes += len(p)
	s.change()
	return true, nil, nil
}

// take reads what has arrived. Without anything it says what to wait for.
func (s *stream) take(p []byte) (n int, wait time.Duration, changed, opened <-chan struct{}, err error) {
	open, opened := s.n.open(s.link)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reset {
		return 0, 0, nil, nil, syscall.ECONNRESET
	}
	if !open {
		return 0, -1, s.changed, opened, nil
	}
	if len(s.pieces) == 0 {
		if s.closed {
			return 0, 0, nil, nil, io.EOF
		}
		return 0, -1, s.changed, opened, nil
	}
	first := &s.pieces[0]
	if wait := time.Until(first.at); wait > 0 {
		return 0, wait, s.changed, opened, nil
	}
	n = copy(p, first.data)
	if first.data = first.data[n:]; len(first.data) == 0 {
		s.pieces = s.pieces[1:]
	}
	s.bytes -= n
	s.change()
	return n, 0, nil, nil, nil
}

// conn is one end of a connection.
type conn struct {
	n       *Net
	link    link // what this end writes to
	out, in *stream

	mu                sync.Mutex
	closed            bool
	readAt, writeAt   time.Time // deadlines
	deadlines, ending chan struct{}
}

var _ net.Conn = (*conn)(nil)

// waits returns the deadline of one direction and channels that end a wait.
func (c *conn) waits(write bool) (deadline time.Time, moved, closed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deadlines == nil {
		c.deadlines = make(chan struct{})
	}
	if c.ending == nil {
		c.ending = make(chan struct{})
		if c.closed {
			close(c.ending)
		}
	}
	deadline = c.readAt
	if write {
		deadline = c.writeAt
	}
	return deadline, c.deadlines, c.ending
}

// wait blocks until something may have changed.
func (c *conn) wait(write bool, d time.Duration, changed, opened <-chan struct{}) error {
	deadline, moved, closed := c.waits(write)
	var due, arrives <-chan time.Time
	if !deadline.IsZero() {
		left := time.Until(deadline)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		t := time.NewTimer(left)
		defer t.Stop()
		due = t.C
	}
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		arrives = t.C
	}
	select {
	case <-due:
		return os.ErrDeadlineExceeded
	case <-closed:
		return net.ErrClosed
	case <-moved:
	case <-arrives:
	case <-changed:
	case <-opened:
	}
	return nil
}

func (c *conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *conn) Read(p []byte) (int, error) {
	for len(p) > 0 {
		if c.isClosed() {
			return 0, net.ErrClosed
		}
		n, wait, changed, opened, err := c.in.take(p)
		if n > 0 || err != nil {
			return n, err
		}
		if err := c.wait(false, wait, changed, opened); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

func (c *conn) Write(p []byte) (written int, err error) {
	for written < len(p) {
		if c.isClosed() {
			return written, net.ErrClosed
		}
		part := p[written:min(len(p), written+windowBytes)]
		room, changed, err := c.out.put(part)
		if err != nil {
			return written, err
		}
		if room {
			written += len(part)
			continue
		}
		if err := c.wait(true, -1, changed, nil); err != nil {
			return written, err
		}
	}
	return written, nil
}

// Close lets what is under way arrive, as TCP does.
func (c *conn) Close() error {
	if c.shut() {
		c.out.mu.Lock()
		c.out.closed = true
		c.out.change()
		c.out.mu.Unlock()
		c.in.mu.Lock()
		c.in.closed = true // writes of the peer fail
		c.in.change()
		c.in.mu.Unlock()
	}
	return nil
}

// end takes this end away with its host.
func (c *conn) end(reset bool) {
	if !c.shut() || !reset {
		return
	}
	for _, s := range []*stream{c.in, c.out} {
		s.mu.Lock()
		s.reset = true
		s.change()
		s.mu.Unlock()
	}
}

// shut marks this end as closed, once.
func (c *conn) shut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.closed = true
	if c.ending != nil {
		close(c.ending)
	}
	c.n.forget(c)
	return true
}

func (c *conn) LocalAddr() net.Addr  { return address(c.link.from) }
func (c *conn) RemoteAddr() net.Addr { return address(c.link.to) }

func (c *conn) SetDeadline(t time.Time) error {
	c.deadline(func() { c.readAt, c.writeAt = t, t })
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.deadline(func() { c.readAt = t })
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.deadline(func() { c.writeAt = t })
	return nil
}

func (c *conn) deadline(set func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	set()
	if c.deadlines != nil {
		close(c.deadlines)
	}
	c.deadlines = make(chan struct{})
}
