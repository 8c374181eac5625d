package gossip

import (
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/sluice-iot/sluice/cluster"
)

// SecretBytesMin is the least length of the cluster's secret: 128 bits.
const SecretBytesMin = 16

// Config of gossip. Zero durations take their defaults.
type Config struct {
	// Bind is the host:port to listen on, UDP and TCP. Port 0 takes a free one.
	Bind string
	// Advertise is the host:port that others reach this node on. Default: Bind;
	// required when Bind is an unspecified address.
	Advertise string
	// Seeds are the gossip addresses of some members, this node's own allowed.
	// None of them needs to be up.
	Seeds []string
	// Secret is shared by all nodes of the cluster, at least SecretBytesMin.
	Secret []byte
	// Self is what this node says of itself. State is ignored, Node is taken
	// from Peer.
	Self Member
	// ProbeInterval is how often a member is probed. Default 250 ms. Suspicion of
	// a silent member takes three to four of them, its death in a cluster of
	// three about ten.
	ProbeInterval time.Duration
	// ProbeTimeout is how long a ping may take: the 99th percentile of the
	// network's round trip under load, at most ProbeInterval. Default 150 ms.
	ProbeTimeout time.Duration
	// Transport replaces the sockets, for simulated networks.
	Transport Transport
}

// Transport carries packets and streams between members. It belongs to the gossip
// that it is given to, which shuts it down.
type Transport = memberlist.Transport

func (c Config) withDefaults() Config {
	if c.ProbeInterval == 0 {
		c.ProbeInterval = 250 * time.Millisecond
	}
	if c.ProbeTimeout == 0 {
		c.ProbeTimeout = 150 * time.Millisecond
	}
	if c.Advertise == "" {
		c.Advertise = c.Bind
	}
	c.Self.State = Alive
	c.Self.Node, _, _ = cluster.SplitPeer(c.Self.Peer)
	return c
}

// Validate reports every problem at once.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	if _, err := resolve(c.Bind); err != nil {
		errs = append(errs, fmt.Errorf("bind address: %w", err))
	}
	if a, err := resolve(c.Advertise); err != nil {
		errs = append(errs, fmt.Errorf("advertised address: %w", err))
	} else if a.IP.IsUnspecified() {
		errs = append(errs, fmt.Errorf("advertised address %s cannot be reached by others: set it to one that can", c.Advertise))
	}
	if len(c.Secret) < SecretBytesMin {
		errs = append(errs, fmt.Errorf("secret of %d bytes: use at least %d", len(c.Secret), SecretBytesMin))
	}
	if _, _, err := cluster.SplitPeer(c.Self.Peer); err != nil {
		errs = append(errs, err)
	}
	if n := len(encodeMember(c.Self)); n > memberlist.MetaMaxSize {
		errs = append(errs, fmt.Errorf("addresses, zone and ids take %d bytes, %d are allowed: shorten them", n, memberlist.MetaMaxSize))
	}
	if c.ProbeInterval < 50*time.Millisecond || c.ProbeTimeout < 10*time.Millisecond || c.ProbeTimeout > c.ProbeInterval {
		errs = append(errs, fmt.Errorf("probe interval %v and timeout %v: use at least 50ms and 10ms, the timeout not longer than the interval", c.ProbeInterval, c.ProbeTimeout))
	}
	return errors.Join(errs...)
}

// resolve turns host:port into an address. An empty host is refused: listening
// everywhere must be said.
func resolve(addr string) (*net.TCPAddr, error) {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, err
	}
	if a.IP == nil {
		return nil, fmt.Errorf("%q names no host", addr)
	}
	return a, nil
}

// memberlist translates the configuration. Everything that matters is set here,
// whatever the defaults of a later version are.
func (c Config) memberlist(logger *slog.Logger) (*memberlist.Config, error) {
	key, err := hkdf.Key(sha256.New, c.Secret, nil, "sluice gossip v1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive gossip key: %w", err)
	}
	bind, err := resolve(c.Bind)
	if err != nil {
		return nil, err
	}
	adv, err := resolve(c.Advertise)
	if err != nil {
		return nil, err
	}
	mc := memberlist.DefaultLANConfig()
	mc.Name = string(c.Self.Node)
	mc.BindAddr, mc.BindPort = bind.IP.String(), bind.Port
	mc.AdvertiseAddr, mc.AdvertisePort = adv.IP.String(), adv.Port
	mc.SecretKey = key
	mc.GossipVerifyIncoming, mc.GossipVerifyOutgoing = true, true
	mc.ProbeInterval, mc.ProbeTimeout = c.ProbeInterval, c.ProbeTimeout
	// Dead after 4 x max(1, log10(n+1)) intervals without a word: 1 s in a small
	// cluster, so that a node which restarts elsewhere is soon accepted.
	mc.SuspicionMult, mc.SuspicionMaxTimeoutMult = 4, 3
	mc.AwarenessMaxMultiplier = 4
	mc.IndirectChecks = 3
	mc.GossipInterval, mc.GossipNodes = 100*time.Millisecond, 3
	mc.GossipToTheDeadTime = time.Minute
	mc.PushPullInterval = 10 * time.Second
	mc.TCPTimeout = 2 * time.Second
	mc.DeadNodeReclaimTime = time.Millisecond // a dead node's name may come back on another port
	mc.EnableCompression = false              // messages are a few hundred bytes
	mc.Logger = libraryLogger(logger)
	mc.Transport = c.Transport
	return mc, nil
}
