package mux

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// readBufferBytes is a connection's read buffer: a full round of small frames in
// one system call.
const readBufferBytes = 64 << 10

// tap notes when the peer was last heard.
type tap struct{ c *conn }

func (t tap) Read(p []byte) (int, error) {
	n, err := t.c.nc.Read(p)
	if n > 0 {
		t.c.heard.Store(t.c.m.now())
		t.c.m.metrics.bytesIn.Add(float64(n))
	}
	return n, err
}

// errSpoke ends a connection whose peer breaks the protocol.
var errSpoke = errors.New("peer breaks the protocol")

// read runs until the connection ends and returns why.
func (c *conn) read() error {
	r := bufio.NewReaderSize(tap{c}, readBufferBytes)
	for {
		head, err := r.Peek(headerBytes)
		if err != nil {
			return err
		}
		n, err := frameLength(head, c.m.cfg.FrameBytesMax)
		if err != nil {
			return err
		}
		h, err := parseHeader(head)
		if err != nil {
			return err
		}
		if n <= readBufferBytes {
			err = c.readSmall(r, h, n)
		} else {
			err = c.readLarge(r, h, n)
		}
		if err != nil {
			return err
		}
		c.m.metrics.framesIn.Inc()
	}
}

// readSmall handles a frame inside the read buffer.
func (c *conn) readSmall(r *bufio.Reader, h header, n int) error {
	b, err := r.Peek(n)
	if err != nil {
		return err
	}
	if err := checkFrame(b, b[headerBytes:]); err != nil {
		return err
	}
	if err := c.dispatch(h, b[headerBytes:], false); err != nil {
		return err
	}
	_, err = r.Discard(n)
	return err
}

// readLarge gives a frame memory of its own.
func (c *conn) readLarge(r *bufio.Reader, h header, n int) error {
	var head [headerBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	body := make([]byte, n-headerBytes)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	if err := checkFrame(head[:], body); err != nil {
		return err
	}
	return c.dispatch(h, body, true)
}

// dispatch handles one frame; unless owned, body must be cloned to be kept. An
// error ends the connection.
func (c *conn) dispatch(h header, body []byte, owned bool) error {
	if h.incarnation != c.m.incarnation {
		c.m.metrics.dropped.WithLabelValues("incarnation").Inc()
		if !h.response {
			c.refuse(h, statusWrongPeer, "")
		}
		return nil
	}
	if h.response != c.dialed {
		return fmt.Errorf("frame of kind %d goes the wrong way: %w", h.kind, errSpoke)
	}
	if h.response {
		return c.answered(h, body, owned)
	}
	switch {
	case h.kind == kindPing:
		f := c.m.frames.get(len(body))
		f.buf = append(f.buf, body...)
		c.respond(h, f)
		return nil
	case !owned:
		body = bytes.Clone(body)
	}
	if h.kind >= KindApplication && h.kind <= kindMax {
		c.m.serve(c, h, body)
		return nil
	}
	return c.m.serveRaft(c, h, body)
}

// answered completes the call that h answers.
func (c *conn) answered(h header, body []byte, owned bool) error {
	if h.kind == kindPing {
		return c.pong(body)
	}
	cl := c.finish(h.request)
	if cl == nil {
		c.m.metrics.dropped.WithLabelValues("late answer").Inc()
		return nil
	}
	if h.status != statusOK {
		if h.status == statusBusy {
			c.m.metrics.busy.WithLabelValues("peer").Inc()
		}
		cl.complete(nil, remoteError(c.peer, h.status, body))
		return nil
	}
	if !cl.view && !owned {
		body = bytes.Clone(body)
	}
	cl.complete(body, nil)
	return nil
}

// rttShare: the smoothed round trip moves an eighth of the way (RFC 6298).
const rttShare = 8

func (c *conn) pong(body []byte) error {
	if len(body) != 8 {
		return fmt.Errorf("ping of %d bytes: %w", len(body), errSpoke)
	}
	rtt := max(c.m.now()-int64(binary.LittleEndian.Uint64(body)), 1)
	if old := c.rtt.Load(); old != 0 {
		rtt = old + (rtt-old)/rttShare
	}
	c.rtt.Store(max(rtt, 1))
	c.m.metrics.rtt.WithLabelValues(c.peer).Set(time.Duration(rtt).Seconds())
	return nil
}

func (c *conn) ping(now int64) {
	f := c.m.frames.get(8)
	f.buf = binary.LittleEndian.AppendUint64(f.buf, uint64(now))
	// A full control queue on a connection that moves nothing ends by silence.
	_ = c.request(header{kind: kindPing}, f, nil, false)
}
