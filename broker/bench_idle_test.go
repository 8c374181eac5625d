package broker

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/broker/poll"
)

// idleSockets is what one process may open here, both ends being processes of their own.
const idleSockets = 18_000

// idleHello is the CONNECT of a device with a durable session and a keep-alive, and its
// subscription to commands.
func idleHello(id string) []byte {
	hello := connectPacket(5, id, connectOptions{keep: true, keepAlive: 600,
		props: binary.BigEndian.AppendUint32([]byte{packets.PropSessionExpiryInterval}, 3600)})
	return append(hello, packet(packets.Subscribe<<4|2, append(appendString([]byte{0, 1, 0}, "devices/"+id+"/commands"), 1))...)
}

// BenchmarkIdleConnection is what one idle connection costs the node: a durable
// session, a command subscription and a keep-alive, over real sockets, the server in a
// process of its own: plain TCP, then what has layers above it. An op is one
// connection; the run fixes how many there are.
func BenchmarkIdleConnection(b *testing.B) {
	for _, kind := range []string{"sluice", "tls", "ws", "wss", "mochi"} {
		b.Run(kind, func(b *testing.B) {
			s := startServer(b, kind)
			before, _ := s.memory(b)
			cpu := cpuOf(b, s.pid)
			n := min(max(b.N, 1000), idleSockets)
			b.ResetTimer()
			conns := connectIdle(b, kind, s.addr, n)
			connected := b.Elapsed()
			b.ReportMetric(float64(n)/connected.Seconds(), "connects/s")
			b.ReportMetric((cpuOf(b, s.pid)-cpu)*1e6/float64(n), "server-us/connect")
			time.Sleep(3 * time.Second) // longer than IdleAfter twice
			after, goroutines := s.memory(b)
			b.ReportMetric(float64(after-before)/float64(n), "B/connection")
			b.ReportMetric(float64(goroutines)/float64(n), "goroutines/connection")
			b.ReportMetric(float64(n), "connections")
			b.ReportMetric(0, "ns/op")
			for _, nc := range conns {
				nc.Close()
			}
		})
	}
}

// dialKind opens a connection of a kind of server.
func dialKind(kind, addr string, i int) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i/10_000))}} // ports of one address run short
	nc, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	if kind == "tls" || kind == "wss" {
		nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true}) // the certificate of a child of this process
	}
	if kind == "ws" || kind == "wss" {
		ws := websocket.Dialer{Subprotocols: []string{"mqtt"}, NetDial: func(string, string) (net.Conn, error) { return nc, nil }}
		over, _, err := ws.Dial("ws://"+addr+"/mqtt", nil)
		if err != nil {
			return nil, err
		}
		nc = &webSocketClient{Conn: nc, ws: over}
	}
	return nc, nil
}

func connectIdle(b *testing.B, kind, addr string, n int) []net.Conn {
	b.Helper()
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	const workers = 16
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				nc, err := dialKind(kind, addr, i)
				if err != nil {
					b.Error(err)
					return
				}
				conns[i] = nc
				if err := beIdle(nc, fmt.Sprintf("meter-%07d", i)); err != nil {
					b.Errorf("connection %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return conns
}

// beIdle says hello and waits for CONNACK and SUBACK.
func beIdle(nc net.Conn, id string) error {
	if _, err := nc.Write(idleHello(id)); err != nil {
		return err
	}
	head := make([]byte, 2)
	for range 2 {
		if _, err := io.ReadFull(nc, head); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, nc, int64(head[1])); err != nil {
			return err
		}
	}
	return nil
}

// inside is a connection without a socket: what the broker writes is counted, what it
// reads is put in, and it waits for that without a goroutine like a real one.
type inside struct {
	net.Conn
	mu      sync.Mutex
	in      []byte
	written int
	ready   func()
	armed   bool
	closed  bool
}

func (c *inside) socket(ready func()) socket { c.ready = ready; return c }

func (c *inside) TryRead(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case len(c.in) > 0:
		n := copy(p, c.in)
		if c.in = c.in[n:]; len(c.in) == 0 {
			c.in = nil
		}
		return n, nil
	case c.closed:
		return 0, io.EOF
	}
	return 0, poll.ErrWouldBlock
}

func (c *inside) Read(p []byte) (int, error) {
	n, err := c.TryRead(p)
	if err == poll.ErrWouldBlock {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

func (c *inside) Arm() error {
	c.mu.Lock()
	c.armed = true
	c.mu.Unlock()
	return nil
}

func (c *inside) Forget() {}

// put makes p what arrives next.
func (c *inside) put(p []byte) {
	c.mu.Lock()
	c.in = append(c.in, p...)
	armed := c.armed
	c.armed = false
	c.mu.Unlock()
	if armed {
		c.ready()
	}
}

func (c *inside) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written += len(p)
	return len(p), nil
}

func (c *inside) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

func (c *inside) SetDeadline(time.Time) error      { return nil }
func (c *inside) SetReadDeadline(time.Time) error  { return nil }
func (c *inside) SetWriteDeadline(time.Time) error { return nil }
func (c *inside) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// BenchmarkMillionConnections connects a million devices without sockets through the
// same CONNECT, SUBSCRIBE and packet handler, then lets one in a hundred publish:
// -benchtime 1000000x. The bytes include the stand-in of the socket, about 130.
func BenchmarkMillionConnections(b *testing.B) {
	m := newMemory()
	m.auto = applied
	br := start(b, Config{ConnectionsMax: 2_000_000, Limits: Limits{Connects: 1e9}}, m)
	before := memoryInUse()
	conns := make([]*inside, b.N)
	begin := time.Now()
	var wg sync.WaitGroup
	const workers = 16
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(conns); i += workers {
				c := &inside{in: idleHello(fmt.Sprintf("meter-%07d", i))}
				conns[i] = c
				if !br.track() {
					b.Error("broker closed")
					return
				}
				br.serve(context.Background(), c, &Endpoint{})
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "connects/s")
	for end := time.Now().Add(time.Minute); br.subscriptions() < int64(b.N) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(float64(memoryInUse()-before)/float64(b.N), "B/connection")
	if got := br.Stats(); got.Connections != b.N {
		b.Fatalf("%+v, want %d connections", got, b.N)
	}
	client := &client{v: 5}
	published := 0
	for i := 0; i < b.N; i += 100 {
		conns[i].put(client.encode(pub{topic: fmt.Sprintf("devices/meter-%07d/telemetry", i), payload: "{}", qos: 1, id: 1}))
		published++
	}
	for end := time.Now().Add(time.Minute); br.Stats().Acknowledged < int64(published) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if got := br.Stats().Acknowledged; got != int64(published) {
		b.Fatalf("%d publishes acknowledged, want %d", got, published)
	}
	b.ReportMetric(0, "ns/op")
}
