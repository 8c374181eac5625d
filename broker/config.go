package broker

import (
	"errors"
	"fmt"
	"time"
)

// Config is everything an operator can change about a node's broker. The zero
// value of a field means its default.
type Config struct {
	// Listen is the address of a plain TCP endpoint, "127.0.0.1:1883" by default unless
	// there are Endpoints. Port 0 takes any free port; Addr tells which.
	Listen string

	// Endpoints are further addresses, of any kind.
	Endpoints []Endpoint

	// ClusterID marks the write tokens that acknowledgements carry: another
	// cluster refuses them.
	ClusterID string

	// Window is how many publishes of one connection may wait for their answer;
	// MQTT 5 clients are told it as the receive maximum. Default 1024. Larger
	// windows let one gateway use more of the cluster and cost memory per publish.
	Window int

	// CommitDeadline closes a connection whose oldest publish is not committed
	// after this time, so that the client redelivers, possibly to another node.
	// Default 10 s.
	CommitDeadline time.Duration

	// InFlightBytesMax bounds the payload bytes handed to the ingest path and not
	// yet answered, over all connections. Default 64 MiB. What is over it waits.
	InFlightBytesMax int64

	// WaitBytesMax bounds the payload bytes that one connection may have read but
	// not yet handed over; beyond it the connection is not read. Default 64 KiB:
	// enough for a ping behind a burst of publishes to be seen and answered.
	WaitBytesMax int64

	// WaitBytesTotal bounds the same over all connections. Default 64 MiB.
	WaitBytesTotal int64

	// PacketBytesMax bounds a whole MQTT packet; a larger one ends the connection
	// (0x95). Default 1 MiB.
	PacketBytesMax uint32

	// PayloadBytesMax bounds the payload of a publish; a larger one is refused.
	// Default 512 KiB, at most PacketBytesMax.
	PayloadBytesMax int

	// ConnectBytesMax bounds the CONNECT packet, which is read before anybody is
	// authenticated. Default 64 KiB.
	ConnectBytesMax int

	// ConnectTimeout is how long a connection may take to send CONNECT and to be
	// authenticated. Default 5 s.
	ConnectTimeout time.Duration

	// HalfOpenMax bounds connections that have not finished CONNECT; one more
	// waits up to a second, then pushes the oldest of them out. Default 4096.
	HalfOpenMax int

	// ConnectionsMax bounds all connections of the node; more are answered 0x9C where
	// other nodes serve, else 0x89 (3.1.1: 3). Default 50,000.
	ConnectionsMax int

	// OthersServe reports whether another node takes clients; nil: there is none. It
	// does not block.
	OthersServe func() bool

	// SessionExpiryMax bounds how long a session outlives its connection; a 3.1.1
	// client without clean session gets exactly this. Default 24 h.
	SessionExpiryMax time.Duration

	// KeepAliveMax is the longest keep-alive of an MQTT 5 client: one that asks for
	// more, or for none, is told this one (Server Keep Alive) and held to it. A 3.1.1
	// client cannot be told and keeps its own. 0, the default, leaves it to the clients.
	KeepAliveMax time.Duration

	// SubscriptionsMax bounds the subscriptions of one client (0x97, 3.1.1: 0x80).
	// Default 1000.
	SubscriptionsMax int

	// TopicAliasMax is the highest topic alias in both directions. Default 32.
	TopicAliasMax uint16

	// QueueMax bounds the QoS 1 and 2 messages that wait for one subscriber, sent
	// or not; QueueBytesMax their payload bytes. More are dropped and counted.
	// Defaults 1000 and 1 MiB.
	QueueMax      int
	QueueBytesMax int

	// OutBytesMax bounds the bytes that wait in memory for one connection's socket;
	// QoS 0 messages over it are dropped and counted, control packets over twice of
	// it end the connection. Default 1 MiB.
	OutBytesMax int

	// WriteTimeout ends a connection whose peer takes nothing for this long.
	// Default 30 s.
	WriteTimeout time.Duration

	// ReadBufferBytes is the read buffer of a connection. Default 2 KiB; larger
	// ones save system calls of busy gateways and cost memory on every connection.
	ReadBufferBytes int

	// IdleAfter is how long a connection that was busy may be silent before it
	// gives its goroutine and buffers back; up to twice of it passes. Default 1 s.
	IdleAfter time.Duration

	// Limits bound what clients may ask per second.
	Limits Limits

	// Authenticator decides who a client is; nil lets everybody in.
	Authenticator Authenticator

	// Authorizer decides what a client may publish and receive; nil allows all.
	Authorizer Authorizer
}

const (
	clientIDBytesMax = 256   // longer than any certificate name in use; ids are map keys
	topicLevelsMax   = 32    // the topic index walks level by level: this bounds its recursion
	topicBytesMax    = 1024  // topics are copied into every queue; telemetry's are below 160
	windowMax        = 65535 // packet ids and the receive maximum are 16 bits
	deliverWindow    = 256   // QoS 1 and 2 messages on the wire to one subscriber, below its own receive maximum
	reasonBytesMax   = 256   // a reason string is for a person; it must not grow an ack
)

// KeepAliveMaxMax is the largest KeepAliveMax: it has 16 bits on the wire.
const KeepAliveMaxMax = 65535 * time.Second

func (c Config) withDefaults() Config {
	if len(c.Endpoints) == 0 {
		def(&c.Listen, "127.0.0.1:1883")
	}
	if c.Listen != "" {
		c.Endpoints = append([]Endpoint{{Listen: c.Listen}}, c.Endpoints...)
		c.Listen = ""
	}
	def(&c.Window, 1024)
	def(&c.CommitDeadline, 10*time.Second)
	def(&c.InFlightBytesMax, 64<<20)
	def(&c.WaitBytesMax, 64<<10)
	def(&c.WaitBytesTotal, 64<<20)
	def(&c.PacketBytesMax, 1<<20)
	def(&c.PayloadBytesMax, min(512<<10, int(c.PacketBytesMax)))
	def(&c.ConnectBytesMax, 64<<10)
	def(&c.ConnectTimeout, 5*time.Second)
	def(&c.HalfOpenMax, 4096)
	def(&c.ConnectionsMax, 50_000)
	def(&c.SessionExpiryMax, 24*time.Hour)
	def(&c.SubscriptionsMax, 1000)
	def(&c.TopicAliasMax, 32)
	def(&c.QueueMax, 1000)
	def(&c.QueueBytesMax, 1<<20)
	def(&c.OutBytesMax, 1<<20)
	def(&c.WriteTimeout, 30*time.Second)
	def(&c.ReadBufferBytes, 2<<10)
	def(&c.IdleAfter, time.Second)
	def(&c.Limits.Connects, 5000)
	def(&c.Limits.ConnectWait, 2*time.Second)
	return c
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Validate returns every problem of the configuration at once.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(c.Limits.Connects >= 1, "limits: connects %v per second: want at least 1", c.Limits.Connects)
	bad(c.Limits.ConnectWait > 0, "limits: connect wait %v: must not be negative", c.Limits.ConnectWait)
	bad(c.Limits.Identity >= 0 && c.Limits.Device >= 0, "limits: %v and %v publishes per second: must not be negative", c.Limits.Identity, c.Limits.Device)
	for i := range c.Endpoints {
		if err := c.Endpoints[i].validate(); err != nil {
			errs = append(errs, err)
		}
	}
	bad(c.Window > 0 && c.Window <= windowMax, "window %d: want 1 to %d", c.Window, windowMax)
	bad(c.PacketBytesMax >= 1024 && c.PacketBytesMax <= 256<<20, "packet_bytes_max %d: want 1 KiB to 256 MiB", c.PacketBytesMax)
	bad(c.PayloadBytesMax > 0 && uint32(c.PayloadBytesMax) <= c.PacketBytesMax, "payload_bytes_max %d: want 1 to packet_bytes_max (%d)", c.PayloadBytesMax, c.PacketBytesMax)
	bad(c.ConnectBytesMax >= 256, "connect_bytes_max %d: want at least 256", c.ConnectBytesMax)
	bad(c.KeepAliveMax == 0 || c.KeepAliveMax >= time.Second && c.KeepAliveMax <= KeepAliveMaxMax && c.KeepAliveMax%time.Second == 0,
		"keep_alive_max %v: want whole seconds, 1s to %v, or 0 for what clients ask", c.KeepAliveMax, KeepAliveMaxMax)
	bad(c.SessionExpiryMax >= time.Second, "session_expiry_max %v: want at least 1s", c.SessionExpiryMax)
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"commit_deadline", int64(c.CommitDeadline)}, {"in_flight_bytes_max", c.InFlightBytesMax},
		{"wait_bytes_max", c.WaitBytesMax}, {"wait_bytes_total", c.WaitBytesTotal},
		{"connect_timeout", int64(c.ConnectTimeout)}, {"half_open_max", int64(c.HalfOpenMax)},
		{"connections_max", int64(c.ConnectionsMax)},
		{"subscriptions_max", int64(c.SubscriptionsMax)}, {"queue_max", int64(c.QueueMax)},
		{"queue_bytes_max", int64(c.QueueBytesMax)}, {"out_bytes_max", int64(c.OutBytesMax)},
		{"write_timeout", int64(c.WriteTimeout)}, {"read_buffer_bytes", int64(c.ReadBufferBytes)},
		{"idle_after", int64(c.IdleAfter)},
	} {
		bad(f.value > 0, "%s %d: must not be negative", f.name, f.value)
	}
	return errors.Join(errs...)
}
