package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// ClientAuth is what a TLS endpoint asks of its clients.
type ClientAuth string

// The kinds: no certificate, one that is verified if the client has one, one from everybody.
const (
	ClientAuthNone     ClientAuth = "none"
	ClientAuthOptional ClientAuth = "optional"
	ClientAuthRequired ClientAuth = "required"
)

// TLSFiles names the PEM files of a TLS endpoint. They are looked at again every few
// seconds while clients connect, so that a renewed certificate needs no restart; files
// that are unusable at that moment leave the old ones in force.
type TLSFiles struct {
	Cert, Key  string
	ClientCA   string // authorities of client certificates; required unless ClientAuth is none
	ClientAuth ClientAuth
}

// tlsReloadInterval bounds how long a renewed file is not seen, and how often
// connecting clients cost a look at the files.
const tlsReloadInterval = 5 * time.Second

// Config loads the files. The result follows later changes of them.
func (f TLSFiles) Config(logger *slog.Logger) (*tls.Config, error) {
	r := &reloader{files: f, logger: logger}
	stamp, err := r.stat()
	if err != nil {
		return nil, err
	}
	if r.config, err = f.load(); err != nil {
		return nil, err
	}
	r.stamp, r.checked = stamp, time.Now()
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return r.current(time.Now()), nil
	}}, nil
}

func (f TLSFiles) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("load certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	// One ticket key per loaded configuration: a session does not outlive the
	// authorities that admitted it.
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	switch f.ClientAuth {
	case ClientAuthNone, "":
		return cfg, nil
	case ClientAuthOptional:
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
	case ClientAuthRequired:
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	default:
		return nil, fmt.Errorf("client authentication %q: use %s, %s or %s", f.ClientAuth, ClientAuthNone, ClientAuthOptional, ClientAuthRequired)
	}
	pem, err := os.ReadFile(f.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("load authorities of client certificates: %w", err)
	}
	cfg.ClientCAs = x509.NewCertPool()
	if !cfg.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("load authorities of client certificates: %s holds no PEM certificate", f.ClientCA)
	}
	return cfg, nil
}

type reloader struct {
	files  TLSFiles
	logger *slog.Logger

	mu      sync.Mutex
	config  *tls.Config
	stamp   [3]fileStamp
	checked time.Time
}

type fileStamp struct {
	modified time.Time
	size     int64
}

// stat reads what tells a new version of the files from the old one.
func (r *reloader) stat() (stamp [3]fileStamp, err error) {
	for i, path := range []string{r.files.Cert, r.files.Key, r.files.ClientCA} {
		if path == "" {
			continue
		}
		st, err := os.Stat(path)
		if err != nil {
			return stamp, fmt.Errorf("load TLS files: %w", err)
		}
		stamp[i] = fileStamp{st.ModTime(), st.Size()}
	}
	return stamp, nil
}

func (r *reloader) current(now time.Time) *tls.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.checked) < tlsReloadInterval {
		return r.config
	}
	r.checked = now
	stamp, err := r.stat()
	if err == nil && stamp == r.stamp {
		return r.config
	}
	var fresh *tls.Config
	if err == nil {
		fresh, err = r.files.load()
	}
	if err != nil {
		r.logger.Error("TLS files changed and are not usable: the old ones stay in force", "err", err)
		return r.config
	}
	r.config, r.stamp = fresh, stamp
	r.logger.Info("TLS files loaded again", "cert", r.files.Cert)
	return r.config
}

// CertificateName says which name of a client certificate is the identity.
type CertificateName string

// The names.
const (
	NameCommon CertificateName = "common_name"
	NameDNS    CertificateName = "dns"
	NameURI    CertificateName = "uri"
)

// CertificateIdentity is an Authenticator that takes the identity from the verified
// certificate of the client. Who shows none (a plain endpoint, or ClientAuthOptional)
// is the nameless identity; who shows one without the name is refused.
type CertificateIdentity struct{ Name CertificateName }

// Authenticate implements Authenticator.
func (a CertificateIdentity) Authenticate(_ context.Context, c Credentials) (Identity, error) {
	if c.TLS == nil || len(c.TLS.VerifiedChains) == 0 {
		return Identity{}, nil
	}
	name, leaf := "", c.TLS.VerifiedChains[0][0]
	switch a.Name {
	case NameCommon, "":
		name = leaf.Subject.CommonName
	case NameDNS:
		if len(leaf.DNSNames) > 0 {
			name = leaf.DNSNames[0]
		}
	case NameURI:
		if len(leaf.URIs) > 0 {
			name = leaf.URIs[0].String()
		}
	default:
		return Identity{}, fmt.Errorf("certificate name %q: use %s, %s or %s", a.Name, NameCommon, NameDNS, NameURI)
	}
	if name == "" {
		return Identity{}, errors.Join(ErrBadCredentials, fmt.Errorf("certificate has no %s", a.Name))
	}
	return Identity{Name: name}, nil
}

// tlsState finds the TLS layer below a connection.
func tlsState(nc net.Conn) *tls.ConnectionState {
	if ws, ok := nc.(*websocketConn); ok {
		nc = ws.Conn
	}
	if secure, ok := nc.(*tls.Conn); ok {
		state := secure.ConnectionState()
		return &state
	}
	return nil
}
