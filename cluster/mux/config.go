package mux

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// Config says who we are and how patient. A zero field takes its default.
type Config struct {
	// Self is our peer id, "<node>.<incarnation>". Required.
	Self string
	// Listen is the host:port to accept peers on; port 0 takes a free one.
	// Required unless Listener is set.
	Listen string
	// Listener replaces Listen; the mux closes it.
	Listener net.Listener
	// Dial replaces net.Dialer, for simulated networks.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// Secret is the cluster secret that both ends prove to know, at least 16
	// bytes. Use random ones: who records a handshake can try out guesses.
	Secret []byte
	// ClusterID may be empty until the node has joined; see SetClusterID.
	ClusterID string
	// TLSServer and TLSClient, both or none, wrap every connection. A client
	// without ServerName and verification of its own expects the peer's node
	// name ("n1") in its certificate; so does a server that asks for client
	// certificates.
	TLSServer, TLSClient *tls.Config

	// PingInterval is the time between pings, default 500 ms. Raft deadlines
	// are checked as often.
	PingInterval time.Duration
	// QuietAfter without a byte from a peer makes the event Quiet, default 800 ms: a
	// ping has had no answer. At least one ping interval.
	QuietAfter time.Duration
	// SilentAfter without a byte from a peer makes the event Silent, default
	// 1500 ms. At least two ping intervals, or a late ping looks like a death.
	SilentAfter time.Duration
	// DeadAfter without a byte closes the connection, default 5 s.
	DeadAfter time.Duration
	// WriteTimeout ends a connection whose peer takes no byte of a write,
	// default 5 s.
	WriteTimeout time.Duration
	// DialTimeout bounds connect and handshake together, default 1 s.
	DialTimeout time.Duration
	// QuickDial is how long a call may wait for the attempt to connect that is
	// under way, default 200 ms.
	QuickDial time.Duration
	// RedialMin is the least time between two attempts and the first backoff,
	// default 20 ms; RedialMax is the longest backoff, default 1 s.
	RedialMin, RedialMax time.Duration
	// ForgetAfter without a call ends redials to an unreachable peer, default
	// 1 min; the next call begins anew.
	ForgetAfter time.Duration

	// RPCTimeout fails a raft request without an answer, default 3 s. Smaller
	// than a slow disk's worst fsync, it makes leaders send entries twice.
	RPCTimeout time.Duration
	// AppendHold is how long raft's replication to a peer without a connection
	// waits for one before it fails, default 2 s. Raft v1.8.0 backs off up to 10 s
	// after a dozen failures and cannot be woken; held, it goes on the moment the
	// peer is back. Raft's Shutdown may take as long while a peer is down, unless
	// Transport.Interrupt is called before.
	AppendHold time.Duration
	// MaxInflight is how many appends a raft pipeline has under way, default 2
	// (raft's own default); more helps only when the round trip is longer than
	// the fsync.
	MaxInflight int

	// FrameBytesMax bounds a frame, default 32 MiB. All nodes should agree.
	FrameBytesMax int
	// RaftPendingBytes is what may wait to be written to one peer before raft's
	// replication waits, default 32 MiB. BulkPendingBytes is the same for
	// application frames, default 8 MiB, beyond it callers get ErrBusy.
	RaftPendingBytes, BulkPendingBytes int

	// SnapshotBytesPerSecond limits outgoing raft snapshots of this node, all
	// groups together. 0 is unlimited.
	SnapshotBytesPerSecond int64
	// StreamStall ends a stream on which nothing moves, default 30 s.
	StreamStall time.Duration
}

// secretBytesMin keeps a guessable word from being the cluster's only lock.
const secretBytesMin = 16

func orDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// withDefaults fills the zero fields.
func (c Config) withDefaults() Config {
	orDefault(&c.PingInterval, 500*time.Millisecond)
	orDefault(&c.SilentAfter, 1500*time.Millisecond)
	orDefault(&c.QuietAfter, min(800*time.Millisecond, c.SilentAfter))
	orDefault(&c.DeadAfter, 5*time.Second)
	orDefault(&c.WriteTimeout, 5*time.Second)
	orDefault(&c.DialTimeout, time.Second)
	orDefault(&c.QuickDial, 200*time.Millisecond)
	orDefault(&c.RedialMin, 20*time.Millisecond)
	orDefault(&c.RedialMax, time.Second)
	orDefault(&c.ForgetAfter, time.Minute)
	orDefault(&c.RPCTimeout, 3*time.Second)
	orDefault(&c.AppendHold, 2*time.Second)
	orDefault(&c.MaxInflight, 2)
	orDefault(&c.FrameBytesMax, 32<<20)
	orDefault(&c.RaftPendingBytes, 32<<20)
	orDefault(&c.BulkPendingBytes, 8<<20)
	orDefault(&c.StreamStall, 30*time.Second)
	return c
}

// Validate reports every problem of c, defaults applied.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	if _, _, err := ParsePeer(c.Self); err != nil {
		errs = append(errs, fmt.Errorf("self: %w", err))
	}
	if c.Listen == "" && c.Listener == nil {
		errs = append(errs, errors.New("listen: an address to accept peers on is required, \":7946\" for example"))
	}
	if len(c.Secret) < secretBytesMin {
		errs = append(errs, fmt.Errorf("secret: %d bytes, at least %d are required", len(c.Secret), secretBytesMin))
	}
	if len(c.ClusterID) > clusterIDBytesMax {
		errs = append(errs, fmt.Errorf("cluster id: %d bytes, at most %d", len(c.ClusterID), clusterIDBytesMax))
	}
	if (c.TLSServer == nil) != (c.TLSClient == nil) {
		errs = append(errs, errors.New("tls: server and client configuration must both be set or both be absent"))
	}
	for name, d := range map[string]time.Duration{"ping interval": c.PingInterval, "write timeout": c.WriteTimeout,
		"dial timeout": c.DialTimeout, "quick dial": c.QuickDial, "redial min": c.RedialMin, "forget after": c.ForgetAfter,
		"rpc timeout": c.RPCTimeout, "append hold": c.AppendHold, "stream stall": c.StreamStall} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("%s: %v is negative", name, d))
		}
	}
	if c.SilentAfter < 2*c.PingInterval {
		errs = append(errs, fmt.Errorf("silent after: %v is less than two ping intervals of %v", c.SilentAfter, c.PingInterval))
	}
	if c.QuietAfter < c.PingInterval || c.QuietAfter > c.SilentAfter {
		errs = append(errs, fmt.Errorf("quiet after: %v is not between a ping interval of %v and silent after, %v", c.QuietAfter, c.PingInterval, c.SilentAfter))
	}
	if c.DeadAfter < c.SilentAfter {
		errs = append(errs, fmt.Errorf("dead after: %v is less than silent after, %v", c.DeadAfter, c.SilentAfter))
	}
	if c.RedialMax < c.RedialMin {
		errs = append(errs, fmt.Errorf("redial max: %v is less than redial min, %v", c.RedialMax, c.RedialMin))
	}
	if c.MaxInflight < 1 || c.MaxInflight > pipelineInflightMax {
		errs = append(errs, fmt.Errorf("max inflight: %d is not in 1..%d", c.MaxInflight, pipelineInflightMax))
	}
	if c.FrameBytesMax < frameBytesMaxMin || c.FrameBytesMax > frameBytesMaxMax {
		errs = append(errs, fmt.Errorf("frame bytes max: %d is not in %d..%d", c.FrameBytesMax, frameBytesMaxMin, frameBytesMaxMax))
	}
	if c.RaftPendingBytes < 0 || c.BulkPendingBytes < 0 || c.SnapshotBytesPerSecond < 0 {
		errs = append(errs, errors.New("pending bytes and snapshot rate must not be negative"))
	}
	return errors.Join(errs...)
}
