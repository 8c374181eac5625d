package broker

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// halfOpen is the connections that have not finished CONNECT, oldest first. When
// there are too many, no more are accepted for a moment; then the oldest is closed: an
// honest client is through in milliseconds, one that holds a place is not.
type halfOpen struct {
	max   int
	freed chan struct{} // something has been removed
	mu    sync.Mutex
	conns list.List // of entrant
}

type entrant struct {
	nc net.Conn
	at time.Time
}

// halfOpenMin is how long a connection keeps its place: while a whole fleet comes back,
// the others wait in the kernel's queue and are not closed for being many.
const halfOpenMin = time.Second

func (h *halfOpen) add(nc net.Conn) *list.Element {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conns.Len() >= h.max {
		oldest := h.conns.Remove(h.conns.Front())
		_ = oldest.(entrant).nc.Close() // its reader finds out
	}
	return h.conns.PushBack(entrant{nc, time.Now()})
}

// room waits until there is a place, or the oldest has had its time.
func (h *halfOpen) room(ctx context.Context) {
	for {
		h.mu.Lock()
		d := time.Duration(0)
		if h.conns.Len() >= h.max {
			d = halfOpenMin - time.Since(h.conns.Front().Value.(entrant).at)
		}
		h.mu.Unlock()
		if d <= 0 {
			return
		}
		timer := time.NewTimer(d)
		select {
		case <-h.freed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

func (h *halfOpen) remove(e *list.Element) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns.Remove(e)
	select {
	case h.freed <- struct{}{}:
	default:
	}
}

func (h *halfOpen) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for e := h.conns.Front(); e != nil; e = e.Next() {
		_ = e.Value.(entrant).nc.Close() // its reader finds out
	}
}

func (h *halfOpen) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.conns.Len()
}

// accept serves the connections of l until it is closed.
func (b *Broker) accept(ctx context.Context, l net.Listener, e *Endpoint) {
	defer b.running.Done()
	pause := time.Duration(0)
	for {
		b.halfOpen.room(ctx)
		nc, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second) // out of descriptors, most likely: others must end first
			b.log.Warn("accept connection", "err", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			continue
		}
		pause = 0
		if !b.track() {
			_ = nc.Close() // the broker is closing
			return
		}
		go b.serve(ctx, nc, e)
	}
}

// serve begins a connection; the end of it is in end, on whatever goroutine reads
// the connection then.
func (b *Broker) serve(ctx context.Context, nc net.Conn, e *Endpoint) {
	c := newConn(b, nc)
	place := b.halfOpen.add(nc)
	code, err := b.handshake(ctx, c, e, place)
	b.halfOpen.remove(place)
	if err != nil || code != packets.CodeSuccess {
		defer b.running.Done()
		b.leave(c)
		c.unlockGate()
		b.turnAway(c, code, err)
		return
	}
	b.connected.Add(1)
	b.mu.Lock()
	b.conns[c] = struct{}{}
	stopping := b.closed
	b.mu.Unlock()
	if stopping || b.draining.Load() {
		c.fail(packets.ErrServerShuttingDown)
	}
	present := b.enter(c)
	if err := c.send(c.appendWelcome(nil, present)); err != nil {
		b.log.Debug("connection ended before its CONNACK", "client", c.client, "err", err)
	}
	c.unlockGate()
	c.session.begin(b, c)
	c.run()
}

// end concludes a connection; everything that it started has ended when it returns.
func (b *Broker) end(c *conn, err error) {
	defer b.running.Done()
	c.lockGate()
	b.leave(c)
	c.unlockGate()
	c.explain(err)
	b.log.Debug("connection ended", "client", c.client, "remote", c.RemoteAddr().String(), "reason", c.cause.Reason, "err", err)
	b.connected.Add(-1)
	c.finish()
	b.mu.Lock()
	delete(b.conns, c)
	b.mu.Unlock()
}

// handshake opens the layers below MQTT, then reads and judges the CONNECT, all
// under one deadline.
func (b *Broker) handshake(ctx context.Context, c *conn, e *Endpoint, place *list.Element) (packets.Code, error) {
	if err := c.Conn.SetDeadline(time.Now().Add(b.cfg.ConnectTimeout)); err != nil {
		return packets.CodeSuccess, fmt.Errorf("set connect deadline: %w", err)
	}
	carrier, err := e.open(ctx, c.Conn)
	if err != nil {
		return packets.CodeSuccess, err
	}
	c.Conn = carrier
	pk, fault, err := c.readConnect()
	if err != nil {
		return packets.CodeSuccess, err
	}
	b.halfOpen.remove(place) // it has said who it is: now it waits its turn, and is not pushed out
	if code := b.admit(ctx, c, &pk, fault); code != packets.CodeSuccess {
		return code, nil
	}
	c.probe()
	c.seen = b.elapsed()
	c.woken = c.seen // it has more to say, as a rule: its subscriptions
	if err := c.Conn.SetDeadline(time.Time{}); err != nil {
		return packets.CodeSuccess, fmt.Errorf("clear connect deadline: %w", err)
	}
	return packets.CodeSuccess, c.openSocket()
}

// probes are for a client without a keep-alive, whose end nobody would notice otherwise: less often than
// most middleboxes forget an idle connection.
var probes = net.KeepAliveConfig{Enable: true, Idle: 4 * time.Minute, Interval: 30 * time.Second, Count: 4}

// probe lets the kernel look after a client that has no keep-alive. Every other one says itself that it is
// there: a probe every 15 s, as is usual, would wake the radio of a device that has asked to be left alone, and cost the
// node work that grows with the connections.
func (c *conn) probe() {
	if c.keepAlive > 0 {
		return
	}
	nc, ok := c.Conn.(*net.TCPConn)
	if p := lowest(c.Conn); p != nil {
		nc, ok = p.TCPConn, true
	}
	if ok {
		_ = nc.SetKeepAliveConfig(probes) // fails for a connection that has ended
	}
}

// turnAway answers a CONNECT that is refused; what was no CONNECT gets no answer.
func (b *Broker) turnAway(c *conn, code packets.Code, err error) {
	label := "malformed"
	if err == nil {
		label = reasonLabel(code)
		_ = c.Conn.SetDeadline(time.Now().Add(closeTimeout)) // that of CONNECT may be over, if it was spent on waiting for the shard
		if _, werr := c.Conn.Write(c.appendConnack(nil, code)); werr == nil {
			c.linger()
		}
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		label = "timeout"
	}
	b.metrics.refused.WithLabelValues("connection", label).Inc()
	b.log.Debug("connection refused", "client", c.client, "remote", c.RemoteAddr().String(), "reason", code.Reason, "err", err)
	_ = c.Conn.Close() // refused: nothing depends on it
}

// explain finds the cause of an end that nobody has given one for: a packet that
// could not be decoded, a client that has fallen silent.
func (c *conn) explain(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var code packets.Code
	if c.cause.Code == 0 && errors.As(err, &code) && code.Code >= packets.ErrUnspecifiedError.Code {
		c.cause = code
	}
	if c.cause.Code != 0 {
		c.b.metrics.disconnects.WithLabelValues(reasonLabel(c.cause)).Inc()
	}
}
