package broker

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/broker/poll"
)

// busyShare of IdleAfter: a connection that is woken again this soon keeps its
// goroutine, because waiting in a read is cheaper than being woken.
const busyShare = 5

// socket is what a connection needs so that it can wait without a goroutine.
type socket interface {
	// TryRead reads what is there, poll.ErrWouldBlock when nothing is.
	TryRead(p []byte) (int, error)
	// Arm asks to be woken once when there is something to read.
	Arm() error
	// Forget ends it.
	Forget()
}

// waker is a carrier that brings its own socket; connections inside a process do.
type waker interface {
	socket(ready func()) socket
}

// openSocket makes c able to wait without a goroutine where its carrier allows that.
func (c *conn) openSocket() error {
	if nc, ok := c.Conn.(waker); ok {
		c.socket = nc.socket(c.wake)
		return nil
	}
	if c.b.poller == nil {
		return nil
	}
	if nc, ok := c.Conn.(*net.TCPConn); ok {
		s, err := c.b.poller.Socket(nc, c.wake)
		if err != nil {
			return err
		}
		c.socket = s
		return nil
	}
	p := lowest(c.Conn)
	if p == nil {
		return nil
	}
	s, err := c.b.poller.Socket(p.TCPConn, c.wake)
	if err != nil {
		return err
	}
	p.socket = s
	c.socket = &layered{socket: s, top: c.Conn, below: p}
	return nil
}

var (
	errParked  = errors.New("waiting without a goroutine")
	errGoodbye = errors.New("client said good-bye")
	errEnding  = errors.New("connection is ending")
)

// run reads and handles packets until the connection has nothing to say, when it
// parks and is run again later, or ends. Exactly one goroutine is in here, or the
// connection is parked.
func (c *conn) run() {
	err := c.readPackets(c.b.elapsed())
	if errors.Is(err, errParked) {
		return
	}
	if c.socket != nil {
		c.socket.Forget()
	}
	c.b.end(c, err)
}

// readBuffers are the buffers of connections that are being read right now.
type readBuffers struct {
	pool sync.Pool
	size int
}

func (r *readBuffers) get() []byte {
	if b, ok := r.pool.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, r.size)
}

func (r *readBuffers) put(b []byte) {
	if cap(b) == r.size {
		b = b[:0]
		r.pool.Put(&b)
	}
}

func (c *conn) readPackets(now time.Duration) error {
	busy := now-c.woken < c.b.cfg.IdleAfter/busyShare
	c.woken = now
	in := c.b.buffers.get()
	defer func() { c.b.buffers.put(in) }()
	in = append(in, c.partial...)
	c.partial = nil
	if err := c.unblock(); err != nil {
		return err
	}
	for {
		used, err := c.handlePackets(in)
		if err != nil {
			return err
		}
		rest := copy(in, in[used:])
		if used > 0 {
			c.seen = c.b.elapsed()
			if rest == 0 && cap(in) > c.b.buffers.size { // one large packet does not pin a large buffer
				in = c.b.buffers.get()
			}
		}
		if in = in[:rest]; rest == cap(in) {
			in = append(in, 0)[:rest] // grows with what has arrived, not with what a length promises
		}
		n, err := c.readMore(in[rest:cap(in)], busy)
		switch {
		case n > 0: // TLS gives the last bytes and the end at once; the end comes again
		case errors.Is(err, poll.ErrWouldBlock):
			return c.park(in)
		case err != nil:
			return err
		}
		in = in[:rest+n]
	}
}

// handlePackets handles the whole packets at the head of in.
func (c *conn) handlePackets(in []byte) (used int, err error) {
	for used < len(in) {
		body, size, whole := frame(in[used:])
		if body < 0 {
			return used, packets.ErrMalformedPacket
		}
		if size > int(c.b.cfg.PacketBytesMax) {
			return used, packets.ErrPacketTooLarge
		}
		if !whole {
			break
		}
		if err := c.handle(in[used], in[used+body:used+size]); err != nil {
			return used, err
		}
		used += size
	}
	return used, nil
}

func (c *conn) handle(first byte, body []byte) error {
	var pk packets.Packet
	if err := c.decode(&pk, first, body); err != nil {
		return err
	}
	if code := packetFault(c.version, first, body); code != packets.CodeSuccess {
		return code
	}
	switch c.handlePacket(&pk) {
	case goodbye:
		return errGoodbye
	case refuse:
		return errEnding
	}
	return nil
}

// decode takes a packet apart. What outlives the packet (topics, payloads, filters)
// is sliced out of a copy of its own. The decoder indexes beyond some truncated
// packets; such a panic is malformed input.
func (c *conn) decode(pk *packets.Packet, first byte, body []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			c.b.log.Debug("decoder panicked on a packet", "client", c.client, "panic", r, "stack", string(debug.Stack()))
			err = packets.ErrMalformedPacket
		}
	}()
	pk.ProtocolVersion = c.version
	if err := pk.FixedHeader.Decode(first); err != nil {
		return err
	}
	pk.FixedHeader.Remaining = len(body)
	switch pk.FixedHeader.Type {
	case packets.Publish:
		return pk.PublishDecode(bytes.Clone(body))
	case packets.Puback:
		return pk.PubackDecode(body)
	case packets.Pubrec:
		return pk.PubrecDecode(body)
	case packets.Pubrel:
		return pk.PubrelDecode(body)
	case packets.Pubcomp:
		return pk.PubcompDecode(body)
	case packets.Subscribe:
		return pk.SubscribeDecode(bytes.Clone(body))
	case packets.Unsubscribe:
		return pk.UnsubscribeDecode(bytes.Clone(body))
	case packets.Disconnect:
		if c.version == 5 && len(body) == 1 { // a reason alone, which the decoder overlooks
			pk.ReasonCode = body[0]
			return nil
		}
		return pk.DisconnectDecode(body)
	case packets.Reserved:
		return packets.ErrMalformedPacket
	}
	return nil // without a body, or refused whatever is in it
}

// readMore reads into p. A connection that can wait without a goroutine gets
// poll.ErrWouldBlock when it should: at once if it is not busy, else after IdleAfter.
func (c *conn) readMore(p []byte, busy bool) (int, error) {
	if c.socket != nil && !busy {
		n, err := c.socket.TryRead(p)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, errEnding // only the end of the connection sets one here
		}
		return n, err
	}
	for {
		if err := c.setDeadline(c.b.elapsed()); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		c.mu.Lock()
		closing := c.closing
		c.mu.Unlock()
		switch {
		case closing:
			return 0, errEnding
		case c.overdue(c.b.elapsed()):
			return 0, packets.ErrKeepAliveTimeout
		case c.socket != nil:
			return 0, poll.ErrWouldBlock
		}
	}
}

// patience is how long the client may be silent: one and a half keep-alive intervals.
func (c *conn) patience() time.Duration { return c.keepAlive + c.keepAlive/2 }

func (c *conn) overdue(now time.Duration) bool {
	return c.keepAlive > 0 && now-c.seen >= c.patience()
}

// setDeadline bounds the next read. A connection that can park may wait for IdleAfter,
// up to twice of it; then the timer of park watches the keep-alive. Another one may
// wait for the keep-alive, up to a sixteenth longer. So the deadline is never early and
// a busy connection rarely pays for moving it.
func (c *conn) setDeadline(now time.Duration) error {
	var at time.Duration
	slack := c.b.cfg.IdleAfter
	switch {
	case c.socket != nil:
		at = now + 2*slack
	case c.keepAlive > 0:
		slack = c.keepAlive / 16
		at = c.seen + c.patience() + slack
	default:
		return nil
	}
	if at-c.deadline <= slack && c.deadline > now {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return errEnding
	}
	c.deadline = at
	return c.Conn.SetReadDeadline(c.b.started.Add(at))
}

// unblock takes back a deadline that an earlier run has left.
func (c *conn) unblock() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return errEnding
	}
	if c.deadline == 0 {
		return nil
	}
	c.deadline = 0
	return c.Conn.SetReadDeadline(time.Time{})
}

// park gives the goroutine back. What has arrived of a packet stays.
func (c *conn) park(rest []byte) error {
	if len(rest) > 0 {
		c.partial = bytes.Clone(rest)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return errEnding
	}
	if c.keepAlive > 0 {
		d := max(0, c.seen+c.patience()-c.b.elapsed())
		if c.alive == nil {
			c.alive = time.AfterFunc(d, c.onSilence)
		} else {
			c.alive.Reset(d)
		}
	}
	c.parked = true
	if !c.pumping {
		c.out, c.spare = nil, nil // nothing waits to be written: a pump would run
	}
	if err := c.socket.Arm(); err != nil {
		c.parked = false
		return fmt.Errorf("wait for packets: %w", err)
	}
	return errParked
}

// wake lets a parked connection read again.
func (c *conn) wake() {
	c.mu.Lock()
	c.wakeLocked()
	c.mu.Unlock()
}

func (c *conn) wakeLocked() {
	if c.parked {
		c.parked = false
		go c.run()
	}
}

// onSilence ends a parked connection whose client has said nothing for too long.
func (c *conn) onSilence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parked && c.overdue(c.b.elapsed()) {
		c.failLocked(packets.ErrKeepAliveTimeout)
	}
}
