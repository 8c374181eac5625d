package broker

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/telemetry"
)

// Each test here closes a hole that mochi-mqtt 2.7.9 has or that another broker had.

// byUser knows a client by its user name: the name is the identity, and it may use
// topics under devices/<name>/ only.
type byUser struct{}

func (byUser) Authenticate(_ context.Context, c Credentials) (Identity, error) {
	switch c.Username {
	case "":
		return Identity{}, ErrBadCredentials
	case "banned":
		return Identity{}, ErrBanned
	case "down":
		return Identity{}, errors.New("directory unreachable")
	}
	return Identity{Name: c.Username}, nil
}

func (byUser) Allow(id Identity, _ string, _ Action, topic string) bool {
	return id.Name == "admin" || strings.HasPrefix(topic, "devices/"+id.Name+"/")
}

func guarded(t *testing.T, m *memory) *Broker {
	return start(t, Config{Authenticator: byUser{}, Authorizer: byUser{}}, m)
}

func TestConnectIsRefusedWithTheRightCode(t *testing.T) {
	b := guarded(t, newMemory())
	long := strings.Repeat("x", clientIDBytesMax+1)
	for _, k := range []struct {
		name         string
		id           string
		o            connectOptions
		code3, code5 byte
	}{
		{"no user", "c", connectOptions{}, 4, 0x86},
		{"banned", "c", connectOptions{user: "banned"}, 5, 0x8A},
		{"authenticator down", "c", connectOptions{user: "down"}, 3, 0x88},
		{"long id", long, connectOptions{user: "admin"}, 2, 0x85},
		{"will not allowed", "c", connectOptions{user: "eve", will: &packets.Packet{TopicName: "devices/victim/commands", Payload: []byte("x")}}, 5, 0x87},
		{"will on a wildcard", "c", connectOptions{user: "admin", will: &packets.Packet{TopicName: "a/#", Payload: []byte("x")}}, 5, 0x90},
		{"will of a bad device", "c", connectOptions{user: "admin", will: &packets.Packet{TopicName: "devices/a b/telemetry", Payload: []byte("x")}}, 5, 0x90},
	} {
		versions(t, func(t *testing.T, v byte) {
			k.o.wantRefuse = true
			c, ack := dial(t, b, v, k.id, k.o)
			if want := map[byte]byte{4: k.code3, 5: k.code5}[v]; ack.ReasonCode != want {
				t.Errorf("%s: got %#x, want %#x", k.name, ack.ReasonCode, want)
			}
			c.closed(0)
		})
	}
	if _, ack := dial(t, b, 4, "", connectOptions{user: "admin", keep: true, wantRefuse: true}); ack.ReasonCode != 2 {
		t.Errorf("empty client id without clean session: got %d, want 2", ack.ReasonCode)
	}
	dial(t, b, 4, "", connectOptions{user: "admin"})
	if _, ack := dial(t, b, 5, "", connectOptions{user: "admin", keep: true}); ack.Properties.AssignedClientID == "" {
		t.Error("no assigned client id in CONNACK")
	}
	c := dialRaw(t, b)
	c.v = 4
	c.send(packet(0x10, append(appendString(nil, "MQTT"), 9, 2, 0, 0, 0, 1, 'x')))
	if ack := c.read(); ack.ReasonCode != 1 {
		t.Errorf("protocol level 9: got %s, want 1", describe(ack))
	}
}

func TestWillIsChecked(t *testing.T) { // and its topic cannot be used to reach another's commands
	b := guarded(t, newMemory())
	admin, _ := dial(t, b, 5, "admin", connectOptions{user: "admin"})
	admin.subscribe("#", 0)
	c, _ := dial(t, b, 5, "eve", connectOptions{user: "eve", will: &packets.Packet{TopicName: "devices/eve/status", Payload: []byte("bye")}})
	c.Close()
	if pk := admin.read(); pk.TopicName != "devices/eve/status" {
		t.Fatalf("got %s", describe(pk))
	}
}

func TestSessionBelongsToItsIdentity(t *testing.T) {
	b := guarded(t, newMemory())
	o := connectOptions{keep: true, user: "victim", props: []byte{packets.PropSessionExpiryInterval, 0, 0, 1, 0}}
	victim, _ := dial(t, b, 5, "victim", o)
	victim.subscribe("devices/victim/commands", 1)
	thief := o
	thief.user, thief.wantRefuse = "thief", true
	if _, ack := dial(t, b, 5, "victim", thief); ack.ReasonCode != 0x87 {
		t.Fatalf("take-over of a connected client: got %#x, want 0x87", ack.ReasonCode)
	}
	victim.ping()
	victim.Close()
	admin, _ := dial(t, b, 5, "admin", connectOptions{user: "admin"})
	admin.publish(pub{topic: "devices/victim/commands", payload: "secret", qos: 1, id: 1})
	admin.expect(packets.Puback, 1)
	thief.keep = false
	if _, ack := dial(t, b, 5, "victim", thief); ack.ReasonCode != 0x87 {
		t.Fatalf("take-over of a session: got %#x, want 0x87", ack.ReasonCode)
	}
	victim, _ = dial(t, b, 5, "victim", o)
	if pk := victim.read(); string(pk.Payload) != "secret" {
		t.Fatalf("got %s", describe(pk))
	}
}

func TestForbiddenTopicsAreRefused(t *testing.T) {
	m := newMemory()
	m.auto = applied
	b := guarded(t, m)
	c, _ := dial(t, b, 5, "eve", connectOptions{user: "eve"})
	for i, topic := range []string{"devices/victim/telemetry", "devices/victim/commands"} {
		c.publish(pub{topic: topic, qos: 1, id: uint16(i + 1)})
		if pk := c.expect(packets.Puback, uint16(i+1)); pk.ReasonCode != 0x87 {
			t.Fatalf("publish to %s: got %s, want 0x87", topic, describe(pk))
		}
	}
	// an alias is checked for the topic it stands for
	c.publish(pub{topic: "devices/victim/telemetry", props: []byte{packets.PropTopicAlias, 0, 1}})
	c.publish(pub{props: []byte{packets.PropTopicAlias, 0, 1}, qos: 1, id: 3})
	if pk := c.expect(packets.Puback, 3); pk.ReasonCode != 0x87 {
		t.Fatalf("got %s, want 0x87", describe(pk))
	}
	if ack := c.subscribe("devices/+/telemetry", 0); ack.ReasonCodes[0] != 0x87 {
		t.Fatalf("granted %v", ack.ReasonCodes)
	}
	if ack := c.subscribe("$share/g/devices/victim/#", 0); ack.ReasonCodes[0] != 0x87 {
		t.Fatalf("granted %v to a shared subscription", ack.ReasonCodes)
	}
	if m.count() != 0 {
		t.Fatalf("ingest got %d publishes", m.count())
	}
}

func TestFirstPacketCostsWhatWasSent(t *testing.T) {
	b := start(t, Config{ConnectTimeout: 10 * time.Second}, newMemory())
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 8 {
		c := dialRaw(t, b)
		c.send([]byte{0x10, 0xff, 0xff, 0xff, 0x7f}) // promises 256 MiB
		c.closed(0)
	}
	for range 100 {
		c := dialRaw(t, b)
		c.send([]byte{0x10, 0x80, 0x80, 0x03}) // promises 48 KiB, which is allowed
	}
	eventually(t, "all are there", func() bool { return b.Stats().HalfOpen == 100 })
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 3<<20 {
		t.Fatalf("heap grew by %d KiB for 100 connections that sent 4 bytes", grown>>10)
	}
}

func TestSilentConnectionIsClosed(t *testing.T) {
	t.Parallel()
	b := start(t, Config{ConnectTimeout: 100 * time.Millisecond}, newMemory())
	silent := dialRaw(t, b)
	drip := dialRaw(t, b)
	go func() {
		for _, x := range connectPacket(4, strings.Repeat("x", 100), connectOptions{}) {
			if _, err := drip.Write([]byte{x}); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	silent.closed(0)
	drip.closed(0)
}

func TestHalfOpenConnectionsDoNotKeepClientsOut(t *testing.T) {
	b := start(t, Config{HalfOpenMax: 20, ConnectTimeout: time.Minute}, newMemory())
	var held []*client
	for range 60 {
		held = append(held, dialRaw(t, b))
	}
	c, _ := dial(t, b, 4, "honest", connectOptions{})
	c.ping()
	held[0].closed(0)
	if n := b.Stats().HalfOpen; n > 20 {
		t.Fatalf("%d half-open connections, want at most 20", n)
	}
}

func TestConnectionsAndSubscriptionsAreCapped(t *testing.T) {
	b := start(t, Config{ConnectionsMax: 2, SubscriptionsMax: 5}, newMemory())
	dial(t, b, 5, "c1", connectOptions{})
	dial(t, b, 4, "c2", connectOptions{})
	if _, ack := dial(t, b, 5, "c3", connectOptions{wantRefuse: true}); ack.ReasonCode != 0x89 {
		t.Fatalf("got %#x, want 0x89", ack.ReasonCode)
	}
	if _, ack := dial(t, b, 4, "c4", connectOptions{wantRefuse: true}); ack.ReasonCode != 3 {
		t.Fatalf("got %#x, want 3", ack.ReasonCode)
	}
	c, _ := dial(t, b, 5, "c1", connectOptions{}) // a take-over needs no place
	for i := range 5 {
		c.subscribe(fmt.Sprintf("a/%d/#", i), 0)
	}
	if ack := c.subscribe("a/6", 0); ack.ReasonCodes[0] != 0x97 {
		t.Fatalf("got %#x, want 0x97", ack.ReasonCodes[0])
	}
	c.subscribe("a/0/#", 1) // one that exists may be changed
	for _, filter := range []string{"a+/b", "a/#/b", "a#", "", strings.Repeat("a/", 40) + "#", "$share/g", "$share//x", "$share/+/x", "$x/y", "$share/g/$x"} {
		if ack := c.subscribe(filter, 0); ack.ReasonCodes[0] != 0x8F {
			t.Errorf("filter %.20q: got %#x, want 0x8f", filter, ack.ReasonCodes[0])
		}
	}
}

func TestPacketIDsOfBothDirectionsAreApart(t *testing.T) {
	m := newMemory()
	m.auto = applied
	b := start(t, Config{}, m)
	o := connectOptions{keep: true}
	device, _ := dial(t, b, 4, "device", o)
	device.subscribe("devices/device/commands", 1)
	admin, _ := dial(t, b, 4, "admin", connectOptions{})
	admin.publish(pub{topic: "devices/device/commands", payload: "command", qos: 1, id: 50})
	admin.expect(packets.Puback, 50)
	command := device.read()
	device.publish(pub{topic: "devices/device/telemetry", qos: 1, id: command.PacketID}) // the device's own id
	device.expect(packets.Puback, command.PacketID)
	body := append([]byte{byte(command.PacketID >> 8), byte(command.PacketID)}, appendString(nil, "other")...)
	device.send(packet(0x82, append(body, 1))) // and a SUBSCRIBE with it
	if ack := device.expect(packets.Suback, command.PacketID); ack.ReasonCodes[0] != 1 {
		t.Fatalf("granted %v", ack.ReasonCodes)
	}
	device.Close()
	device, _ = dial(t, b, 4, "device", o)
	if pk := device.read(); string(pk.Payload) != "command" || !pk.FixedHeader.Dup {
		t.Fatalf("got %s, want the command again", describe(pk))
	}
}

func TestCommitDoesNotSerialiseTheConnection(t *testing.T) {
	m := newMemory()
	m.auto = func(_ telemetry.Publish, done func(telemetry.Result)) {
		time.AfterFunc(20*time.Millisecond, func() { done(telemetry.Result{Applied: 1}) })
	}
	b := start(t, Config{}, m)
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	began := time.Now()
	for i := range uint16(100) {
		c.publish(pub{topic: topic1, qos: 1, id: i + 1})
	}
	for i := range uint16(100) {
		c.expect(packets.Puback, i+1)
	}
	if d := time.Since(began); d > time.Second {
		t.Fatalf("100 publishes with a commit of 20ms took %v", d)
	}
}

func TestPacketOverTheLimitEndsTheConnection(t *testing.T) {
	b := start(t, Config{PacketBytesMax: 2048}, newMemory())
	c, ack := dial(t, b, 5, "c1", connectOptions{})
	if ack.Properties.MaximumPacketSize != 2048 {
		t.Fatalf("CONNACK announces %d", ack.Properties.MaximumPacketSize)
	}
	c.send([]byte{0x30, 0xff, 0xff, 0xff, 0x7f})
	c.closed(0x95)
}

func TestMalformedPacketsEndOneConnectionOnly(t *testing.T) {
	b := start(t, Config{}, newMemory())
	honest, _ := dial(t, b, 5, "honest", connectOptions{})
	for _, k := range []struct {
		name string
		p    []byte
		code byte
	}{
		{"SUBSCRIBE without options", packet(0x82, append([]byte{0, 1, 0}, appendString(nil, "a")...)), 0x81}, // mochi's decoder panics
		{"SUBSCRIBE without filter", packet(0x82, []byte{0, 1, 0}), 0x82},
		{"SUBSCRIBE with id 0", packet(0x82, append(append([]byte{0, 0, 0}, appendString(nil, "a")...), 0)), 0x82},
		{"SUBSCRIBE with wrong flags", packet(0x80, append(append([]byte{0, 1, 0}, appendString(nil, "a")...), 0)), 0x81},
		{"PUBLISH of QoS 3", packet(0x36, append(appendString(nil, "a"), 0, 1, 0)), 0x82},
		{"PUBLISH with id 0", packet(0x32, append(appendString(nil, "a"), 0, 0, 0)), 0x82},
		{"PUBLISH to a wildcard", packet(0x30, append(appendString(nil, "a/+"), 0)), 0x82},
		{"PUBLISH without topic", packet(0x30, []byte{0, 0, 0}), 0x82},
		{"PUBLISH with a broken property length", packet(0x30, append(appendString(nil, "a"), 0xff, 0xff, 0xff, 0xff)), 0x81},
		{"PUBLISH with invalid UTF-8", packet(0x30, append(appendString(nil, "a\xff"), 0)), 0x81},
		{"PUBLISH with half a surrogate pair", packet(0x30, append(appendString(nil, "a\xed\xa0\x80"), 0)), 0x81},
		{"PUBLISH with a zero character", packet(0x30, append(appendString(nil, "a\x00"), 0)), 0x81},
		{"SUBSCRIBE with invalid UTF-8", packet(0x82, append(appendString([]byte{0, 1, 0}, "a\xff"), 0)), 0x81},
		{"UNSUBSCRIBE with id 0", packet(0xA2, appendString([]byte{0, 0, 0}, "a")), 0x82},
		{"UNSUBSCRIBE without filter", packet(0xA2, []byte{0, 1, 0}), 0x82},
		{"second CONNECT", connectPacket(5, "again", connectOptions{}), 0x82},
		{"PUBREL with id 0", []byte{0x62, 2, 0, 0}, 0x82},
		{"a packet of the server", []byte{0xD0, 0}, 0x82},
		{"AUTH", []byte{0xF0, 2, 0x18, 0}, 0x82},
		{"type 0", []byte{0x00, 0}, 0x81},
		{"endless length", []byte{0x30, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0x81},
		{"session expiry made up at the end", []byte{0xE0, 7, 0, 5, packets.PropSessionExpiryInterval, 0, 0, 0, 9}, 0x82},
	} {
		t.Run(k.name, func(t *testing.T) {
			c, _ := dial(t, b, 5, "bad", connectOptions{})
			c.send(k.p)
			c.closed(k.code)
			c3, _ := dial(t, b, 4, "bad3", connectOptions{})
			c3.send([]byte{0x36, 3, 0, 1, 'a'})
			c3.closed(0)
		})
	}
	honest.ping()
	eventually(t, "only the honest one is left", func() bool { s := b.Stats(); return s.Sessions == 1 && s.Connections == 1 })
}

func TestWhatIsNoConnectGetsNoAnswer(t *testing.T) {
	b := start(t, Config{}, newMemory())
	cut := func(flags byte, rest string) []byte { // ends before what its flags promise
		return packet(0x10, append(append(appendString(nil, "MQTT"), 4, flags, 0, 0, 0, 1, 'c'), rest...))
	}
	for _, p := range [][]byte{
		cut(2|4, ""), cut(2|4, "\x00\x04will"), cut(2|0x80, ""), cut(2|0xC0, "\x00\x04user"), // a will, its payload, a user name, a password
		{0xC0, 0}, {0x10, 0}, []byte("GET / HTTP/1.1\r\n\r\n"), {0x10, 0xff, 0xff, 0xff, 0xff, 0xff},
		packet(0x10, []byte{0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 0x3c, 0xff, 0xff}),
		packet(0x10, []byte{0xff, 0xff, 0, 0, 0}),
	} {
		c := dialRaw(t, b)
		c.send(p)
		c.closed(0)
	}
}

func TestKeepAliveIsOneAndAHalf(t *testing.T) {
	t.Parallel()
	b := start(t, Config{}, newMemory())
	c, _ := dial(t, b, 5, "c1", connectOptions{keepAlive: 2})
	var last time.Time
	for range 3 {
		time.Sleep(1200 * time.Millisecond)
		last = time.Now()
		c.ping()
	}
	c.closed(0x8D)
	if d := time.Since(last); d < 3*time.Second {
		t.Fatalf("closed %v after the last packet, want 3s", d)
	}
}

func TestServerKeepAliveIsToldAndKept(t *testing.T) {
	t.Parallel()
	b := start(t, Config{KeepAliveMax: time.Second}, newMemory())
	for _, asked := range []uint16{0, 2, 600} {
		c, ack := dial(t, b, 5, fmt.Sprint("c", asked), connectOptions{keepAlive: asked})
		if p := &ack.Properties; !p.ServerKeepAliveFlag || p.ServerKeepAlive != 1 {
			t.Errorf("a client that asks for %d s is told %+v", asked, ack.Properties)
		}
		c.closed(packets.ErrKeepAliveTimeout.Code)
	}
	if _, ack := dial(t, b, 5, "within", connectOptions{keepAlive: 1}); ack.Properties.ServerKeepAliveFlag {
		t.Error("a client within the bound is told another one")
	}
	dial(t, b, 4, "old", connectOptions{keepAlive: 600}) // decodes a CONNACK of two bytes
}

func TestLongKeepAliveDoesNotOverflow(t *testing.T) { // 43,691 * 1.5 is 0 in mochi's 16 bits
	t.Parallel()
	b := start(t, Config{}, newMemory())
	for _, seconds := range []uint16{43_691, 65_535, 0} {
		c, _ := dial(t, b, 4, "c1", connectOptions{keepAlive: seconds})
		time.Sleep(30 * time.Millisecond)
		c.ping()
	}
}
