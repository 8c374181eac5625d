package simnet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// link is one direction between two hosts.
type link struct{ from, to string }

// Net is a network of named hosts.
type Net struct {
	mu        sync.Mutex
	rng       *rand.Rand
	listeners map[string]*listener
	conns     map[*conn]struct{}
	blocked   map[link]bool
	min, max  time.Duration // delay of what is written from now on
	changed   chan struct{} // closed and replaced at every change of blocked
}

// New makes a network without delay. rng draws delays; nil is fine without any.
func New(rng *rand.Rand) *Net {
	return &Net{
		rng: rng, listeners: map[string]*listener{}, conns: map[*conn]struct{}{},
		blocked: map[link]bool{}, changed: make(chan struct{}),
	}
}

// Delay sets the bounds of the delay of every link, for what is written later.
func (n *Net) Delay(from, to time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.min, n.max = from, to
}

// Block makes everything from one host to another wait.
func (n *Net) Block(from, to string) { n.set(from, to, true) }

// Release lets it go again.
func (n *Net) Release(from, to string) { n.set(from, to, false) }

func (n *Net) set(from, to string, blocked bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if blocked {
		n.blocked[link{from, to}] = true
	} else {
		delete(n.blocked, link{from, to})
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

// Split blocks every link between two sets of hosts, both ways.
func (n *Net) Split(a, b []string) {
	for _, x := range a {
		for _, y := range b {
			n.Block(x, y)
			n.Block(y, x)
		}
	}
}

// Blocked lists the blocked links, in no order.
func (n *Net) Blocked() (out [][2]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for l := range n.blocked {
		out = append(out, [2]string{l.from, l.to})
	}
	return out
}

// Heal releases every link.
func (n *Net) Heal() {
	for _, l := range n.Blocked() {
		n.Release(l[0], l[1])
	}
}

// open reports whether a link carries now, and a channel that tells of a change.
func (n *Net) open(l link) (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.blocked[l], n.changed
}

// delay draws the delay of one piece.
func (n *Net) delay() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.max <= n.min {
		return n.min
	}
	return n.min + time.Duration(n.rng.Int64N(int64(n.max-n.min)))
}

// Down takes a host away: its listener and its ends of connections are closed.
// With reset the other ends hear of it, else they hear nothing, ever.
func (n *Net) Down(host string, reset bool) {
	n.mu.Lock()
	l := n.listeners[host]
	var ours []*conn
	for c := range n.conns {
		if c.link.from == host {
			ours = append(ours, c)
		}
	}
	n.mu.Unlock()
	if l != nil {
		_ = l.Close() // always nil
	}
	for _, c := range ours {
		c.end(reset)
	}
}

// Listen makes a host reachable.
func (n *Net) Listen(host string) net.Listener {
	l := &listener{n: n, host: host, conns: make(chan *conn), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[host] = l
	return l
}

// Dial connects from a host to others, whose addresses are their names.
func (n *Net) Dial(from string) func(ctx context.Context, to string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		if err := n.reach(ctx, link{from, to}); err != nil {
			return nil, err
		}
		n.mu.Lock()
		l := n.listeners[to]
		n.mu.Unlock()
		if l == nil {
			return nil, fmt.Errorf("connect to %s: %w", to, syscall.ECONNREFUSED)
		}
		here, there := n.pair(from, to)
		select {
		case l.conns <- there:
		case <-l.done:
			return nil, fmt.Errorf("connect to %s: %w", to, syscall.ECONNREFUSED)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		n.mu.Lock()
		n.conns[here], n.conns[there] = struct{}{}, struct{}{}
		n.mu.Unlock()
		return here, nil
	}
}

// reach waits for a handshake's two ways, and two delays.
func (n *Net) reach(ctx context.Context, out link) error {
	for _, l := range []link{out, {out.to, out.from}} {
		for {
			ok, changed := n.open(l)
			if ok {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case <-time.After(n.delay()):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (n *Net) forget(c *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
}

type listener struct {
	n     *Net
	host  string
	conns chan *conn
	done  chan struct{}
	once  sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.n.mu.Lock()
		defer l.n.mu.Unlock()
		if l.n.listeners[l.host] == l {
			delete(l.n.listeners, l.host)
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return address(l.host) }

type address string

func (a address) Network() string { return "sim" }
func (a address) String() string  { return string(a) }
