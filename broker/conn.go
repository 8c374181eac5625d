package broker

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/session"
)

// conn is one client's connection: the net.Conn that mochi reads and writes, the
// publishes that wait for an answer, and the bytes that wait for the socket.
//
// Three kinds of goroutine meet here. The reader (the one that serves the
// connection) runs mochi's read loop and every handler below it. The pump, at
// most one at a time and only while there is something to do, writes to the
// socket, answers committed publishes in order and hands waiting ones over. The
// ingest path reports results from anywhere. mu guards what they share and is
// never held across I/O or a call out.
type conn struct {
	net.Conn
	b *Broker

	// Set before mochi sees the connection, constant afterwards.
	client      string
	identity    Identity
	version     byte // 3, 4 or 5
	clean       bool
	assigned    bool // the broker made up the client id
	problemInfo bool // the client wants reason strings
	keepAlive   time.Duration
	packetMax   uint32 // largest packet the client takes, 0 is no limit
	sendWindow  int    // QoS 1 and 2 messages that may be on the wire to the client
	aliasMax    uint16 // topic aliases that the client takes
	expiry      time.Duration

	// Owned by the reader.
	hello     *packets.Packet // the CONNECT as mochi may see it, until it has
	head      []byte          // bytes served to mochi before the socket's: placeholder CONNECT, what came behind the real one
	aliases   []string
	refreshed time.Time // when the read deadline was last moved
	will      *session.Message
	willDelay time.Duration
	wills     []*session.Message // fell due while the gate was held
	gated     bool               // holds the client id's gate
	handling  bool               // inside a handler of ours: a panic is our bug, not hostile input
	goodbye   bool               // the client sent DISCONNECT 0x00: no will

	session *live // set when the session is established
	cl      *mqtt.Client
	left    bool // the session has been told that this connection ended

	mu         sync.Mutex
	changed    sync.Cond // room in the wait list, an empty FIFO, the end of the connection
	fifo       publishList
	waiting    publishList
	waitBytes  int64
	quota      int             // QoS 1 and 2 publishes not yet answered: what the receive maximum counts
	qos2       map[uint16]bool // ids of inbound QoS 2 publishes: false being committed, true answered with PUBREC
	received   int             // the true ones: exchanges that wait for PUBREL
	parked     bool            // in the queue for in-flight bytes
	timer      *time.Timer
	armed      bool
	submitting bool // the pump is handing publishes over: newer ones must not overtake
	pumping    bool
	writing    bool // the pump is in a write call
	closing    bool // nothing more is read
	silent     bool // nothing more may be said: the order of answers is broken, or the end has been said
	dead       bool // the socket is gone; what was handed over is still awaited
	over       bool // the serving goroutine is done: no pump may start
	cause      packets.Code
	told       bool // a DISCONNECT is among the bytes written
	out, spare []byte
	outAliases map[string]uint16
}

func newConn(b *Broker, nc net.Conn) *conn {
	c := &conn{Conn: nc, b: b}
	c.changed.L = &c.mu
	return c
}

// Read serves what was read ahead of the CONNECT handler, then the socket. A
// connection that is closing reads nothing more, so that its reader comes home.
func (c *conn) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		if c.head = c.head[n:]; len(c.head) == 0 {
			c.head = nil
		}
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		c.mu.Lock()
		if !c.closing { // not woken up on purpose
			c.failLocked(packets.ErrKeepAliveTimeout)
		}
		c.mu.Unlock()
	}
	return n, err
}

// Write takes one packet from mochi, which calls it with a lock held: it only
// appends. A DISCONNECT is for MQTT 5; 3.1.1 knows none from the server.
func (c *conn) Write(p []byte) (int, error) {
	if len(p) > 0 && p[0]>>4 == packets.Disconnect {
		if c.version < 5 {
			return len(p), nil
		}
		c.mu.Lock()
		c.told = true
		c.mu.Unlock()
	}
	return len(p), c.send(p)
}

// Close stops the reader. The socket is closed by the goroutine that serves the
// connection once what is gathered has been written, so that acks and the reason
// of a DISCONNECT are not lost.
func (c *conn) Close() error {
	c.fail(packets.CodeSuccess)
	return nil
}

// SetDeadline is what mochi calls before it reads each packet, with a time that is
// wrong above 43,690 s (its keep-alive arithmetic is 16 bits wide): it marks the
// packet boundary, the deadline is ours.
func (c *conn) SetDeadline(time.Time) error {
	c.refresh(time.Now())
	return nil
}

// SetReadDeadline and SetWriteDeadline are ours alone.
func (c *conn) SetReadDeadline(time.Time) error  { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// refresh gives the client one and a half keep-alive intervals for its next packet.
// The deadline is moved only when a sixteenth of an interval has passed, and is
// later by as much, so that it is never early and rarely costs anything.
func (c *conn) refresh(now time.Time) {
	slack := c.keepAlive / 16
	if c.keepAlive == 0 || now.Sub(c.refreshed) < slack {
		return
	}
	c.refreshed = now
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing {
		_ = c.Conn.SetReadDeadline(now.Add(c.keepAlive + c.keepAlive/2 + slack)) // a dead socket fails the next read
	}
}

// fail ends the connection with a reason, the first one that is given: the reader
// stops, what is gathered is written, an MQTT 5 client is told.
func (c *conn) fail(cause packets.Code) {
	c.mu.Lock()
	c.failLocked(cause)
	c.mu.Unlock()
}

func (c *conn) failLocked(cause packets.Code) {
	if c.closing {
		return
	}
	c.closing = true
	c.cause = cause
	_ = c.Conn.SetReadDeadline(time.Unix(1, 0))               // wakes the reader; an error means that it is awake
	_ = c.Conn.SetWriteDeadline(time.Now().Add(closeTimeout)) // the last bytes; a write under way is cut short too
	c.changed.Broadcast()
}

// send appends one packet for the socket. It never blocks; a client that lets
// twice the allowance pile up is cut off.
func (c *conn) send(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.silent || c.dead {
		return net.ErrClosed
	}
	c.out = append(c.out, p...)
	if len(c.out) > 2*c.b.cfg.OutBytesMax {
		c.failLocked(codeSlow)
	}
	c.kickLocked()
	return nil
}

var codeSlow = packets.Code{Code: packets.ErrQuotaExceeded.Code, Reason: "too many unread bytes"}

// kickLocked starts the pump unless it runs. The serving goroutine outlives every
// pump, so the group that Close waits for is never empty here.
func (c *conn) kickLocked() {
	if c.pumping || c.over {
		return
	}
	c.pumping = true
	c.b.running.Add(1)
	go c.pump()
}
