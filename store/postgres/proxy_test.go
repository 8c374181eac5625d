package postgres

import (
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy stands between a DB and its server and cuts connections.
type proxy struct {
	listener net.Listener
	target   string
	wg       sync.WaitGroup
	mu       sync.Mutex
	open     map[net.Conn]bool
	up, down atomic.Int64 // bytes that may still pass towards the server and back; < 0: any number
	passed   atomic.Int64 // bytes that went towards the server
	answered atomic.Int64 // bytes that came back
}

func newProxy(tb testing.TB, target string) *proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &proxy{listener: l, target: target, open: map[net.Conn]bool{}}
	p.allow(-1, -1)
	p.wg.Go(p.serve)
	tb.Cleanup(func() {
		_ = l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) url(url string) string {
	return strings.Replace(url, p.target, p.listener.Addr().String(), 1)
}

// allow lets that many more bytes pass, then cuts every connection.
func (p *proxy) allow(up, down int64) {
	p.up.Store(up)
	p.down.Store(down)
}

func (p *proxy) serve() {
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
		p.wg.Go(func() { p.pump(server, client, &p.up, &p.passed) })
		p.wg.Go(func() { p.pump(client, server, &p.down, &p.answered) })
	}
}

func (p *proxy) pump(to, from net.Conn, left, passed *atomic.Int64) {
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
		if budget := left.Load(); budget >= 0 {
			if int64(n) > budget {
				_, _ = to.Write(buf[:budget])
				left.Store(0)
				p.cut()
				return
			}
			left.Add(-int64(n))
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

// cut resets all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}
