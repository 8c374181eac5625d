package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/broker"
)

func temp(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// selfSigned writes a certificate that is its own authority.
func selfSigned(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "n0"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return temp(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		temp(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})))
}

func TestListenersFollowTheConfiguration(t *testing.T) {
	cert, key := selfSigned(t)
	path := temp(t, "n.yaml", `node: {id: n0, zone: a, data: x}
cluster: {secret: 0123456789abcdef}
mqtt:
  listen: 127.0.0.1:1
  tls: {listen: '127.0.0.1:2', cert: `+cert+`, key: `+key+`, client_ca: `+cert+`, client_auth: optional, identity: uri}
  websocket: {listen: '127.0.0.1:3', tls_listen: '127.0.0.1:4', path: /ws, origins: ['https://a.example']}
  proxy_from: [10.0.0.0/8]
  limits: {connects: 7, client_publishes: 8, device_publishes: 9}
`)
	cfg, err := LoadConfig(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := cfg.MQTT.broker(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, e := range got.Endpoints {
		kind := e.Listen
		if e.TLS != nil {
			kind += " tls"
		}
		if e.WebSocket != nil {
			kind += " ws " + e.WebSocket.Path + " " + e.WebSocket.Origins[0]
		}
		if len(e.ProxyFrom) != 1 || e.ProxyFrom[0].String() != "10.0.0.0/8" {
			t.Errorf("%s trusts %v, want 10.0.0.0/8", e.Listen, e.ProxyFrom)
		}
		kinds = append(kinds, kind)
	}
	want := "127.0.0.1:1; 127.0.0.1:3 ws /ws https://a.example; 127.0.0.1:2 tls; 127.0.0.1:4 tls ws /ws https://a.example"
	if s := strings.Join(kinds, "; "); s != want {
		t.Errorf("endpoints are %s, want %s", s, want)
	}
	if got.Authenticator != (broker.CertificateIdentity{Name: broker.NameURI}) {
		t.Errorf("identities come from %+v", got.Authenticator)
	}
	if l := got.Limits; l.Connects != 7 || l.Identity != 8 || l.Device != 9 {
		t.Errorf("limits are %+v", l)
	}
	cfg.MQTT.TLS.Cert = filepath.Join(t.TempDir(), "gone.pem")
	if _, err := cfg.MQTT.broker(slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "gone.pem") {
		t.Errorf("a certificate that is not there: %v", err)
	}
}
