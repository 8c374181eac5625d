package broker

import (
	"bytes"
	"net"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

const (
	closeTimeout   = time.Second     // for the last bytes to a client that is being closed
	lingerTimeout  = time.Second     // for it to read them: closing over unread input resets the connection
	lingerMax      = 5 * time.Second // altogether, for one that goes on answering what it was sent before
	lingerBytesMax = 32 << 10        // answers to all that a window holds, and more
	spareBytesMax  = 16 << 10        // a write buffer larger than this is not kept
)

// pump answers what is committed, admits what waits, writes what is gathered, and
// delivers to subscribers, until there is nothing left to do. While it writes, more
// gathers: a burst of commits costs a connection a few writes, not one per ack.
func (c *conn) pump() {
	defer c.b.running.Done()
	var answered, admitted, routes []*publish
	for {
		answered, admitted = answered[:0], admitted[:0]
		c.mu.Lock()
		c.submitting = false
		routes = c.routeLocked(routes[:0])
		answered, admitted = c.settleLocked(answered, admitted)
		out, shared := c.out, c.shared
		c.out, c.spare, c.shared, c.sharedBytes = c.spare[:0], nil, nil, 0
		if len(answered)+len(admitted)+len(routes)+len(out) == 0 {
			c.pumping = false
			if c.parked {
				c.out, c.spare = nil, nil // an idle connection keeps no buffers
			}
			c.changed.Broadcast()
			c.mu.Unlock()
			return
		}
		c.submitting = len(admitted) > 0
		c.writing = len(out) > 0
		if c.writing && !c.closing { // else failLocked has set a shorter one
			_ = c.Conn.SetWriteDeadline(time.Now().Add(c.b.cfg.WriteTimeout)) // a dead socket fails the write
		}
		dead := c.dead
		c.mu.Unlock()
		for _, p := range admitted {
			c.b.submit(p)
		}
		if len(admitted) > 0 {
			c.b.budget.wake() // there may be room for the next one
		}
		for _, p := range routes {
			c.b.route(p)
		}
		if len(out) > 0 {
			c.write(out, shared, dead)
		}
		c.conclude(answered)
	}
}

// settleLocked answers the committed head of the FIFO and moves waiting publishes
// up, as long as either makes room for the other.
func (c *conn) settleLocked(answered, admitted []*publish) ([]*publish, []*publish) {
	for progress := true; progress; {
		progress = false
		for c.fifo.n > 0 && c.fifo.first.state == publishRouted && c.answerLocked(c.fifo.first) {
			answered = append(answered, c.popLocked())
			progress = true
		}
		for c.waiting.n > 0 && !c.closing && !c.b.draining.Load() && c.roomLocked(c.waiting.first) {
			p := c.waiting.pop()
			c.waitBytes -= p.bytes
			c.b.waitBytes.Add(-p.bytes)
			c.admitLocked(p)
			if !p.local {
				admitted = append(admitted, p)
			}
			progress = true
		}
	}
	if len(answered)+len(admitted) > 0 {
		c.changed.Broadcast()
	}
	return answered, admitted
}

func (c *conn) write(out []byte, shared []insert, dead bool) {
	var err error
	if !dead {
		c.b.metrics.writes.Inc()
		err = writeWith(c.Conn, out, shared)
	}
	c.mu.Lock()
	c.writing = false
	if cap(out) <= spareBytesMax {
		c.spare = out[:0]
	}
	if err != nil {
		c.dead = true
		c.failLocked(packets.CodeSuccess)
	}
	c.changed.Broadcast()
	c.mu.Unlock()
}

// sharedBytesMin is from which length on a payload is written from where it is, and
// not copied for each subscriber: below it an element of the vector costs more.
const sharedBytesMin = 512

// insert is a payload to be written at a place of a buffer. It belongs to its message,
// which nobody changes.
type insert struct {
	at   int
	body []byte
}

// writeWith writes out with the inserts in their places, in one system call where the
// carrier is a plain socket. Others copy in any case: into records or frames.
func writeWith(nc net.Conn, out []byte, inserts []insert) error {
	if len(inserts) == 0 {
		_, err := nc.Write(out)
		return err
	}
	vector := make(net.Buffers, 0, 2*len(inserts)+1)
	from := 0
	for _, in := range inserts {
		vector = append(vector, out[from:in.at], in.body)
		from = in.at
	}
	if from < len(out) {
		vector = append(vector, out[from:])
	}
	if _, ok := nc.(*net.TCPConn); !ok {
		_, err := nc.Write(bytes.Join(vector, nil))
		return err
	}
	_, err := vector.WriteTo(nc)
	return err
}

// routeLocked lists, in the order of the FIFO, what is committed and owed to
// subscribers; it is answered when they have it or it is safe for them. Telemetry
// that nobody wants passes at once.
func (c *conn) routeLocked(list []*publish) []*publish {
	for p := c.unrouted; p != nil && p.state == publishDone; p = p.next {
		c.unrouted = p.next
		if p.wanted() {
			p.state = publishRouting
			list = append(list, p)
		} else {
			p.state = publishRouted
		}
	}
	return list
}

// conclude does what follows an answer: the latency is known, the drain may be over.
func (c *conn) conclude(answered []*publish) {
	if len(answered) == 0 {
		return
	}
	now := time.Now()
	for _, p := range answered {
		if p.QoS > 0 && !p.local && !p.plain {
			c.b.metrics.ackLatency.Observe(now.Sub(p.at).Seconds())
			c.b.acked.Add(1)
		}
	}
	c.b.answered(len(answered))
}

// finish ends the connection after its reader has come home: it says why, writes
// what is gathered, closes the socket, and waits for what was handed over, because
// subscribers are owed a publish whose publisher has gone.
func (c *conn) finish() {
	c.mu.Lock()
	c.closing = true
	if c.version == 5 && c.session != nil && c.cause.Code >= packets.ErrUnspecifiedError.Code && !c.told && !c.silent && !c.dead {
		c.out = c.appendDisconnect(c.out, c.cause)
		c.told = true
	}
	c.silent = true
	linger := c.told
	if len(c.out) > 0 {
		c.kickLocked()
	}
	for (c.writing || len(c.out) > 0) && !c.dead {
		c.changed.Wait()
	}
	c.mu.Unlock()
	if linger {
		c.linger()
	}
	_ = c.Conn.Close() // everything written was written; there is nobody left to tell

	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
	c.dropWaitingLocked()
	if c.fifo.n > 0 {
		c.kickLocked() // an unknown result at its head no longer blocks the rest
	}
	for c.fifo.n > 0 || c.pumping {
		c.changed.Wait()
	}
	c.over = true
	for _, t := range []*time.Timer{c.timer, c.alive} {
		if t != nil {
			t.Stop()
		}
	}
	c.out, c.spare, c.shared, c.aliases, c.outAliases, c.qos2 = nil, nil, nil, nil, nil, nil
}

// linger lets the client read the last bytes before the socket goes away.
func (c *conn) linger() {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	buf := make([]byte, 512)
	end := time.Now().Add(lingerMax)
	for left := lingerBytesMax; left > 0 && time.Now().Before(end); { // a peer that keeps sending is not waited for
		if c.Conn.SetReadDeadline(time.Now().Add(lingerTimeout)) != nil {
			return
		}
		n, err := c.Conn.Read(buf)
		if err != nil {
			return
		}
		left -= n
	}
}

// appendDisconnect encodes an MQTT 5 DISCONNECT.
func (c *conn) appendDisconnect(dst []byte, code packets.Code) []byte {
	reason := clip(code.Reason, reasonBytesMax)
	size := 1
	if c.problemInfo && reason != "" && (c.packetMax == 0 || 16+len(reason) < int(c.packetMax)) {
		size = 1 + sizeVarint(3+len(reason)) + 3 + len(reason)
	}
	dst = append(appendVarint(append(dst, packets.Disconnect<<4), size), code.Code)
	if size > 1 {
		dst = appendVarint(dst, 3+len(reason))
		dst = appendString(append(dst, packets.PropReasonString), reason)
	}
	return dst
}
