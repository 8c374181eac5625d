package cluster_test

import (
	"context"
	"errors"
	"net"
	"sync"
)

// cable is all of one process's sockets of the mux. Cutting it is what the
// kernel does for a process that was killed: connections reset, dials refused.
type cable struct {
	net.Listener

	mu    sync.Mutex
	conns []net.Conn
	gone  bool
}

func newCable() (*cable, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	return &cable{Listener: l}, err
}

func (c *cable) Accept() (net.Conn, error) {
	nc, err := c.Listener.Accept()
	return c.keep(nc, err)
}

func (c *cable) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	return c.keep(nc, err)
}

func (c *cable) keep(nc net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		_ = nc.Close()
		return nil, errors.New("cable is cut")
	}
	c.conns = append(c.conns, nc)
	return nc, nil
}

func (c *cable) cut() {
	_ = c.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	for _, nc := range c.conns {
		_ = nc.(*net.TCPConn).SetLinger(0) // a reset, not a farewell
		_ = nc.Close()
	}
}
