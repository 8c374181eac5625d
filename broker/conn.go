package broker

import (
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/session"
)

// conn is one client's connection: its carrier, the publishes that wait for an answer,
// and the bytes that wait for the socket.
//
// Three kinds of goroutine meet here. The reader, at most one at a time and none while
// an idle connection is parked, runs every handler. The pump, at
// most one at a time and only while there is something to do, writes to the
// socket, answers committed publishes in order and hands waiting ones over. The
// ingest path reports results from anywhere. mu guards what they share and is
// never held across I/O or a call out.
type conn struct {
	net.Conn
	b *Broker

	// Set by CONNECT, constant afterwards; expiry may be changed by DISCONNECT.
	client      string
	identity    Identity
	keepAlive   time.Duration
	expiry      time.Duration
	packetMax   uint32 // largest packet the client takes, 0 is no limit
	sendWindow  uint16 // QoS 1 and 2 messages that may be on the wire to the client
	aliasMax    uint16 // topic aliases that the client takes
	version     byte   // 3, 4 or 5
	clean       bool
	assigned    bool // the broker made up the client id
	problemInfo bool // the client wants reason strings
	shortened   bool // expiry is less than the client asked for
	hurried     bool // keepAlive is the server's, not what the client asked for

	// Owned by the reader. Instants are counted from the start of the broker.
	gated     bool          // holds the client id's gate
	goodbye   bool          // the client sent DISCONNECT 0x00: no will
	left      bool          // the session has been told that this connection ended
	early     bool          // let in before the shard of its session had answered
	seen      time.Duration // when the last packet was read
	woken     time.Duration // when the present goroutine began
	deadline  time.Duration // of reads, as this side has set it; zero is none
	partial   []byte        // read and not handled when the goroutine was given back
	aliases   []string
	will      *session.Message
	willDelay time.Duration

	ref     session.Ref        // of the session in its shard; while early, under the gate
	resumed *session.Connected // what there was of it, until the session is established
	session *live              // set when the session is established
	socket  socket             // nil: the connection keeps its goroutine while it waits

	mu          sync.Mutex
	changed     sync.Cond // room in the wait list, an empty FIFO, the end of the connection
	queued      bool      // for in-flight bytes
	armed       bool
	submitting  bool // the pump is handing publishes over: newer ones must not overtake
	pumping     bool
	writing     bool // the pump is in a write call
	closing     bool // nothing more is read
	silent      bool // nothing more may be said: the order of answers is broken, or the end has been said
	dead        bool // the socket is gone; what was handed over is still awaited
	over        bool // everything has ended: no pump may start
	parked      bool // nobody reads: the poller or an end wakes the connection
	told        bool // a DISCONNECT is among the bytes written
	fifo        publishList
	unrouted    *publish // the first in it that is not on its way to subscribers
	waiting     publishList
	waitBytes   int64
	grant       int64           // telemetry that may be handed over although others wait
	quota       int             // QoS 1 and 2 publishes not yet answered: what the receive maximum counts
	qos2        map[uint16]bool // ids of inbound QoS 2 publishes: false being committed, true answered with PUBREC
	received    int             // the true ones: exchanges that wait for PUBREL
	timer       *time.Timer
	alive       *time.Timer // watches the keep-alive of a parked connection
	cause       packets.Code
	out, spare  []byte
	shared      []insert // payloads that many subscribers wait for, in their places in out
	sharedBytes int
	outAliases  map[string]uint16
}

func newConn(b *Broker, nc net.Conn) *conn {
	c := &conn{Conn: nc, b: b}
	c.changed.L = &c.mu
	return c
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
	_ = c.Conn.SetReadDeadline(time.Unix(1, 0)) // wakes a reader; an error means that it is awake
	c.wakeLocked()
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
	if c.outBytesLocked() > 2*c.b.cfg.OutBytesMax {
		c.failLocked(codeSlow)
	}
	c.kickLocked()
	return nil
}

var codeSlow = packets.Code{Code: packets.ErrQuotaExceeded.Code, Reason: "too many unread bytes"}

// kickLocked starts the pump unless it runs. The connection, which Close waits for,
// outlives every pump.
func (c *conn) kickLocked() {
	if c.pumping || c.over {
		return
	}
	c.pumping = true
	c.b.running.Add(1)
	go c.pump()
}

// outBytesLocked is what waits for the socket.
func (c *conn) outBytesLocked() int { return len(c.out) + c.sharedBytes }
