package broker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/telemetry"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(serveEnv); kind != "" {
		if err := serveBench(kind); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// held is a publish that the test's ingest path has received and not yet decided.
type held struct {
	telemetry.Publish
	done func(telemetry.Result)
}

func (h *held) apply()                    { h.done(telemetry.Result{Applied: 1}) }
func (h *held) decide(r telemetry.Result) { h.done(r) }

// memory is an ingest path under the test's control: it records what it is given
// and completes it when the test says so, or by itself when auto is set.
type memory struct {
	mu       sync.Mutex
	received []telemetry.Publish
	auto     func(telemetry.Publish, func(telemetry.Result))
	queue    chan *held
}

var quietLog = slog.New(slog.DiscardHandler)

func newMemory() *memory { return &memory{queue: make(chan *held, 100_000)} }

func applied(_ telemetry.Publish, done func(telemetry.Result)) { done(telemetry.Result{Applied: 1}) }

func (m *memory) Publish(p *telemetry.Publish, done func(telemetry.Result)) {
	copied := *p
	copied.Payload = bytes.Clone(p.Payload)
	m.mu.Lock()
	m.received = append(m.received, copied)
	auto := m.auto
	m.mu.Unlock()
	if auto != nil {
		auto(copied, done)
		return
	}
	m.queue <- &held{Publish: copied, done: done}
}

func (m *memory) next(t testing.TB) *held {
	t.Helper()
	select {
	case h := <-m.queue:
		return h
	case <-time.After(20 * time.Second):
		t.Fatal("no publish reached the ingest path within 20s")
		return nil
	}
}

func (m *memory) none(t testing.TB, d time.Duration) {
	t.Helper()
	select {
	case h := <-m.queue:
		t.Fatalf("publish on %s reached the ingest path, want none", h.Topic)
	case <-time.After(d):
	}
}

func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.received)
}

func start(t testing.TB, cfg Config, ingest Ingest) *Broker {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("BROKER_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	hub := alone(t)
	b, err := New(log, prometheus.NewRegistry(), cfg, ingest, hub)
	if err != nil {
		t.Fatal(err)
	}
	hub.Start(b)
	if err := b.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// client is a raw MQTT client: it sends the bytes it is told and decodes what comes.
type client struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
	v byte
}

type connectOptions struct {
	keep       bool // not a clean session
	keepAlive  uint16
	props      []byte
	will       *packets.Packet // topic, payload, qos, retain
	willProps  []byte
	user       string
	wantRefuse bool
}

func dialRaw(t testing.TB, b *Broker) *client {
	t.Helper()
	nc, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &client{Conn: nc, t: t, r: bufio.NewReader(nc)}
}

// dial connects and returns the CONNACK, whose reason must be success unless the
// options say otherwise.
func dial(t testing.TB, b *Broker, version byte, id string, o connectOptions) (*client, packets.Packet) {
	t.Helper()
	c := dialRaw(t, b)
	c.v = version
	c.send(connectPacket(version, id, o))
	ack := c.read()
	if ack.FixedHeader.Type != packets.Connack || (ack.ReasonCode != 0) != o.wantRefuse {
		t.Fatalf("CONNECT of %q: got %s", id, describe(ack))
	}
	return c, ack
}

func connectPacket(version byte, id string, o connectOptions) []byte {
	flags := byte(0)
	if !o.keep {
		flags |= 2
	}
	if o.will != nil {
		flags |= 4 | o.will.FixedHeader.Qos<<3
		if o.will.FixedHeader.Retain {
			flags |= 32
		}
	}
	if o.user != "" {
		flags |= 0x80
	}
	b := append(appendString(nil, "MQTT"), version, flags, byte(o.keepAlive>>8), byte(o.keepAlive))
	if version == 5 {
		b = append(appendVarint(b, len(o.props)), o.props...)
	}
	b = appendString(b, id)
	if o.will != nil {
		if version == 5 {
			b = append(appendVarint(b, len(o.willProps)), o.willProps...)
		}
		b = appendString(appendString(b, o.will.TopicName), string(o.will.Payload))
	}
	if o.user != "" {
		b = appendString(b, o.user)
	}
	return packet(0x10, b)
}

func packet(first byte, body []byte) []byte {
	return append(appendVarint([]byte{first}, len(body)), body...)
}

func (c *client) send(p []byte) {
	c.t.Helper()
	if _, err := c.Write(p); err != nil {
		c.t.Fatalf("send %x: %v", p, err)
	}
}

type pub struct {
	topic, payload string
	qos            byte
	id             uint16
	dup, retain    bool
	props          []byte
}

func (c *client) publish(p pub) { c.t.Helper(); c.send(c.encode(p)) }

func (c *client) encode(p pub) []byte {
	first := byte(0x30) | p.qos<<1
	if p.dup {
		first |= 8
	}
	if p.retain {
		first |= 1
	}
	b := appendString(nil, p.topic)
	if p.qos > 0 {
		b = binary.BigEndian.AppendUint16(b, p.id)
	}
	if c.v == 5 {
		b = append(appendVarint(b, len(p.props)), p.props...)
	}
	return packet(first, append(b, p.payload...))
}

func (c *client) subscribe(filter string, options byte) packets.Packet {
	c.t.Helper()
	b := []byte{0, 77}
	if c.v == 5 {
		b = append(b, 0)
	}
	c.send(packet(0x82, append(appendString(b, filter), options)))
	ack := c.read()
	if ack.FixedHeader.Type != packets.Suback || ack.PacketID != 77 || len(ack.ReasonCodes) != 1 {
		c.t.Fatalf("SUBSCRIBE %s: got %s", filter, describe(ack))
	}
	return ack
}

func (c *client) ack(kind byte, id uint16) {
	first := kind << 4
	if kind == packets.Pubrel {
		first |= 2
	}
	c.send([]byte{first, 2, byte(id >> 8), byte(id)})
}

var errClosed = errors.New("closed by the broker")

func (c *client) tryRead(d time.Duration) (packets.Packet, error) {
	pk := packets.Packet{ProtocolVersion: c.v}
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		return pk, err
	}
	first, err := c.r.ReadByte()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return pk, err
	} else if err != nil {
		return pk, errClosed
	}
	pk.FixedHeader = packets.FixedHeader{Type: first >> 4, Qos: first >> 1 & 3, Dup: first&8 > 0, Retain: first&1 > 0}
	n, err := binary.ReadUvarint(c.r)
	if err != nil {
		return pk, err
	}
	pk.FixedHeader.Remaining = int(n)
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return pk, err
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		return pk, pk.ConnackDecode(body)
	case packets.Publish:
		return pk, pk.PublishDecode(body)
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		return pk, pk.PubackDecode(body)
	case packets.Suback:
		return pk, pk.SubackDecode(body)
	case packets.Unsuback:
		return pk, pk.UnsubackDecode(body)
	case packets.Disconnect:
		return pk, pk.DisconnectDecode(body)
	}
	return pk, nil
}

func (c *client) read() packets.Packet {
	c.t.Helper()
	pk, err := c.tryRead(20 * time.Second)
	if err != nil {
		c.t.Fatalf("read packet: %v", err)
	}
	return pk
}

// expect reads one packet of a kind and packet id.
func (c *client) expect(kind byte, id uint16) packets.Packet {
	c.t.Helper()
	pk := c.read()
	if pk.FixedHeader.Type != kind || pk.PacketID != id {
		c.t.Fatalf("got %s, want %s %d", describe(pk), packets.PacketNames[kind], id)
	}
	return pk
}

// quiet fails when anything arrives within d.
func (c *client) quiet(d time.Duration) {
	c.t.Helper()
	if pk, err := c.tryRead(d); !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("got %s (%v), want nothing", describe(pk), err)
	}
}

// ping proves that everything sent before has been read.
func (c *client) ping() {
	c.t.Helper()
	c.send([]byte{0xC0, 0})
	if pk := c.read(); pk.FixedHeader.Type != packets.Pingresp {
		c.t.Fatalf("got %s, want PINGRESP", describe(pk))
	}
}

// closed wants the connection to end, after a DISCONNECT with the code if it is not 0.
func (c *client) closed(code byte) {
	c.t.Helper()
	pk, err := c.tryRead(20 * time.Second)
	if code != 0 {
		if err != nil || pk.FixedHeader.Type != packets.Disconnect || pk.ReasonCode != code {
			c.t.Fatalf("got %s (%v), want DISCONNECT %#x", describe(pk), err, code)
		}
		pk, err = c.tryRead(20 * time.Second)
	}
	if !errors.Is(err, errClosed) {
		c.t.Fatalf("got %s (%v), want the connection closed", describe(pk), err)
	}
}

func describe(pk packets.Packet) string {
	return fmt.Sprintf("%s id %d code %#x reason %q topic %q payload %.40q", packets.PacketNames[pk.FixedHeader.Type], pk.PacketID,
		pk.ReasonCode, pk.Properties.ReasonString, pk.TopicName, pk.Payload)
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20s: %s", what)
		}
	}
}

// value reads a counter.
func value(t testing.TB, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}
