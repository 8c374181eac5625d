package mux

import (
	"context"
	"fmt"
	"sync/atomic"
)

// Handler serves requests of one kind. It runs on the goroutine that reads from
// the peer and must not block: what takes time goes to a goroutine or queue of
// the handler's owner. body is the handler's to keep. reply must be called
// exactly once, from any goroutine; it never blocks, a second call does nothing,
// and for a one-way message it does nothing. The error reaches the caller as a
// RemoteError, except ErrBusy, which stays ErrBusy.
type Handler func(from string, group uint32, body []byte, reply func(body []byte, err error))

// Handle registers the handler of an application kind (64..127); nil removes it.
// Another kind is a mistake of the program: it is logged and has no handler.
func (m *Mux) Handle(kind Kind, h Handler) {
	switch err := checkKind(kind); {
	case err != nil:
		m.logger.Error("handler not registered", "err", err)
	case h == nil:
		m.handlers[kind-KindApplication].Store(nil)
	default:
		m.handlers[kind-KindApplication].Store(&h)
	}
}

func checkKind(kind Kind) error {
	if kind < KindApplication || kind > kindMax {
		return fmt.Errorf("kind %d is not in %d..%d", kind, KindApplication, kindMax)
	}
	return nil
}

// serve runs the handler of a request.
func (m *Mux) serve(c *conn, h header, body []byte) {
	handler := m.handlers[h.kind-KindApplication].Load()
	if handler == nil {
		c.refuse(h, statusNoHandler, "")
		return
	}
	if h.request == 0 {
		(*handler)(c.peer, h.group, body, func([]byte, error) {})
		return
	}
	if c.served.Add(1) > servedCallsMax {
		c.served.Add(-1)
		m.metrics.busy.WithLabelValues("handlers").Inc()
		c.refuse(h, statusBusy, "")
		return
	}
	r := &replier{c: c, h: h}
	(*handler)(c.peer, h.group, body, r.reply)
}

// replier answers one request once.
type replier struct {
	c       *conn
	h       header
	replied atomic.Bool
}

func (r *replier) reply(body []byte, err error) {
	if r.replied.Swap(true) {
		return
	}
	m := r.c.m
	r.c.served.Add(-1)
	if len(body) > m.cfg.FrameBytesMax-headerBytes {
		err = fmt.Errorf("answer of %d bytes: %w", len(body), ErrTooLarge)
	}
	if s, text := errorStatus(err); s != statusOK {
		r.c.refuse(r.h, s, text)
		return
	}
	f := m.frames.get(len(body))
	f.buf = append(f.buf, body...)
	r.c.respond(r.h, f)
}

// Go sends a request. done is called exactly once, with the answer or an error,
// possibly before Go returns, otherwise on a goroutine of the mux, as a rule the
// one that reads from the peer: it must not block nor call Close. body may be reused after Go returns,
// resp is done's to keep. The group is passed to the handler as it is.
//
// A request never times out by itself; it fails when the connection ends.
func (m *Mux) Go(peer string, kind Kind, group uint32, body []byte, done func(resp []byte, err error)) {
	m.start(peer, kind, group, body, &call{complete: done})
}

// start sends a request; cl.complete is called exactly once.
func (m *Mux) start(peer string, kind Kind, group uint32, body []byte, cl *call) {
	f, err := m.encode(peer, kind, body)
	if err != nil {
		cl.complete(nil, err)
		return
	}
	h := header{kind: kind, group: group}
	if c := m.connected(peer); c != nil {
		if err := c.request(h, f, cl, false); err != nil {
			cl.complete(nil, err)
		}
		return
	}
	err = m.reach(peer, func(c *conn, err error) {
		if err == nil {
			err = c.request(h, f, cl, false)
		}
		if err != nil {
			cl.complete(nil, err)
		}
	})
	if err != nil {
		cl.complete(nil, err)
	}
}

// encode copies body into a frame.
func (m *Mux) encode(peer string, kind Kind, body []byte) (*frame, error) {
	if err := checkKind(kind); err != nil {
		return nil, err
	}
	if len(body) > m.cfg.FrameBytesMax-headerBytes {
		return nil, fmt.Errorf("send %d bytes to %s, at most %d: %w", len(body), peer, m.cfg.FrameBytesMax-headerBytes, ErrTooLarge)
	}
	f := m.frames.get(len(body))
	f.buf = append(f.buf, body...)
	return f, nil
}

// Call sends a request and waits for the answer or the end of ctx; then the
// peer may still execute it.
func (m *Mux) Call(ctx context.Context, peer string, kind Kind, group uint32, body []byte) ([]byte, error) {
	type answer struct {
		body []byte
		err  error
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("call %s: %w", peer, err)
	}
	answers := make(chan answer, 1)
	cl := &call{complete: func(body []byte, err error) { answers <- answer{body, err} }}
	m.start(peer, kind, group, body, cl)
	select {
	case a := <-answers:
		return a.body, a.err
	case <-ctx.Done():
		if c := cl.conn.Load(); c != nil {
			c.forget(cl)
		}
		return nil, fmt.Errorf("call %s: %w", peer, context.Cause(ctx))
	}
}

// Send sends a message that has no answer. An error means that it was not sent;
// nil does not mean that it arrives. Without a connection the message waits for
// the attempt to connect, as a call would, but Send does not.
func (m *Mux) Send(peer string, kind Kind, group uint32, body []byte) error {
	f, err := m.encode(peer, kind, body)
	if err != nil {
		return err
	}
	h := header{kind: kind, group: group}
	if c := m.connected(peer); c != nil {
		return c.request(h, f, nil, false)
	}
	sent := make(chan error, 1)
	err = m.reach(peer, func(c *conn, err error) {
		if err == nil {
			err = c.request(h, f, nil, false)
		}
		sent <- err
	})
	if err != nil {
		return err
	}
	select {
	case err := <-sent:
		return err
	default:
		return nil
	}
}
