package pgtest

import (
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Proxy stands between a client and its server and cuts connections.
type Proxy struct {
	listener net.Listener
	target   string
	wg       sync.WaitGroup
	mu       sync.Mutex
	open     map[net.Conn]bool
	up, down atomic.Int64 // bytes that may still pass towards the server and back; < 0: any number
	Passed   atomic.Int64 // bytes that went towards the server
	Answered atomic.Int64 // bytes that came back
}

// NewProxy listens until the test ends.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{listener: l, target: target, open: map[net.Conn]bool{}}
	p.Allow(-1, -1)
	p.wg.Go(p.serve)
	tb.Cleanup(func() {
		_ = l.Close()
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// URL is the server's with the proxy in the way.
func (p *Proxy) URL(url string) string {
	return strings.Replace(url, p.target, p.listener.Addr().String(), 1)
}

// Allow lets that many more bytes pass, then cuts every connection.
func (p *Proxy) Allow(up, down int64) {
	p.up.Store(up)
	p.down.Store(down)
}

func (p *Proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.open[client], p.open[server] = true, true
		p.mu.Unlock()
		p.wg.Go(func() { p.pump(server, client, &p.up, &p.Passed) })
		p.wg.Go(func() { p.pump(client, server, &p.down, &p.Answered) })
	}
}

func (p *Proxy) pump(to, from net.Conn, left, passed *atomic.Int64) {
	defer func() {
		for _, c := range []net.Conn{to, from} {
			_ = c.Close()
			p.mu.Lock()
			delete(p.open, c)
			p.mu.Unlock()
		}
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if may := take(left, int64(n)); may < int64(n) {
			_, _ = to.Write(buf[:may])
			p.Cut()
			return
		}
		passed.Add(int64(n))
		if _, e := to.Write(buf[:n]); e != nil || err != nil && err != io.EOF {
			return
		}
		if err != nil {
			return
		}
	}
}

// take reserves n of the bytes that may pass, or those that are left. What Allow
// says meanwhile is not overwritten: a budget of nothing that is left behind would
// cut every later connection, for ever.
func take(left *atomic.Int64, n int64) int64 {
	for {
		budget := left.Load()
		if budget < 0 {
			return n
		}
		may := min(n, budget)
		if left.CompareAndSwap(budget, budget-may) {
			return may
		}
	}
}

// Cut resets all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}
