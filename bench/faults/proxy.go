package faults

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// proxy passes bytes to a server, and can cut the connections.
type proxy struct {
	l    net.Listener
	to   string
	done sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	armed int // cuts that are still to happen
	rng   *rand.Rand
	cuts  int
}

func startProxy(to string, rng *rand.Rand) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the database's clients: %w", err)
	}
	p := &proxy{l: l, to: to, rng: rng, conns: map[net.Conn]struct{}{}}
	p.done.Go(p.accept)
	return p, nil
}

func (p *proxy) addr() string { return p.l.Addr().String() }

func (p *proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = c.Close() // the client sees the database as gone, which it is
			continue
		}
		p.mu.Lock()
		p.conns[c], p.conns[s] = struct{}{}, struct{}{}
		p.mu.Unlock()
		p.done.Go(func() { p.pass(s, c, true) })
		p.done.Go(func() { p.pass(c, s, false) })
	}
}

func (p *proxy) pass(to, from net.Conn, up bool) {
	defer func() { _, _ = to.Close(), from.Close() }() // both ends of a cut connection
	buf := make([]byte, 32<<10)
	left := -1 // pieces to pass before the cut; -1: no cut on this connection
	for {
		n, err := from.Read(buf)
		b := buf[:n]
		if up && n > 0 {
			if left < 0 && bytes.Contains(b, copyMagic) {
				left = p.draw()
			}
			if left == 0 {
				_, _ = to.Write(b[:n/2]) // half a message, then nothing
				return
			}
			if left > 0 {
				left--
			}
		}
		if n > 0 {
			if _, err := to.Write(b); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// copyMagic begins the data of a binary COPY.
var copyMagic = []byte("PGCOPY\n")

// piecesMax is how many pieces of a connection may pass between the beginning of
// a COPY and the cut: the commit of a small batch is about the sixth.
const piecesMax = 8

// draw says after how many pieces a connection that begins a COPY is cut, -1 for
// never.
func (p *proxy) draw() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed == 0 {
		return -1
	}
	p.armed--
	p.cuts++
	return p.rng.IntN(piecesMax + 1)
}

// arm cuts the next n connections that begin a COPY, in its middle or between
// it and the end of its transaction.
func (p *proxy) arm(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed += n
}

func (p *proxy) cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cuts
}

func (p *proxy) close() {
	_ = p.l.Close() // ends accept
	p.mu.Lock()
	for c := range p.conns {
		_ = c.Close() // most are closed already
	}
	p.mu.Unlock()
	p.done.Wait()
}
