package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/broker"
	"github.com/sluice-iot/sluice/ingest"
)

// MQTTConfig is where clients reach the broker.
type MQTTConfig struct {
	Listen    string          `yaml:"listen"`     // host:port, plain TCP; empty: none, if there is another one
	Advertise string          `yaml:"advertise"`  // as clients reach it; default: listen
	TLS       MQTTTLSConfig   `yaml:"tls"`        // also the certificate of websocket.tls_listen
	WebSocket WebSocketConfig `yaml:"websocket"`  //
	ProxyFrom []string        `yaml:"proxy_from"` // networks of load balancers that send PROXY protocol v2
	Limits    LimitsConfig    `yaml:"limits"`

	KeepAliveMax time.Duration `yaml:"keep_alive_max"` // of MQTT 5 clients; 0: what they ask
	CommitTarget time.Duration `yaml:"commit_target"`  // how long a commit of telemetry should take under load; 0: more and more is taken at once
}

// LimitsConfig bounds what clients of this node may ask per second.
type LimitsConfig struct {
	Connects        float64 `yaml:"connects"`         // CONNECTs let in; more wait up to 2 s
	ClientPublishes float64 `yaml:"client_publishes"` // of one identity, or client id; 0: no limit
	DevicePublishes float64 `yaml:"device_publishes"` // about one device; 0: no limit
}

// MQTTTLSConfig is the encrypted listener. The files are read again when they change.
type MQTTTLSConfig struct {
	Listen     string                 `yaml:"listen"`      // host:port; empty: off
	Cert       string                 `yaml:"cert"`        // PEM files
	Key        string                 `yaml:"key"`         //
	ClientCA   string                 `yaml:"client_ca"`   // authorities of client certificates
	ClientAuth broker.ClientAuth      `yaml:"client_auth"` // none, optional or required
	Identity   broker.CertificateName `yaml:"identity"`    // common_name, dns or uri
}

// WebSocketConfig is MQTT for browsers.
type WebSocketConfig struct {
	Listen    string   `yaml:"listen"`     // host:port; empty: off
	TLSListen string   `yaml:"tls_listen"` // host:port; empty: off
	Path      string   `yaml:"path"`
	Origins   []string `yaml:"origins"` // web origins that may connect; empty: pages of the same host
}

func (c *MQTTConfig) encrypted() bool { return c.TLS.Listen != "" || c.WebSocket.TLSListen != "" }

// validate reports what is wrong without opening anything.
func (c *MQTTConfig) validate(problem func(key, format string, args ...any)) {
	any := false
	for _, a := range []struct{ key, addr string }{{"mqtt.listen", c.Listen}, {"mqtt.tls.listen", c.TLS.Listen},
		{"mqtt.websocket.listen", c.WebSocket.Listen}, {"mqtt.websocket.tls_listen", c.WebSocket.TLSListen}} {
		if a.addr == "" {
			continue
		}
		any = true
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			problem(a.key, "%q is not host:port", a.addr)
		}
	}
	if !any {
		problem("mqtt.listen", "is empty and so are the others: name a host:port for clients to reach")
	}
	if c.encrypted() && (c.TLS.Cert == "" || c.TLS.Key == "") {
		problem("mqtt.tls", "listens without a certificate: set cert and key to PEM files")
	}
	switch c.TLS.ClientAuth {
	case broker.ClientAuthNone, "":
	case broker.ClientAuthOptional, broker.ClientAuthRequired:
		if c.TLS.ClientCA == "" {
			problem("mqtt.tls.client_ca", "is empty: name the PEM file of the authorities that sign client certificates")
		}
	default:
		problem("mqtt.tls.client_auth", "%q: use none, optional or required", c.TLS.ClientAuth)
	}
	switch c.TLS.Identity {
	case broker.NameCommon, broker.NameDNS, broker.NameURI, "":
	default:
		problem("mqtt.tls.identity", "%q: use common_name, dns or uri", c.TLS.Identity)
	}
	if p := c.WebSocket.Path; p != "" && !strings.HasPrefix(p, "/") {
		problem("mqtt.websocket.path", "%q must begin with /", p)
	}
	if l := c.Limits; l.Connects < 1 || l.ClientPublishes < 0 || l.DevicePublishes < 0 {
		problem("mqtt.limits", "are %v, %v and %v per second: use at least 1 connect, and 0 for no limit of publishes", l.Connects, l.ClientPublishes, l.DevicePublishes)
	}
	if k := c.KeepAliveMax; k != 0 && (k < time.Second || k > broker.KeepAliveMaxMax || k%time.Second != 0) {
		problem("mqtt.keep_alive_max", "is %v: use whole seconds from 1s to %v, or 0s for what clients ask", k, broker.KeepAliveMaxMax)
	}
	if t := c.CommitTarget; t < 0 || t > 0 && t < commitTargetMin || t > ingest.TargetMax {
		problem("mqtt.commit_target", "is %v: use %v to %v, or 0s for no bound", t, commitTargetMin, ingest.TargetMax)
	}
	if _, err := c.proxies(); err != nil {
		problem("mqtt.proxy_from", "%v", err)
	}
}

// commitTargetMin is what a commit takes anyway: less would only cost throughput.
const commitTargetMin = 5 * time.Millisecond

func (c *MQTTConfig) proxies() (out []netip.Prefix, err error) {
	for _, s := range c.ProxyFrom {
		p, perr := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil {
			p, perr = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if perr != nil {
			err = errors.Join(err, fmt.Errorf("%q is no network: use 10.0.0.0/8 or an address", s))
			continue
		}
		out = append(out, p.Masked())
	}
	return out, err
}

// broker turns the configuration into that of the broker; certificates are loaded.
func (c *MQTTConfig) broker(logger *slog.Logger) (broker.Config, error) {
	cfg := broker.Config{KeepAliveMax: c.KeepAliveMax, Limits: broker.Limits{Connects: c.Limits.Connects, Identity: c.Limits.ClientPublishes, Device: c.Limits.DevicePublishes}}
	proxies, err := c.proxies()
	if err != nil {
		return cfg, fmt.Errorf("mqtt.proxy_from: %w", err)
	}
	ws := &broker.WebSocket{Path: c.WebSocket.Path, Origins: c.WebSocket.Origins}
	plain := []broker.Endpoint{{Listen: c.Listen}, {Listen: c.WebSocket.Listen, WebSocket: ws}}
	secure := []broker.Endpoint{{Listen: c.TLS.Listen}, {Listen: c.WebSocket.TLSListen, WebSocket: ws}}
	if c.encrypted() {
		files := broker.TLSFiles{Cert: c.TLS.Cert, Key: c.TLS.Key, ClientCA: c.TLS.ClientCA, ClientAuth: c.TLS.ClientAuth}
		conf, err := files.Config(logger)
		if err != nil {
			return cfg, fmt.Errorf("mqtt.tls: %w", err)
		}
		for i := range secure {
			secure[i].TLS = conf
		}
		cfg.Authenticator = broker.CertificateIdentity{Name: c.TLS.Identity}
	}
	for _, e := range append(plain, secure...) {
		if e.Listen != "" {
			e.ProxyFrom = proxies
			cfg.Endpoints = append(cfg.Endpoints, e)
		}
	}
	return cfg, nil
}
