package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/mochi-mqtt/server/v2/packets"
	proxyproto "github.com/pires/go-proxyproto"

	"github.com/sluice-iot/sluice/broker/poll"
)

// slicer is a client's socket whose writes the test can hold back and let go in pieces.
type slicer struct {
	net.Conn
	mu   sync.Mutex
	hold bool
	held []byte
}

func (s *slicer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.hold {
		return s.Conn.Write(p)
	}
	s.held = append(s.held, p...)
	return len(p), nil
}

func (s *slicer) keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = true
}

// release sends at most n of the bytes that were held back, and reports how many are left.
func (s *slicer) release(t testing.TB, n int) int {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	n = min(n, len(s.held))
	if err := s.Conn.SetWriteDeadline(time.Time{}); err != nil { // crypto/tls has let it run out
		t.Fatal(err)
	}
	if _, err := s.Conn.Write(s.held[:n]); err != nil {
		t.Fatal(err)
	}
	s.held = s.held[n:]
	return len(s.held)
}

// layersOf is every kind of endpoint that has something above the socket.
func layersOf(a *authority) []Endpoint {
	proxies := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	return []Endpoint{
		{Listen: "127.0.0.1:0", TLS: a.server(ClientAuthOptional)},
		{Listen: "127.0.0.1:0", WebSocket: &WebSocket{}},
		{Listen: "127.0.0.1:0", WebSocket: &WebSocket{}, TLS: a.server(ClientAuthOptional)},
		{Listen: "127.0.0.1:0", ProxyFrom: proxies},
		{Listen: "127.0.0.1:0", ProxyFrom: proxies, TLS: a.server(ClientAuthOptional)},
		{Listen: "127.0.0.1:0", ProxyFrom: proxies, WebSocket: &WebSocket{}},
		{Listen: "127.0.0.1:0", ProxyFrom: proxies, WebSocket: &WebSocket{}, TLS: a.server(ClientAuthOptional)},
	}
}

// layersName is a name for a subtest.
func layersName(e *Endpoint) string {
	if len(e.ProxyFrom) > 0 {
		return "proxy-" + e.name()
	}
	return e.name()
}

// behind is whom the load balancer of dialLayers names.
var behind = &net.TCPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 4711}

// dialLayers opens what an endpoint wants, from the socket up.
func dialLayers(t testing.TB, e *Endpoint, addr net.Addr, cfg *tls.Config) (net.Conn, *slicer) {
	t.Helper()
	s := &slicer{Conn: dialTCP(t, addr)}
	t.Cleanup(func() { s.Close() })
	if len(e.ProxyFrom) > 0 {
		head, err := proxyproto.HeaderProxyFromAddrs(2, behind, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1883}).Format()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(head); err != nil {
			t.Fatal(err)
		}
	}
	var nc net.Conn = s
	if e.TLS != nil {
		nc = tls.Client(nc, cfg)
	}
	if e.WebSocket == nil {
		return nc, s
	}
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}, NetDial: func(string, string) (net.Conn, error) { return nc, nil }}
	ws, _, err := d.Dial("ws://"+addr.String()+"/mqtt", nil)
	if err != nil {
		t.Fatal(err)
	}
	return &webSocketClient{Conn: nc, ws: ws}, s
}

func TestConnectionsOfEveryEndpointParkAndGoOn(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	layers := layersOf(a)
	m := newMemory()
	m.auto = applied
	b := start(t, Config{IdleAfter: 50 * time.Millisecond, Endpoints: layers}, m)
	for i := range layers {
		e := &layers[i]
		t.Run(layersName(e), func(t *testing.T) {
			nc, socket := dialLayers(t, e, b.Addrs()[1+i], a.client(""))
			id := layersName(e)
			c := mustHello(t, nc, id)
			c.subscribe("cmd/"+id, 1)
			held := waitParked(t, b, id)
			c.publish(pub{topic: topic1, payload: strings.Repeat("x", 3000), qos: 1, id: 3})
			c.expect(packets.Puback, 3)
			// A record, a frame and a packet, cut anywhere.
			waitParked(t, b, id)
			socket.keep()
			c.publish(pub{topic: topic1, payload: strings.Repeat("y", 200), qos: 1, id: 4})
			for _, n := range []int{1, 1, 3, 9, 50} {
				if socket.release(t, n) == 0 {
					t.Fatal("the packet is shorter than its pieces")
				}
				waitParked(t, b, id)
			}
			socket.release(t, 1<<20)
			c.expect(packets.Puback, 4)
			// Parked connections are reached by messages and by their end.
			waitParked(t, b, id)
			other, _ := dial(t, b, 5, "from", connectOptions{})
			other.publish(pub{topic: "cmd/" + id, payload: "go", qos: 1, id: 1})
			if pk := c.read(); string(pk.Payload) != "go" {
				t.Fatalf("got %s", describe(pk))
			}
			held.fail(packets.ErrAdministrativeAction)
			c.closed(packets.ErrAdministrativeAction.Code)
		})
	}
}

func TestIdleConnectionsOfEveryEndpointHaveNoGoroutines(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	layers := layersOf(a)
	b := start(t, Config{IdleAfter: 50 * time.Millisecond, Endpoints: layers}, newMemory())
	for i := range layers {
		nc, _ := dialLayers(t, &layers[i], b.Addrs()[1+i], a.client(""))
		mustHello(t, nc, layersName(&layers[i]))
	}
	for i := range layers {
		waitParked(t, b, layersName(&layers[i]))
	}
	eventually(t, "no goroutine of a connection is left", func() bool { return countGoroutines("broker.(*conn)") == 0 })
}

func TestLayersTellWhoAndWhere(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	a.issue("meter-7", 3, "")
	layers := layersOf(a)
	from, who := make(addresses, 1), make(identities, 1)
	b := start(t, Config{Endpoints: layers, Authenticator: who.of(both{from, CertificateIdentity{}})}, newMemory())
	for i := range layers {
		e := &layers[i]
		nc, _ := dialLayers(t, e, b.Addrs()[1+i], a.client("meter-7"))
		mustHello(t, nc, layersName(e))
		if got := <-from; (got.String() == behind.String()) != (len(e.ProxyFrom) > 0) {
			t.Errorf("%s: the client comes from %v", layersName(e), got)
		}
		want := ""
		if e.TLS != nil {
			want = "meter-7"
		}
		if got := <-who; got.Name != want {
			t.Errorf("%s: the client is %q, want %q", layersName(e), got.Name, want)
		}
	}
}

func TestGoodbyeTogetherWithTheEndOfTLSIsHeard(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	e := Endpoint{Listen: "127.0.0.1:0", TLS: a.server(ClientAuthNone)}
	b := start(t, Config{IdleAfter: 50 * time.Millisecond, Endpoints: []Endpoint{e}}, newMemory())
	sub, _ := dial(t, b, 5, "sub", connectOptions{})
	sub.subscribe("status/#", 1)
	will := &packets.Packet{TopicName: "status/c1", Payload: []byte("gone"), FixedHeader: packets.FixedHeader{Qos: 1}}
	for i := range 4 {
		cfg, parked := a.client(""), i%2 == 0
		if i < 2 {
			cfg.MaxVersion = tls.VersionTLS12 // where the end is seen without decrypting it
		}
		nc, socket := dialLayers(t, &e, b.Addrs()[1], cfg)
		c := &client{Conn: nc, t: t, v: 5}
		c.send(connectPacket(5, "c1", connectOptions{will: will}))
		if _, err := io.ReadFull(nc, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if parked {
			waitParked(t, b, "c1")
		}
		socket.keep()
		c.send([]byte{0xE0, 0})
		if err := nc.(*tls.Conn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		socket.release(t, 1<<20)
		eventually(t, "the client has left", func() bool { return b.sessions.get("c1") == nil })
	}
	sub.ping()
	sub.quiet(50 * time.Millisecond)
}

// maskedFrame is a client's frame.
func maskedFrame(first byte, payload []byte) []byte {
	f := appendFrame(nil, 0, payload)
	head := len(f) - len(payload)
	mask := []byte{0x12, 0x34, 0x56, 0x78}
	out := append([]byte{first, f[1] | 0x80}, f[2:head]...)
	out = append(out, mask...)
	for i, x := range payload {
		out = append(out, x^mask[i&3])
	}
	return out
}

// takeIn takes b apart in pieces of a size and returns the payload and what was replied.
func takeIn(b []byte, size int) (payload, replies []byte, err error) {
	f := frames{reply: func(op byte, p []byte) { replies = appendFrame(replies, op, p) }}
	for len(b) > 0 && err == nil {
		piece := bytes.Clone(b[:min(size, len(b))])
		b = b[len(piece):]
		var n int
		n, err = f.take(piece)
		payload = append(payload, piece[:n]...)
	}
	return payload, replies, err
}

func TestFramesAreTakenApartWhereverTheyAreCut(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789"), 7000)
	var stream []byte
	for _, f := range [][]byte{
		maskedFrame(0x02, []byte("begin-")), maskedFrame(0x89, []byte("ping")), maskedFrame(0x00, nil), maskedFrame(0x80, []byte("end ")),
		maskedFrame(0x8a, []byte("pong that nobody asked for")), maskedFrame(0x82, long[:300]), maskedFrame(0x82, long),
		maskedFrame(0x88, []byte{3, 0xe9, 'b', 'y', 'e'}),
	} {
		stream = append(stream, f...)
	}
	want := "begin-end " + string(long[:300]) + string(long)
	replies := appendFrame(appendFrame(nil, framePong, []byte("ping")), frameClose, []byte{3, 0xe9})
	for _, size := range []int{1, 2, 3, 7, 125, 4096, len(stream)} {
		got, answered, err := takeIn(stream, size)
		if string(got) != want || !bytes.Equal(answered, replies) || err != io.EOF {
			t.Errorf("in pieces of %d: %d bytes of payload, want %d; replies %x, want %x; %v", size, len(got), len(want), answered, replies, err)
		}
	}
}

func TestFramesAgainstTheProtocolAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		frame []byte
		code  uint16
	}{
		"text":                 {maskedFrame(0x81, []byte("x")), closeUnsupported},
		"reserved bit":         {maskedFrame(0xc2, nil), closeProtocol},
		"not masked":           {appendFrame(make([]byte, 0, 20), frameBinary, []byte("12345")), closeProtocol},
		"unknown kind":         {maskedFrame(0x83, nil), closeProtocol},
		"ping in pieces":       {maskedFrame(0x09, nil), closeProtocol},
		"ping too long":        {maskedFrame(0x89, make([]byte, 126)), closeProtocol},
		"nothing to go on":     {maskedFrame(0x80, nil), closeProtocol},
		"begins in a message":  {append(maskedFrame(0x02, nil), maskedFrame(0x82, nil)...), closeProtocol},
		"longer than possible": {append([]byte{0x82, 0xff, 0xff}, make([]byte, 11)...), closeProtocol},
	} {
		_, _, err := takeIn(c.frame, 1000)
		var violation *frameError
		if !errors.As(err, &violation) || violation.code != c.code {
			t.Errorf("%s: got %v, want code %d", name, err, c.code)
		}
	}
}

// A ping is answered however long ago the last message was written.
func TestPingOfAnIdleWebSocketIsAnswered(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	c := newWebsocketConn(here)
	if err := c.SetWriteDeadline(time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = c.Read(make([]byte, 10)) }() // ends with the pipe
	if _, err := there.Write(maskedFrame(0x89, []byte("there?"))); err != nil {
		t.Fatal(err)
	}
	want := appendFrame(nil, framePong, []byte("there?"))
	got := make([]byte, len(want))
	if err := there.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(there, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %x, %v, want %x", got, err, want)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(append(maskedFrame(0x82, []byte("abc")), maskedFrame(0x89, []byte("p"))...), uint8(1))
	f.Add(maskedFrame(0x02, bytes.Repeat([]byte("x"), 70_000)), uint8(200))
	f.Add([]byte{0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5}, uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		whole, replies, err := takeIn(b, len(b)+1)
		cut, cutReplies, cutErr := takeIn(b, int(size)+1)
		if !bytes.Equal(whole, cut) || !bytes.Equal(replies, cutReplies) || (err == nil) != (cutErr == nil) {
			t.Errorf("cut into pieces of %d: %x, %x, %v; whole: %x, %x, %v", size+1, cut, cutReplies, cutErr, whole, replies, err)
		}
		if len(whole) > len(b) {
			t.Errorf("%d bytes of payload in %d of frames", len(whole), len(b))
		}
	})
}

// both runs one Authenticator for what it notes and answers with the other.
type both struct{ first, second Authenticator }

func (a both) Authenticate(ctx context.Context, c Credentials) (Identity, error) {
	if id, err := a.first.Authenticate(ctx, c); err != nil {
		return id, err
	}
	return a.second.Authenticate(ctx, c)
}

func TestNothingYetIsWhatTLSCallsTemporary(t *testing.T) {
	var err error = nothingYet{}
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() || !errors.Is(err, poll.ErrWouldBlock) {
		t.Errorf("%#v is no timeout that would block", err)
	}
}

func TestFirstPacketIsBoundedOnEveryEndpoint(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	layers := layersOf(a)
	b := start(t, Config{Endpoints: layers, ConnectBytesMax: 1000}, newMemory())
	long := connectPacket(5, "c1", connectOptions{user: strings.Repeat("x", 2000)})
	for i := range layers {
		nc, _ := dialLayers(t, &layers[i], b.Addrs()[1+i], a.client(""))
		_, _ = nc.Write(long) // the broker may close in the middle
		if err := nc.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := nc.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: got %d bytes, %v, want the connection closed without an answer", layersName(&layers[i]), n, err)
		}
	}
	eventually(t, "nobody is half open", func() bool { return b.Stats().HalfOpen == 0 })
}
