package broker

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// The tests here pin what the broker relies on in mochi-mqtt, with mochi alone: a new
// version that behaves differently fails here, with the name of the assumption.

// spy records how mochi uses its hook and its connection.
type spy struct {
	mqtt.HookBase
	mu     sync.Mutex
	events []string
	read   func(*mqtt.Client, packets.Packet) (packets.Packet, error)
}

func (s *spy) ID() string { return "spy" }
func (s *spy) Provides(which byte) bool {
	switch which {
	case mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnPacketRead, mqtt.OnPublish, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished, mqtt.OnDisconnect:
		return true
	}
	return false
}
func (s *spy) note(event string) {
	s.mu.Lock()
	s.events = append(s.events, event)
	s.mu.Unlock()
}
func (s *spy) log() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.events...)
}
func (s *spy) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool {
	s.note("authenticate")
	return true
}
func (s *spy) OnACLCheck(*mqtt.Client, string, bool) bool { return true }
func (s *spy) OnPublish(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	s.note("publish")
	return pk, nil
}
func (s *spy) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	s.note("read " + packets.PacketNames[pk.FixedHeader.Type])
	if s.read != nil {
		return s.read(cl, pk)
	}
	return pk, nil
}
func (s *spy) OnSessionEstablish(*mqtt.Client, packets.Packet)   { s.note("establish") }
func (s *spy) OnSessionEstablished(*mqtt.Client, packets.Packet) { s.note("established") }
func (s *spy) OnDisconnect(cl *mqtt.Client, _ error, expire bool) {
	if expire {
		s.note("disconnect expire")
	} else {
		s.note("disconnect")
	}
}

// tap records writes and deadlines of the connection that mochi is given.
type tap struct {
	net.Conn
	s         *spy
	mu        sync.Mutex
	writes    [][]byte
	deadlines int
}

func (c *tap) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.writes = append(c.writes, bytes.Clone(p))
	c.mu.Unlock()
	c.s.note("write " + packets.PacketNames[p[0]>>4])
	return c.Conn.Write(p)
}

func (c *tap) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadlines++
	c.mu.Unlock()
	return nil
}

func mochiAlone(t *testing.T, s *spy) (*mqtt.Server, func(hello []byte) (*client, *tap, chan error)) {
	t.Helper()
	server := newMochi(Config{}.withDefaults(), &mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
	if err := server.AddHook(s, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server, func(hello []byte) (*client, *tap, chan error) {
		ours, theirs := net.Pipe()
		c := &tap{Conn: theirs, s: s}
		ended := make(chan error, 1)
		go func() { ended <- server.EstablishConnection("test", c) }()
		t.Cleanup(func() { ours.Close() })
		cl := newPipeClient(t, ours)
		cl.send(hello)
		if ack := cl.read(); ack.FixedHeader.Type != packets.Connack || ack.ReasonCode != 0 {
			t.Fatalf("got %s", describe(ack))
		}
		return cl, c, ended
	}
}

func newPipeClient(t testing.TB, nc net.Conn) *client {
	return &client{Conn: nc, t: t, r: bufio.NewReader(nc), v: 4}
}

func TestMochiReplacesAPacketByTheHooks(t *testing.T) {
	s := &spy{read: func(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
		if pk.FixedHeader.Type == packets.Connect {
			if cl.ID != "" || pk.Connect.ClientIdentifier != "" || pk.ProtocolVersion != 4 || !pk.Connect.Clean {
				t.Errorf("the placeholder reads as %+v", pk.Connect)
			}
			pk.Connect.ClientIdentifier, pk.ProtocolVersion = "real", 5
			return pk, nil
		}
		return swallowed, nil
	}}
	server, connect := mochiAlone(t, s)
	c, _, _ := connect(placeholder[:])
	if cl, ok := server.Clients.Get("real"); !ok || cl.Properties.ProtocolVersion != 5 {
		t.Fatal("the client is not known as what the hook made of its CONNECT")
	}
	c.v = 5
	for range 3 {
		c.publish(pub{topic: "a", qos: 1, id: 1})
		c.publish(pub{topic: "a", qos: 2, id: 1})
	}
	c.quiet(20 * time.Millisecond)
	for _, e := range s.log() {
		if e == "publish" {
			t.Fatal("a swallowed PUBLISH was processed")
		}
	}
	if cl, _ := server.Clients.Get("real"); cl.State.Inflight.Len() != 0 {
		t.Fatal("a swallowed PUBLISH is in flight")
	}
}

func TestMochiEndsTheConnectionOnReject(t *testing.T) {
	s := &spy{}
	_, connect := mochiAlone(t, s)
	c, _, ended := connect(connectPacket(4, "c1", connectOptions{}))
	s.read = func(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
		return pk, packets.ErrRejectPacket
	}
	c.send([]byte{0xC0, 0})
	if err := <-ended; !errors.Is(err, packets.ErrRejectPacket) {
		t.Fatalf("got %v", err)
	}
}

func TestMochiIgnoresOtherErrorsOfTheHook(t *testing.T) { // which is why handlePacket's verdict is ErrRejectPacket
	s := &spy{}
	_, connect := mochiAlone(t, s)
	c, _, _ := connect(connectPacket(4, "c1", connectOptions{}))
	s.read = func(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
		return pk, io.ErrUnexpectedEOF
	}
	c.ping()
}

func TestMochiKeepsTheOrderOfASession(t *testing.T) {
	s := &spy{}
	_, connect := mochiAlone(t, s)
	c, tapped, ended := connect(connectPacket(4, "c1", connectOptions{}))
	c.ping()
	c.send([]byte{0xE0, 0})
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want := []string{"read Connect", "authenticate", "establish", "write Connack", "established", "read Pingreq", "write Pingresp", "read Disconnect", "disconnect expire"}
	got := s.log()
	if len(got) != len(want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	tapped.mu.Lock()
	defer tapped.mu.Unlock()
	if tapped.deadlines != 3 { // after CONNECT and before each packet
		t.Fatalf("SetDeadline was called %d times, want 3", tapped.deadlines)
	}
}

func TestMochiWritesOnePacketPerCall(t *testing.T) {
	s := &spy{}
	server, connect := mochiAlone(t, s)
	c, tapped, _ := connect(connectPacket(5, "c1", connectOptions{}))
	c.v = 5
	cl, _ := server.Clients.Get("c1")
	go func() {
		for range 20 {
			_ = cl.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingresp}}) // fails only when the test does
		}
		_ = server.DisconnectClient(cl, packets.ErrSessionTakenOver) // it returns its reason
	}()
	for range 20 {
		c.read()
	}
	c.closed(0x8E)
	tapped.mu.Lock()
	defer tapped.mu.Unlock()
	for _, w := range tapped.writes[1:21] {
		if len(w) != 2 {
			t.Fatalf("write of %x, want one packet", w)
		}
	}
}

func TestMochiStopClosesTheConnection(t *testing.T) {
	s := &spy{}
	server, connect := mochiAlone(t, s)
	_, _, ended := connect(connectPacket(4, "c1", connectOptions{keep: true}))
	cl, _ := server.Clients.Get("c1")
	cl.Stop(nil)
	<-ended
	if _, ok := server.Clients.Get("c1"); !ok {
		t.Fatal("a session that should stay is gone")
	}
}

func TestMochiTakesOverSubscriptions(t *testing.T) {
	s := &spy{}
	server, connect := mochiAlone(t, s)
	c, _, ended := connect(connectPacket(4, "c1", connectOptions{keep: true}))
	go func() { _, _ = io.Copy(io.Discard, c) }() // a pipe has no buffer: mochi writes DISCONNECT
	cl, _ := server.Clients.Get("c1")
	sub := packets.Subscription{Filter: "a/+", Qos: 1}
	server.Topics.Subscribe("c1", sub)
	cl.State.Subscriptions.Add(sub.Filter, sub)
	c, _, _ = connect(connectPacket(4, "c1", connectOptions{keep: true}))
	go func() { _, _ = io.Copy(io.Discard, c) }() // as above
	<-ended
	if next, _ := server.Clients.Get("c1"); next == cl || next.State.Subscriptions.Len() != 1 {
		t.Fatal("the new connection has not the subscriptions of the old one")
	}
	if got := server.Topics.Subscribers("a/x").Subscriptions["c1"]; got.Qos != 1 {
		t.Fatalf("the index has %+v", got)
	}
	connect(connectPacket(4, "c1", connectOptions{}))
	if n := len(server.Topics.Subscribers("a/x").Subscriptions); n != 0 {
		t.Fatal("a clean session kept subscriptions")
	}
}

func TestMochiDecoderPanicsOnTruncatedSubscribe(t *testing.T) { // remove the recover in establish when this one is gone
	defer func() {
		if recover() == nil {
			t.Error("no panic: the decoder has been mended")
		}
	}()
	pk := packets.Packet{ProtocolVersion: 5}
	_ = pk.SubscribeDecode(append([]byte{0, 1, 0}, appendString(nil, "a")...)) // the panic is the point
}

func TestMochiPayloadIsTheBrokersOwn(t *testing.T) { // a publish's payload outlives the next packet
	var kept [][]byte
	s := &spy{read: func(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
		if pk.FixedHeader.Type == packets.Publish {
			kept = append(kept, pk.Payload)
			return swallowed, nil
		}
		return pk, nil
	}}
	_, connect := mochiAlone(t, s)
	c, _, _ := connect(connectPacket(4, "c1", connectOptions{}))
	for _, p := range []string{"one", "two", "six"} {
		c.publish(pub{topic: "a", payload: p})
	}
	c.ping()
	if string(bytes.Join(kept, []byte(" "))) != "one two six" {
		t.Fatalf("got %q", kept)
	}
}
