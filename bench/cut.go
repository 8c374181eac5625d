package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// cut is a TCP relay that can be cut: to its clients the server is gone then, as
// with a host that has lost its power and whose address refuses connections.
type cut struct {
	target string
	listen net.Listener
	done   sync.WaitGroup

	mu    sync.Mutex
	away  bool
	conns map[net.Conn]struct{}
}

// newCut relays a free port of loopback to target.
func newCut(target string) (*cut, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the database's clients: %w", err)
	}
	c := &cut{target: target, listen: l, conns: map[net.Conn]struct{}{}}
	c.done.Go(c.serve)
	return c, nil
}

func (c *cut) addr() string { return c.listen.Addr().String() }

func (c *cut) serve() {
	for {
		in, err := c.listen.Accept()
		if err != nil {
			return // closed
		}
		c.done.Go(func() { c.relay(in) })
	}
}

func (c *cut) relay(in net.Conn) {
	defer c.drop(in)
	if !c.hold(in) {
		return
	}
	var d net.Dialer
	ctx, cancel := context.WithTimeout(context.Background(), dialMax)
	out, err := d.DialContext(ctx, "tcp", c.target)
	cancel()
	if err != nil {
		return // the client sees its connection end, as it should
	}
	defer c.drop(out)
	if !c.hold(out) {
		return
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(in, out) // ends with either side; there is nobody to tell
		c.drop(in)
	}()
	_, _ = io.Copy(out, in) // likewise
	c.drop(out)
	<-back
}

// hold keeps a connection for set; false while the server is away.
func (c *cut) hold(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away {
		return false
	}
	c.conns[conn] = struct{}{}
	return true
}

func (c *cut) drop(conn net.Conn) {
	c.mu.Lock()
	delete(c.conns, conn)
	c.mu.Unlock()
	_ = conn.Close() // often the second time
}

// set takes the server away or gives it back.
func (c *cut) set(away bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = away
	if !away {
		return
	}
	for conn := range c.conns {
		_ = conn.Close() // the relay ends and forgets it
	}
}

func (c *cut) close() error {
	err := c.listen.Close()
	c.set(true)
	c.done.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
