package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	proxyproto "github.com/pires/go-proxyproto"
)

// Endpoint is one address at which clients reach the broker.
type Endpoint struct {
	// Listen is host:port; port 0 takes any free one.
	Listen string

	// TLS makes the endpoint speak TLS; see TLSFiles for one that follows its files.
	TLS *tls.Config

	// WebSocket expects MQTT inside WebSocket messages (OASIS MQTT 5.0, section 6).
	WebSocket *WebSocket

	// ProxyFrom lists the load balancers in front: a connection from one of them must
	// begin with a PROXY protocol header of version 2, which names the client. From
	// anybody else such a header is garbage: it could claim any address.
	ProxyFrom []netip.Prefix
}

// name is what logs and metrics call the endpoint.
func (e *Endpoint) name() string {
	name := "tcp"
	switch {
	case e.WebSocket != nil && e.TLS != nil:
		name = "wss"
	case e.WebSocket != nil:
		name = "ws"
	case e.TLS != nil:
		name = "tls"
	}
	return name
}

func (e *Endpoint) validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(e.Listen); err != nil {
		errs = append(errs, fmt.Errorf("endpoint %s: %q is not host:port", e.name(), e.Listen))
	}
	if e.TLS != nil && len(e.TLS.Certificates) == 0 && e.TLS.GetCertificate == nil && e.TLS.GetConfigForClient == nil {
		errs = append(errs, fmt.Errorf("endpoint %s on %s: TLS without a certificate", e.name(), e.Listen))
	}
	if w := e.WebSocket; w != nil && w.Path != "" && !strings.HasPrefix(w.Path, "/") {
		errs = append(errs, fmt.Errorf("endpoint %s on %s: path %q must begin with /", e.name(), e.Listen, w.Path))
	}
	return errors.Join(errs...)
}

// open turns an accepted socket into the connection that carries MQTT, layer by
// layer. The caller has set a deadline: everything here happens before anybody is
// authenticated, in bounded memory. On an error the socket is still the caller's.
func (e *Endpoint) open(ctx context.Context, nc net.Conn) (net.Conn, error) {
	if tcp, ok := nc.(*net.TCPConn); ok && (e.TLS != nil || e.WebSocket != nil || e.behindProxy(nc.RemoteAddr())) {
		nc = &patient{TCPConn: tcp}
	}
	if e.behindProxy(nc.RemoteAddr()) {
		p := &proxied{Conn: proxyproto.NewConn(nc, proxyproto.WithPolicy(proxyproto.REQUIRE), proxyproto.ValidateHeader(onlyVersion2),
			proxyproto.SetReadHeaderTimeout(0)), socket: nc}
		if p.ProxyHeader() == nil { // read now, so that nobody blocks on RemoteAddr later
			return nil, errors.New("connection from a load balancer does not begin with a PROXY protocol header of version 2")
		}
		nc = p
	}
	if e.TLS != nil {
		secure := tls.Server(nc, e.TLS)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
		nc = secure
	}
	if e.WebSocket != nil {
		return e.WebSocket.upgrade(nc)
	}
	return nc, nil
}

func (e *Endpoint) behindProxy(remote net.Addr) bool {
	if len(e.ProxyFrom) == 0 {
		return false
	}
	from, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return false
	}
	for _, p := range e.ProxyFrom {
		if p.Contains(from.Addr().Unmap()) {
			return true
		}
	}
	return false
}

func onlyVersion2(h *proxyproto.Header) error {
	if h.Version != 2 {
		return fmt.Errorf("PROXY protocol version %d, only 2 is accepted", h.Version)
	}
	return nil
}

// proxied is a connection that a load balancer passed on; RemoteAddr is the client's.
type proxied struct {
	*proxyproto.Conn
	socket net.Conn
}

// CloseWrite lets the broker linger for the last bytes to be read.
func (p *proxied) CloseWrite() error { return closeWrite(p.socket) }

// closeWrite ends the sending side where the transport can.
func closeWrite(nc net.Conn) error {
	if half, ok := nc.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
