package broker

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// halfOpen is the connections that have not finished CONNECT, oldest first. When
// there are too many the oldest is closed: an honest client is through in
// milliseconds, one that holds a place is not.
type halfOpen struct {
	max   int
	mu    sync.Mutex
	conns list.List
}

func (h *halfOpen) add(nc net.Conn) *list.Element {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conns.Len() >= h.max {
		oldest := h.conns.Remove(h.conns.Front())
		_ = oldest.(net.Conn).Close() // its reader finds out
	}
	return h.conns.PushBack(nc)
}

func (h *halfOpen) remove(e *list.Element) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns.Remove(e)
}

func (h *halfOpen) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for e := h.conns.Front(); e != nil; e = e.Next() {
		_ = e.Value.(net.Conn).Close() // its reader finds out
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

// serve is the life of one connection; everything the connection started has ended
// when it returns.
func (b *Broker) serve(ctx context.Context, nc net.Conn, e *Endpoint) {
	defer b.running.Done()
	c := newConn(b, nc)
	place := b.halfOpen.add(nc)
	code, err := b.handshake(ctx, c, e)
	b.halfOpen.remove(place)
	if err != nil || code != packets.CodeSuccess {
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
	err = b.establish(c)
	if c.session != nil && !c.left { // mochi gave up before or without its own end
		c.lockGate()
		b.leave(c, true)
		if cl, ok := b.mqtt.Clients.Get(c.client); ok && cl == c.cl {
			b.mqtt.Clients.Delete(c.client)
		}
	}
	c.unlockGate()
	c.explain(err)
	b.log.Debug("connection ended", "client", c.client, "remote", nc.RemoteAddr().String(), "reason", c.cause.Reason, "err", err)
	b.connected.Add(-1)
	c.finish()
	b.mu.Lock()
	delete(b.conns, c)
	b.mu.Unlock()
}

// handshake opens the layers below MQTT, then reads and judges the CONNECT, all
// under one deadline.
func (b *Broker) handshake(ctx context.Context, c *conn, e *Endpoint) (packets.Code, error) {
	if err := c.Conn.SetDeadline(time.Now().Add(b.cfg.ConnectTimeout)); err != nil {
		return packets.CodeSuccess, fmt.Errorf("set connect deadline: %w", err)
	}
	carrier, err := e.open(ctx, c.Conn)
	if err != nil {
		return packets.CodeSuccess, err
	}
	c.Conn = carrier
	pk, err := c.readConnect()
	if err != nil {
		return packets.CodeSuccess, err
	}
	if code := b.admit(ctx, c, &pk); code != packets.CodeSuccess {
		return code, nil
	}
	if err := c.Conn.SetDeadline(time.Time{}); err != nil {
		return packets.CodeSuccess, fmt.Errorf("clear connect deadline: %w", err)
	}
	return packets.CodeSuccess, nil
}

// turnAway answers a CONNECT that is refused; what was no CONNECT gets no answer.
func (b *Broker) turnAway(c *conn, code packets.Code, err error) {
	label := "malformed"
	if err == nil {
		label = reasonLabel(code)
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

// establish runs mochi on the connection until it ends. mochi's decoder indexes
// beyond a truncated SUBSCRIBE; such a panic is malformed input. One of our own
// handlers is not hidden.
func (b *Broker) establish(c *conn) (err error) {
	defer func() {
		if c.handling {
			return
		}
		if r := recover(); r != nil {
			b.log.Debug("decoder panicked on a packet", "client", c.client, "panic", r, "stack", string(debug.Stack()))
			err = packets.ErrMalformedPacket
		}
	}()
	return b.mqtt.EstablishConnection(listenerID, c)
}

const listenerID = "sluice"

// explain finds the cause of an end that nobody has given one for: what mochi did
// not want to decode.
func (c *conn) explain(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var code packets.Code
	if c.cause.Code == 0 && errors.As(err, &code) && code.Code >= packets.ErrUnspecifiedError.Code && code != packets.ErrRejectPacket {
		c.cause = code
	}
	if c.cause.Code != 0 {
		c.b.metrics.disconnects.WithLabelValues(reasonLabel(c.cause)).Inc()
	}
}

// newMochi configures the embedded server. Serve is never called: its tickers copy
// all clients every second and stop the world for memory statistics.
func newMochi(cfg Config, options *mqtt.Options) *mqtt.Server {
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumPacketSize = cfg.PacketBytesMax
	caps.ReceiveMaximum = uint16(cfg.Window)
	caps.TopicAliasMaximum = 0          // aliases are resolved here
	caps.MaximumClientWritesPending = 1 // deliveries do not go through mochi
	caps.MaximumSessionExpiryInterval = uint32(min(cfg.SessionExpiryMax/time.Second, 1<<32-1))
	options.Capabilities = caps
	options.ClientNetReadBufferSize = cfg.ReadBufferBytes
	options.ClientNetWriteBufferSize = 1 // one Write per packet: conn.Write looks at its first byte, and gathers itself
	return mqtt.New(options)
}
