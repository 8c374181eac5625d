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

// hostOf is the host of an address: what stands before the port, if there is one.
func hostOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// Net is a network of named hosts.
type Net struct {
	mu        sync.Mutex
	rng       *rand.Rand
	listeners map[string]*listener
	conns     map[*conn]struct{}
	packets   map[string]chan Packet // by address
	blocked   map[link]bool
	min, max  time.Duration // delay of what is written from now on
	changed   chan struct{} // closed and replaced at every change of blocked
}

// New makes a network without delay. rng draws delays; nil is fine without any.
func New(rng *rand.Rand) *Net {
	return &Net{
		rng: rng, listeners: map[string]*listener{}, conns: map[*conn]struct{}{},
		packets: map[string]chan Packet{}, blocked: map[link]bool{}, changed: make(chan struct{}),
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

// Clog blocks some of the links between hosts one by one and releases them in another
// order, with pauses that upTo draws.
func (n *Net) Clog(hosts []string, rng *rand.Rand, upTo func(time.Duration) time.Duration) {
	var links []link
	for _, a := range hosts {
		for _, b := range hosts {
			if a != b && rng.IntN(2) == 0 {
				links = append(links, link{a, b})
			}
		}
	}
	for _, l := range links {
		n.Block(l.from, l.to)
		time.Sleep(upTo(300 * time.Millisecond))
	}
	rng.Shuffle(len(links), func(i, k int) { links[i], links[k] = links[k], links[i] })
	for _, l := range links {
		time.Sleep(upTo(time.Second))
		n.Release(l.from, l.to)
	}
}

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

// Down takes a host away: its listeners and its ends of connections are closed.
// With reset the other ends hear of it, else they hear nothing, ever.
func (n *Net) Down(host string, reset bool) {
	n.mu.Lock()
	var listeners []*listener
	for addr, l := range n.listeners {
		if hostOf(addr) == host {
			listeners = append(listeners, l)
		}
	}
	for addr := range n.packets {
		if hostOf(addr) == host {
			delete(n.packets, addr)
		}
	}
	var ours []*conn
	for c := range n.conns {
		if c.link.from == host {
			ours = append(ours, c)
		}
	}
	n.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close() // always nil
	}
	for _, c := range ours {
		c.end(reset)
	}
}

// Listen makes an address reachable: a host, or one port of it.
func (n *Net) Listen(addr string) net.Listener {
	l := &listener{n: n, host: addr, conns: make(chan *conn), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[addr] = l
	return l
}

// Dial connects from a host to others, whose addresses are their names, or those
// and a port.
func (n *Net) Dial(from string) func(ctx context.Context, to string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		if err := n.reach(ctx, link{from, hostOf(to)}); err != nil {
			return nil, err
		}
		n.mu.Lock()
		l := n.listeners[to]
		n.mu.Unlock()
		if l == nil {
			return nil, fmt.Errorf("connect to %s: %w", to, syscall.ECONNREFUSED)
		}
		here, there := n.pair(from, hostOf(to))
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

// Packet is a datagram that has arrived.
type Packet struct {
	From string
	Data []byte
	At   time.Time
}

// packetsMax is a socket's buffer: what comes on top is lost.
const packetsMax = 1024

// Packets receives datagrams at an address until its host goes down.
func (n *Net) Packets(addr string) <-chan Packet {
	ch := make(chan Packet, packetsMax)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.packets[addr] = ch
	return ch
}

// Send sends a datagram, which a blocked link loses.
func (n *Net) Send(from, to string, data []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.blocked[link{hostOf(from), hostOf(to)}] {
		return
	}
	p := Packet{From: from, Data: append([]byte(nil), data...)}
	wait := n.min
	if n.max > n.min {
		wait += time.Duration(n.rng.Int64N(int64(n.max - n.min)))
	}
	time.AfterFunc(wait, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		p.At = time.Now()
		select {
		case n.packets[to] <- p:
		default: // nobody is there, or too many wait
		}
	})
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
