package broker

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/mochi-mqtt/server/v2/packets"
	proxyproto "github.com/pires/go-proxyproto"
)

// authority signs certificates of a test.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	a.key = a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) write(name, kind string, der []byte) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// issue makes NAME.pem and NAME.key.
func (a *authority) issue(name string, serial int64, uri string) {
	a.t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			a.t.Fatal(err)
		}
		tmpl.URIs = []*url.URL{u}
	}
	key := a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+".pem", "CERTIFICATE", der)
	a.write(name+".key", "EC PRIVATE KEY", keyDER)
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) files(auth ClientAuth) TLSFiles {
	return TLSFiles{Cert: a.path("broker.pem"), Key: a.path("broker.key"), ClientCA: a.path("ca.pem"), ClientAuth: auth}
}

func (a *authority) server(auth ClientAuth) *tls.Config {
	a.t.Helper()
	cfg, err := a.files(auth).Config(slog.New(slog.DiscardHandler))
	if err != nil {
		a.t.Fatal(err)
	}
	return cfg
}

// client trusts the authority and shows the certificate of name, if there is one.
func (a *authority) client(name string) *tls.Config {
	a.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	cfg := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
	if name != "" {
		pair, err := tls.LoadX509KeyPair(a.path(name+".pem"), a.path(name+".key"))
		if err != nil {
			a.t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg
}

// hello runs CONNECT over a connection that is open already.
func hello(t testing.TB, nc net.Conn, id string) (*client, packets.Packet, error) {
	t.Helper()
	t.Cleanup(func() { nc.Close() })
	c := &client{Conn: nc, t: t, r: bufio.NewReader(nc), v: 5}
	if _, err := nc.Write(connectPacket(5, id, connectOptions{})); err != nil {
		return c, packets.Packet{}, err
	}
	ack, err := c.tryRead(10 * time.Second)
	return c, ack, err
}

func mustHello(t testing.TB, nc net.Conn, id string) *client {
	t.Helper()
	c, ack, err := hello(t, nc, id)
	if err != nil || ack.FixedHeader.Type != packets.Connack || ack.ReasonCode != 0 {
		t.Fatalf("CONNECT of %q: got %s, %v", id, describe(ack), err)
	}
	return c
}

func dialTCP(t testing.TB, addr net.Addr) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	return nc
}

func TestTLSEndpointAcknowledgesAndTakesTheIdentityFromTheCertificate(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	a.issue("meter-7", 3, "urn:device:meter-7")
	m := newMemory()
	m.auto = applied
	for name, want := range map[CertificateName]string{NameCommon: "meter-7", NameDNS: "meter-7", NameURI: "urn:device:meter-7"} {
		who := make(identities, 4)
		b := start(t, Config{Endpoints: []Endpoint{{Listen: "127.0.0.1:0", TLS: a.server(ClientAuthOptional)}},
			Authenticator: who.of(CertificateIdentity{Name: name})}, m)
		c := mustHello(t, tls.Client(dialTCP(t, b.Addrs()[1]), a.client("meter-7")), "meter-7")
		if got := <-who; got.Name != want {
			t.Errorf("identity by %s: got %q, want %q", name, got.Name, want)
		}
		c.publish(pub{topic: topic1, payload: "{}", qos: 1, id: 9})
		c.expect(packets.Puback, 9)

		// The session is bound to the identity: nobody without the certificate takes it over.
		if _, ack, err := hello(t, dialTCP(t, b.Addrs()[0]), "meter-7"); err != nil || ack.ReasonCode != packets.ErrNotAuthorized.Code {
			t.Errorf("take-over by a nameless client: got %s, %v, want not authorised", describe(ack), err)
		}
		c.ping()
	}
}

// identities notes what an Authenticator answered.
type identities chan Identity

func (i identities) of(a Authenticator) Authenticator { return recorder{a, i} }

type recorder struct {
	Authenticator
	seen identities
}

func (r recorder) Authenticate(ctx context.Context, c Credentials) (Identity, error) {
	id, err := r.Authenticator.Authenticate(ctx, c)
	select {
	case r.seen <- id:
	default:
	}
	return id, err
}

// addresses notes where clients came from.
type addresses chan net.Addr

func (a addresses) Authenticate(_ context.Context, c Credentials) (Identity, error) {
	select {
	case a <- c.Remote:
	default:
	}
	return Identity{}, nil
}

func TestTLSEndpointRefusesWhoShowsNoCertificateOrAForeignOne(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	a.issue("broker", 2, "")
	other.issue("intruder", 2, "")
	b := start(t, Config{Endpoints: []Endpoint{{Listen: "127.0.0.1:0", TLS: a.server(ClientAuthRequired)}}}, newMemory())
	foreign := a.client("")
	foreign.Certificates = other.client("intruder").Certificates
	for name, cfg := range map[string]*tls.Config{"no certificate": a.client(""), "foreign authority": foreign} {
		if _, ack, err := hello(t, tls.Client(dialTCP(t, b.Addrs()[1]), cfg), "x"); err == nil {
			t.Errorf("%s: got %s, want the handshake refused", name, describe(ack))
		}
	}
	// Plain MQTT on a TLS port is no handshake either.
	if _, ack, err := hello(t, dialTCP(t, b.Addrs()[1]), "x"); err == nil && ack.FixedHeader.Type == packets.Connack {
		t.Errorf("plain MQTT on the TLS endpoint: got %s", describe(ack))
	}
	eventually(t, "all are turned away", func() bool { return b.Stats().HalfOpen == 0 })
}

func TestRenewedCertificateIsServedWithoutARestart(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	r := &reloader{files: a.files(ClientAuthNone), logger: slog.New(slog.DiscardHandler)}
	var err error
	if r.stamp, err = r.stat(); err != nil {
		t.Fatal(err)
	}
	if r.config, err = r.files.load(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	serial := func() int64 { return r.current(now).Certificates[0].Leaf.SerialNumber.Int64() }
	later := func() { now = now.Add(tlsReloadInterval) }
	a.issue("broker", 77, "")
	touch(t, a.path("broker.pem"))
	later()
	if got := serial(); got != 77 {
		t.Fatalf("serial %d after the renewal, want 77", got)
	}
	a.write("broker.pem", "GARBAGE", []byte("x"))
	later()
	if got := serial(); got != 77 {
		t.Fatalf("serial %d after the file broke, want the old certificate in force", got)
	}
	a.issue("broker", 78, "")
	touch(t, a.path("broker.pem"))
	later()
	if got := serial(); got != 78 {
		t.Fatalf("serial %d after the repair, want 78", got)
	}
}

// touch makes sure that the file looks changed whatever the clock's grain.
func touch(t testing.TB, path string) {
	t.Helper()
	at := time.Now().Add(time.Duration(time.Now().UnixNano()%1e6+1) * time.Second)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestUnusableTLSFilesAreNamed(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	a.write("empty.pem", "NOTHING", nil)
	for name, f := range map[string]TLSFiles{
		"absent.pem":  {Cert: a.path("absent.pem"), Key: a.path("broker.key")},
		"ca.pem":      {Cert: a.path("ca.pem"), Key: a.path("broker.key")},
		"empty.pem":   {Cert: a.path("broker.pem"), Key: a.path("broker.key"), ClientCA: a.path("empty.pem"), ClientAuth: ClientAuthRequired},
		"\"perhaps\"": {Cert: a.path("broker.pem"), Key: a.path("broker.key"), ClientAuth: "perhaps"},
	} {
		if _, err := f.Config(slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, want an error that names it", name, err)
		}
	}
}

func TestMosquittoPublishesOverTLSWithAClientCertificate(t *testing.T) {
	bin, err := exec.LookPath("mosquitto_pub")
	if err != nil {
		t.Fatal("mosquitto_pub is missing: run make test-deps")
	}
	a := newAuthority(t)
	a.issue("broker", 2, "")
	a.issue("d1", 3, "")
	m := newMemory()
	m.auto = applied
	b := start(t, Config{Endpoints: []Endpoint{{Listen: "127.0.0.1:0", TLS: a.server(ClientAuthRequired)}}}, m)
	_, port, _ := net.SplitHostPort(b.Addrs()[1].String())
	out, err := exec.Command(bin, "-h", "127.0.0.1", "-p", port, "--cafile", a.path("ca.pem"), "--cert", a.path("d1.pem"), "--key", a.path("d1.key"),
		"-q", "1", "-V", "5", "-t", topic1, "-m", "{}").CombinedOutput()
	if err != nil || m.count() != 1 {
		t.Fatalf("mosquitto_pub over TLS: %v, %s; %d publishes arrived", err, out, m.count())
	}
}

func dialWebSocket(t testing.TB, scheme string, addr net.Addr, path string, cfg *tls.Config, header http.Header) (net.Conn, int, error) {
	t.Helper()
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}, TLSClientConfig: cfg, HandshakeTimeout: 10 * time.Second}
	ws, resp, err := d.Dial(scheme+"://"+addr.String()+path, header)
	status := 0
	if resp != nil {
		status = resp.StatusCode
	}
	if err != nil {
		return nil, status, err
	}
	if ws.Subprotocol() != "mqtt" {
		t.Errorf("subprotocol %q, want mqtt", ws.Subprotocol())
	}
	return &webSocketClient{Conn: ws.NetConn(), ws: ws}, status, nil
}

// webSocketClient is a stream of bytes in binary messages, by a library that is not
// the broker's.
type webSocketClient struct {
	net.Conn
	ws      *websocket.Conn
	message io.Reader
}

func (c *webSocketClient) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			_, r, err := c.ws.NextReader()
			if err != nil {
				return 0, err
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if err == io.EOF {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *webSocketClient) Write(p []byte) (int, error) {
	return len(p), c.ws.WriteMessage(websocket.BinaryMessage, p)
}

func TestWebSocketEndpointsCarryMQTT(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	m := newMemory()
	m.auto = applied
	b := start(t, Config{Endpoints: []Endpoint{
		{Listen: "127.0.0.1:0", WebSocket: &WebSocket{}},
		{Listen: "127.0.0.1:0", WebSocket: &WebSocket{}, TLS: a.server(ClientAuthNone)},
	}}, m)
	for i, scheme := range []string{"ws", "wss"} {
		nc, _, err := dialWebSocket(t, scheme, b.Addrs()[1+i], "/mqtt", a.client(""), nil)
		if err != nil {
			t.Fatalf("%s: %v", scheme, err)
		}
		c := mustHello(t, nc, scheme)
		// Packets that begin and end anywhere in messages.
		stream := append(c.encode(pub{topic: topic1, payload: "{}", qos: 1, id: 1}), c.encode(pub{topic: topic1, payload: strings.Repeat("x", 3000), qos: 1, id: 2})...)
		for len(stream) > 0 {
			n := min(len(stream), 700)
			c.send(stream[:n])
			stream = stream[n:]
		}
		c.expect(packets.Puback, 1)
		c.expect(packets.Puback, 2)
		c.ping()
		b.all()[0].fail(packets.ErrAdministrativeAction)
		c.closed(packets.ErrAdministrativeAction.Code) // the reason arrives, then the end
		eventually(t, "the connection is gone", func() bool { return b.Stats().Connections == 0 })
	}
	if m.count() != 4 {
		t.Errorf("%d publishes arrived, want 4", m.count())
	}
}

func TestWebSocketUpgradeRefusesWhatIsNone(t *testing.T) {
	b := start(t, Config{Endpoints: []Endpoint{
		{Listen: "127.0.0.1:0", WebSocket: &WebSocket{}},
		{Listen: "127.0.0.1:0", WebSocket: &WebSocket{Origins: []string{"https://console.example.net"}}},
	}}, newMemory())
	same, listed := b.Addrs()[1], b.Addrs()[2]
	origin := func(o string) http.Header { return http.Header{"Origin": {o}} }
	for _, c := range []struct {
		name   string
		addr   net.Addr
		path   string
		header http.Header
		want   int
	}{
		{"unknown path", same, "/other", nil, http.StatusNotFound},
		{"foreign page", same, "/mqtt", origin("https://evil.example.net"), http.StatusForbidden},
		{"page of the same host", same, "/mqtt", origin("http://" + same.String()), http.StatusSwitchingProtocols},
		{"listed page", listed, "/mqtt", origin("https://console.example.net"), http.StatusSwitchingProtocols},
		{"page that is not listed", listed, "/mqtt", origin("http://" + listed.String()), http.StatusForbidden},
	} {
		nc, status, err := dialWebSocket(t, "ws", c.addr, c.path, nil, c.header)
		if status != c.want {
			t.Errorf("%s: status %d (%v), want %d", c.name, status, err, c.want)
		}
		if err == nil {
			nc.Close()
		}
	}
	for name, request := range map[string]string{
		"no upgrade":     "GET /mqtt HTTP/1.1\r\nHost: x\r\n\r\n",
		"no subprotocol": "GET /mqtt HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
	} {
		nc := dialTCP(t, same)
		if _, err := nc.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: got %v, %v, want 400", name, resp, err)
		}
		nc.Close()
	}
	// A request that never ends costs a bounded buffer and is closed.
	nc := dialTCP(t, same)
	defer nc.Close()
	flood := []byte("GET /mqtt HTTP/1.1\r\nX: " + strings.Repeat("a", 2*upgradeBytesMax))
	_, _ = nc.Write(flood) // the broker may close in the middle
	if err := nc.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("endless request: got %v, want the connection closed", err)
	}
}

func TestProxyProtocolNamesTheClientOnlyFromTrustedBalancers(t *testing.T) {
	from := make(chan net.Addr, 1)
	cfg := Config{Authenticator: addresses(from), ConnectTimeout: 2 * time.Second, Endpoints: []Endpoint{
		{Listen: "127.0.0.1:0", ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		{Listen: "127.0.0.1:0", ProxyFrom: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
	}}
	b := start(t, cfg, newMemory())
	trusting, strange := b.Addrs()[1], b.Addrs()[2]
	client := &net.TCPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 4711}
	header := func(version byte) []byte {
		h := proxyproto.HeaderProxyFromAddrs(version, client, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1883})
		p, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	send := func(addr net.Addr, p []byte) net.Conn {
		nc := dialTCP(t, addr)
		if _, err := nc.Write(p); err != nil {
			t.Fatal(err)
		}
		return nc
	}
	mustHello(t, send(trusting, header(2)), "behind").ping()
	if got := <-from; got.String() != client.String() {
		t.Errorf("client's address is %v, want %v", got, client)
	}
	for name, nc := range map[string]net.Conn{
		"version 1":                  send(trusting, header(1)),
		"no header":                  send(trusting, nil),
		"header from somebody else":  send(strange, header(2)),
		"header cut in the middle":   send(trusting, header(2)[:20]),
		"header of impossible bytes": send(trusting, append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x21, 0x11, 0xff, 0xff)),
	} {
		if _, ack, err := hello(t, nc, "x"); err == nil {
			t.Errorf("%s: got %s, want the connection refused", name, describe(ack))
		}
	}
	mustHello(t, dialTCP(t, strange), "direct").ping() // not behind a balancer: plain MQTT
}

func TestSilentClientsOfEveryEndpointAreCutOffAtTheDeadline(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	b := start(t, Config{ConnectTimeout: 300 * time.Millisecond, Endpoints: layersOf(a)}, newMemory())
	for _, addr := range b.Addrs() {
		nc := dialTCP(t, addr)
		if err := nc.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Read(make([]byte, 64)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: still open long after the connect timeout", addr)
		}
		nc.Close()
	}
	eventually(t, "no half-open connection is left", func() bool { return b.Stats().HalfOpen == 0 })
}
