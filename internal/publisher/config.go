package publisher

import (
	"errors"
	"fmt"
	"net"
	"time"
)

// Config says where to publish and within which limits.
type Config struct {
	// Brokers are MQTT addresses, host:port, of nodes of one cluster. The first
	// is tried first, the others follow when it is gone.
	Brokers []string
	// ClientID must be unique in the cluster: a second client with the same id
	// takes the connection over.
	ClientID string
	// Window is how many publishes may be accepted and not answered. Default 256.
	Window int
	// FirstPacketID is the packet id of the first publish; the next ones count
	// up. 0 is 1. A sender that repeats an earlier run gives the same ids again,
	// so that the cluster recognises what it has.
	FirstPacketID uint16
	// KeepAlive is the longest silence on a connection. Default 30 s.
	KeepAlive time.Duration
	// AckTimeout gives a connection up whose oldest publish is not answered.
	// Default 15 s: longer than a node's commit deadline (10 s), so that a node
	// that lives speaks first.
	AckTimeout time.Duration
	// ConnectTimeout bounds dial and CONNACK. Default 5 s.
	ConnectTimeout time.Duration
	// QuotaPause is the wait before a publish refused with 0x97 is sent again.
	// Default 2 s.
	QuotaPause time.Duration
	// BufferBytes is the size of the write buffer. Default 2 KiB, which suits a
	// device; a bulk sender takes 64 KiB.
	BufferBytes int
}

const (
	windowDefault         = 256
	windowMax             = 32_768 // half of the packet ids, so that a free one is found at once
	keepAliveDefault      = 30 * time.Second
	ackTimeoutDefault     = 15 * time.Second
	connectTimeoutDefault = 5 * time.Second
	quotaPauseDefault     = 2 * time.Second
	bufferBytesDefault    = 2 << 10
	topicBytesMax         = 1<<16 - 1 // MQTT's own
	// Reconnecting waits retryMin after a whole round of brokers has failed,
	// twice as long after each further round, at most retryMax: a node restarts
	// within seconds.
	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
)

// Validate returns every problem of the configuration.
func (c *Config) Validate() error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("brokers is empty: give at least one host:port"))
	}
	for _, b := range c.Brokers {
		if host, port, err := net.SplitHostPort(b); err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("broker %q is not host:port", b))
		}
	}
	if c.ClientID == "" || len(c.ClientID) > 128 {
		errs = append(errs, fmt.Errorf("client id has %d bytes: use 1 to 128", len(c.ClientID)))
	}
	if c.Window < 0 || c.Window > windowMax {
		errs = append(errs, fmt.Errorf("window is %d: use 1 to %d", c.Window, windowMax))
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"keep alive", c.KeepAlive}, {"ack timeout", c.AckTimeout}, {"connect timeout", c.ConnectTimeout}, {"quota pause", c.QuotaPause}} {
		if d.d < 0 || d.d > time.Hour {
			errs = append(errs, fmt.Errorf("%s is %v: use up to 1h, 0 is the default", d.name, d.d))
		}
	}
	if c.BufferBytes < 0 || c.BufferBytes > 1<<20 {
		errs = append(errs, fmt.Errorf("buffer is %d bytes: use up to 1 MiB, 0 is the default", c.BufferBytes))
	}
	return errors.Join(errs...)
}

func (c *Config) defaults() {
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	set(&c.KeepAlive, keepAliveDefault)
	set(&c.AckTimeout, ackTimeoutDefault)
	set(&c.ConnectTimeout, connectTimeoutDefault)
	set(&c.QuotaPause, quotaPauseDefault)
	if c.Window == 0 {
		c.Window = windowDefault
	}
	if c.FirstPacketID == 0 {
		c.FirstPacketID = 1
	}
	if c.BufferBytes == 0 {
		c.BufferBytes = bufferBytesDefault
	}
}
