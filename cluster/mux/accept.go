package mux

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	// handshakesMax bounds strangers: what has not proven to be a peer yet.
	handshakesMax = 128
	// acceptPauseMax is the longest pause after the system refuses a socket.
	acceptPauseMax = time.Second
)

// accept takes connections until the listener is closed.
func (m *Mux) accept() {
	pause := time.Duration(0)
	for {
		nc, err := m.listener.Accept()
		if m.closed() {
			if err == nil {
				_ = nc.Close()
			}
			return
		}
		if err != nil {
			pause = min(max(2*pause, 5*time.Millisecond), acceptPauseMax)
			m.logger.Error("accept of a peer went wrong", "err", err, "dur", pause)
			select {
			case <-time.After(pause):
			case <-m.done:
				return
			}
			continue
		}
		pause = 0
		if m.handshakes.Add(1) > handshakesMax || !m.spawn(func() { m.welcomed(nc) }) {
			m.handshakes.Add(-1)
			_ = nc.Close()
			m.metrics.busy.WithLabelValues("handshakes").Inc()
		}
	}
}

// welcomed runs an accepted connection from its first byte to its end.
func (m *Mux) welcomed(nc net.Conn) {
	plain := nc
	defer func() { _ = plain.Close() }()
	release, ok := m.adopt(plain)
	if !ok {
		m.handshakes.Add(-1)
		return
	}
	_ = plain.SetDeadline(time.Now().Add(m.cfg.DialTimeout))
	nc, err := m.serverTLS(plain)
	var h hello
	if err == nil {
		h, err = m.welcome(nc)
	}
	m.handshakes.Add(-1)
	_ = plain.SetDeadline(time.Time{})
	if err != nil {
		release()
		m.metrics.refused.Inc()
		if refused := (*RefusedError)(nil); errors.As(err, &refused) {
			m.logger.Warn("refused a connection", "addr", plain.RemoteAddr().String(), "err", err)
		} else {
			m.logger.Debug("handshake broke off", "addr", plain.RemoteAddr().String(), "err", err)
		}
		return
	}
	if h.purpose == purposeStream {
		defer release()
		m.serveStream(nc, h.dialer)
		return
	}
	c := newConn(m, nc, nil, h.dialer, h.cluster)
	registered := m.register(c)
	release()
	if registered {
		m.serveInbound(c)
	}
}

func (m *Mux) serverTLS(nc net.Conn) (net.Conn, error) {
	if m.cfg.TLSServer == nil {
		return nc, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.cfg.DialTimeout)
	defer cancel()
	t := tls.Server(nc, m.cfg.TLSServer)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, &RefusedError{Peer: nc.RemoteAddr().String(), Reason: fmt.Sprintf("tls: %v", err)}
	}
	return t, nil
}

// serveInbound answers the peer's requests until the connection ends. A peer
// that talks to us is one whose death we want to see: we connect to it too.
func (m *Mux) serveInbound(c *conn) {
	defer m.unregister(c)
	if p, err := m.peer(c.peer); err == nil {
		p.inbound.Add(1)
		defer p.inbound.Add(-1)
		m.Connect(c.peer)
	}
	if !m.spawn(c.write) {
		c.fail(ErrClosed)
		return
	}
	c.fail(c.read())
	m.logger.Debug("peer's connection ended", "peer", c.peer, "err", c.reason())
}
