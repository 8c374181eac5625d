package mux

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// firstEvent subscribes and returns a channel with the events of one kind.
func eventsOf(m *Mux, kind EventKind) <-chan Event {
	events := make(chan Event, 100)
	m.Subscribe(func(e Event) {
		if e.Kind == kind {
			select {
			case events <- e:
			default:
			}
		}
	})
	return events
}

func TestHandshakeRefusesWithAReason(t *testing.T) {
	cases := map[string]struct {
		a, b   func(*Config)
		reason string
	}{
		"wrong secret":  {a: func(c *Config) { c.Secret = []byte("another secret, as long") }, reason: "wrong secret"},
		"wrong cluster": {a: func(c *Config) { c.ClusterID = "red" }, b: func(c *Config) { c.ClusterID = "blue" }, reason: "wrong cluster"},
		"wrong peer":    {b: func(c *Config) { c.Self = "n1.99999999" }, reason: "wrong peer"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			none := func(*Config) {}
			if c.a == nil {
				c.a = none
			}
			if c.b == nil {
				c.b = none
			}
			d := newDirectory()
			a, b := newTestMux(t, d, peerID(0), c.a), newTestMux(t, d, peerID(1), c.b)
			d.set(peerID(1), b.Addr().String())
			b.Handle(64, echo)
			refused := eventsOf(a, Refused)
			_, err := a.Call(testContext(t), peerID(1), 64, 0, nil)
			if r := (*RefusedError)(nil); !errors.As(err, &r) || !strings.Contains(r.Reason, c.reason) || !errors.Is(err, ErrNotConnected) {
				t.Fatalf("got %v, want a refusal because of %s", err, c.reason)
			}
			if e := <-refused; e.Peer != peerID(1) || !strings.Contains(e.Err.Error(), c.reason) {
				t.Errorf("event %+v", e)
			}
			if len(b.connections()) != 0 || b.Connected(peerID(0)) {
				t.Error("the refused dialer has a connection")
			}
		})
	}
}

func TestClusterIDCountsOnlyWhenBothHaveOne(t *testing.T) {
	d := newDirectory()
	a := newTestMux(t, d, peerID(0))
	b := newTestMux(t, d, peerID(1), func(c *Config) { c.ClusterID = "blue" })
	b.Handle(64, echo)
	if _, err := a.Call(testContext(t), peerID(1), 64, 0, nil); err != nil {
		t.Fatalf("a node that has not joined: %v", err)
	}
	if err := a.SetClusterID("blue"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Call(testContext(t), peerID(1), 64, 0, nil); err != nil {
		t.Fatalf("a node of the same cluster: %v", err)
	}
	down := eventsOf(a, Down)
	if err := a.SetClusterID("red"); err != nil {
		t.Fatal(err)
	}
	<-down
	eventually(t, "the connections to end", func() bool { return !a.Connected(peerID(1)) && !b.Connected(peerID(0)) })
	if _, err := a.Call(testContext(t), peerID(1), 64, 0, nil); !errors.Is(err, ErrNotConnected) {
		t.Errorf("a node of another cluster: %v", err)
	}
	if a.SetClusterID(strings.Repeat("x", 200)) == nil {
		t.Error("200 bytes of cluster id: no error")
	}
}

func TestStrangersAreCutOff(t *testing.T) {
	d := newDirectory()
	a := newTestMux(t, d, peerID(0), func(c *Config) { c.DialTimeout = 300 * time.Millisecond })
	b := newTestMux(t, d, peerID(1), func(c *Config) { c.DialTimeout = 5 * time.Second })
	a.Handle(64, echo)
	valid := hello{dialer: peerID(1), target: peerID(0)}
	var framed bytes.Buffer
	if err := writeMessage(&framed, valid.encode()); err != nil {
		t.Fatal(err)
	}
	noProof := append(framed.Bytes(), append([]byte{33, 0, 0}, make([]byte, 32)...)...)
	for name, bytes := range map[string][]byte{
		"silence": nil, "http": []byte("GET / HTTP/1.1\r\n\r\n"), "long length": {0xff, 0xff, 1, 2}, "no length": {0, 0},
		"half a hello": framed.Bytes()[:20], "wrong proof": noProof, "frame": make([]byte, headerBytes),
	} {
		nc, err := net.Dial("tcp", a.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write(bytes); err != nil {
			t.Fatal(err)
		}
		_ = nc.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 4096)
		for err = nil; err == nil; {
			_, err = nc.Read(buf)
		}
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			t.Errorf("%s: still connected after 10 s", name)
		}
		_ = nc.Close()
	}
	if _, err := b.Call(testContext(t), peerID(0), 64, 0, nil); err != nil {
		t.Errorf("a peer after the strangers: %v", err)
	}
}

func FuzzHandshake(f *testing.F) {
	h := hello{purpose: purposeStream, dialer: peerID(0), target: peerID(1), cluster: "blue"}
	c := challenge{acceptor: peerID(1), cluster: "blue"}
	f.Add(h.encode())
	f.Add(append(c.encode(), make([]byte, 32)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := decodeHello(b); err == nil && !bytes.Equal(h.encode(), b) && len(h.encode()) > len(b) {
			t.Errorf("hello %x came back as %x", b, h.encode())
		}
		if c, signed, proof, err := decodeChallenge(b); err == nil {
			if len(signed)+len(proof) != len(b) || len(c.acceptor) > len(b) {
				t.Errorf("challenge %x", b)
			}
		}
	})
}

// authority makes certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, pool: x509.NewCertPool()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) configure(t *testing.T, node string) func(*Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{node}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return func(c *Config) {
		c.TLSServer = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
		c.TLSClient = &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: a.pool, MinVersion: tls.VersionTLS13}
	}
}

func TestMutualTLSBindsCertificateToNode(t *testing.T) {
	ca, d := newAuthority(t), newDirectory()
	patient := func(c *Config) { c.DialTimeout, c.QuickDial = 10*time.Second, 10*time.Second }
	a := newTestMux(t, d, peerID(0), ca.configure(t, "n0"), patient)
	b := newTestMux(t, d, peerID(1), ca.configure(t, "n1"), patient)
	thief := newTestMux(t, d, peerID(2), ca.configure(t, "n1"), patient)
	b.Handle(64, echo)
	if got, err := a.Call(testContext(t), peerID(1), 64, 0, make([]byte, 1<<20)); err != nil || len(got) != 1<<20 {
		t.Fatalf("call over tls: %d bytes, %v", len(got), err)
	}
	if _, err := thief.Call(testContext(t), peerID(1), 64, 0, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("n2 with the certificate of n1: %v", err)
	}
	if _, err := a.Call(testContext(t), peerID(2), 64, 0, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("call to n2, which has the certificate of n1: %v", err)
	}
}

func TestEvictedPeerIsCutOffAndTold(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	d.set(peerID(0), a.Addr().String())
	d.set(peerID(1), b.Addr().String())
	a.Handle(64, echo)
	b.Handle(64, echo)
	ctx := testContext(t)
	for _, call := range []func() error{
		func() error { _, err := a.Call(ctx, peerID(1), 64, 0, nil); return err },
		func() error { _, err := b.Call(ctx, peerID(0), 64, 0, nil); return err },
	} {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	refused := eventsOf(a, Refused)
	b.SetEvicted(map[string]bool{peerID(0): true})
	r := (*RefusedError)(nil)
	if e := <-refused; !errors.As(e.Err, &r) || !r.Evicted {
		t.Errorf("it is told %v, want that it was evicted", e.Err)
	}
	if _, err := b.Call(ctx, peerID(0), 64, 0, nil); !errors.Is(err, ErrNotConnected) {
		t.Errorf("call of an evicted peer: %v, want %v", err, ErrNotConnected)
	}
	eventually(t, "neither has a connection", func() bool { return !a.Connected(peerID(1)) && !b.Connected(peerID(0)) && len(b.connections()) == 0 })
}
