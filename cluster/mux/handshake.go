package mux

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// The handshake: hello -> challenge -> proof -> verdict. Each side signs, with
// the shared secret, everything both have said (both nonces, both ids, cluster
// ids, the TLS session's exporter), under its own label, so that no message of
// one side can be reflected as one of the other.

const (
	handshakeMagic    = "SLMX"
	handshakeVersion  = 1
	nonceBytes        = 32
	clusterIDBytesMax = 127
	// handshakeBytesMax bounds a message of somebody who has proven nothing.
	handshakeBytesMax = 1 << 10
)

// purpose is what a connection is for once the handshake is done.
type purpose uint8

const (
	purposeFrames purpose = 0
	purposeStream purpose = 1
)

// verdict codes; the numbers are part of the format.
const (
	verdictOK      = 0
	verdictRefused = 1
	verdictEvicted = 2 // only as the last word, from an acceptor that has proven itself
)

type hello struct {
	purpose purpose
	dialer  string
	target  string
	cluster string
	nonce   [nonceBytes]byte
}

func (h *hello) encode() []byte {
	b := append([]byte(handshakeMagic), handshakeVersion, byte(h.purpose))
	b = appendBytes(b, []byte(h.dialer))
	b = appendBytes(b, []byte(h.target))
	b = appendBytes(b, []byte(h.cluster))
	return append(b, h.nonce[:]...)
}

func decodeHello(b []byte) (h hello, err error) {
	c := cursor{b: b}
	if magic := c.take(4); string(magic) != handshakeMagic {
		return h, errors.New("not a sluice node")
	}
	if v := c.uint8(); v != handshakeVersion {
		return h, fmt.Errorf("handshake version %d, this node speaks %d", v, handshakeVersion)
	}
	h.purpose = purpose(c.uint8())
	h.dialer, h.target, h.cluster = string(c.bytes()), string(c.bytes()), string(c.bytes())
	copy(h.nonce[:], c.take(nonceBytes))
	return h, c.end()
}

// challenge is the acceptor's turn; proof comes behind it in the message.
type challenge struct {
	acceptor string
	cluster  string
	nonce    [nonceBytes]byte
}

func (h *challenge) encode() []byte {
	b := appendBytes([]byte{verdictOK}, []byte(h.acceptor))
	b = appendBytes(b, []byte(h.cluster))
	return append(b, h.nonce[:]...)
}

func decodeChallenge(b []byte) (h challenge, signed, proof []byte, err error) {
	if len(b) < sha256.Size {
		return h, nil, nil, errShort
	}
	signed, proof = b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	c := cursor{b: signed}
	c.uint8()
	h.acceptor, h.cluster = string(c.bytes()), string(c.bytes())
	copy(h.nonce[:], c.take(nonceBytes))
	return h, signed, proof, c.end()
}

// prove is one side's signature over the conversation.
func prove(secret []byte, side string, conversation ...[]byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("sluice mux 1 " + side))
	for _, part := range conversation {
		mac.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(part))))
		mac.Write(part)
	}
	return mac.Sum(nil)
}

func writeMessage(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.LittleEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.LittleEndian.Uint16(length[:]))
	if n == 0 || n > handshakeBytesMax {
		return nil, fmt.Errorf("handshake message of %d bytes, at most %d", n, handshakeBytesMax)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

func refusal(reason string) []byte {
	return append([]byte{verdictRefused}, reason[:min(len(reason), handshakeBytesMax/2)]...)
}

// readReply reads a message that may be a refusal by peer.
func readReply(r io.Reader, peer string) ([]byte, error) {
	b, err := readMessage(r)
	if err != nil {
		return nil, err
	}
	if b[0] != verdictOK {
		return nil, &RefusedError{Peer: peer, Reason: fmt.Sprintf("%q", b[1:]), Evicted: b[0] == verdictEvicted}
	}
	return b, nil
}

// clustersDiffer compares two cluster ids; a node without one has not joined
// yet and may talk to any.
func clustersDiffer(a, b string) bool { return a != "" && b != "" && a != b }

// greet runs the dialer's half on nc and returns the cluster id of target.
func (m *Mux) greet(nc net.Conn, target string, why purpose) (cluster string, err error) {
	h := hello{purpose: why, dialer: m.cfg.Self, target: target, cluster: m.clusterID()}
	_, _ = rand.Read(h.nonce[:])
	first := h.encode()
	if err := writeMessage(nc, first); err != nil {
		return "", fmt.Errorf("greet %s: %w", target, err)
	}
	second, err := readReply(nc, target)
	if err != nil {
		if refused := (*RefusedError)(nil); errors.As(err, &refused) {
			refused.Evicted = false // whoever says so has proven nothing yet
		}
		return "", fmt.Errorf("greet %s: %w", target, err)
	}
	c, signed, proof, err := decodeChallenge(second)
	if err != nil {
		return "", fmt.Errorf("greet %s: %w", target, err)
	}
	binding, err := channelBinding(nc)
	if err != nil {
		return "", fmt.Errorf("greet %s: %w", target, err)
	}
	if reason := m.judgeChallenge(&c, target, proof, first, signed, binding); reason != "" {
		_ = writeMessage(nc, refusal(reason))
		return "", &RefusedError{Peer: target, Reason: reason}
	}
	if err := writeMessage(nc, append([]byte{verdictOK}, prove(m.cfg.Secret, "dialer", first, second, binding)...)); err != nil {
		return "", fmt.Errorf("greet %s: %w", target, err)
	}
	if _, err := readReply(nc, target); err != nil {
		return "", fmt.Errorf("greet %s: %w", target, err)
	}
	return c.cluster, nil
}

func (m *Mux) judgeChallenge(c *challenge, target string, proof, first, signed, binding []byte) (reason string) {
	switch {
	case !hmac.Equal(proof, prove(m.cfg.Secret, "acceptor", first, signed, binding)):
		return "wrong secret: the two nodes have different cluster secrets"
	case c.acceptor != target:
		return fmt.Sprintf("wrong peer: %s answers instead of %s", c.acceptor, target)
	case clustersDiffer(c.cluster, m.clusterID()):
		return fmt.Sprintf("wrong cluster: peer belongs to %s, this node to %s", c.cluster, m.clusterID())
	}
	return ""
}

// welcome runs the acceptor's half on nc. The error of a refused dialer is a
// RefusedError whose Peer is what the dialer called itself.
func (m *Mux) welcome(nc net.Conn) (hello, error) {
	first, err := readMessage(nc)
	if err != nil {
		return hello{}, fmt.Errorf("read hello: %w", err)
	}
	h, err := decodeHello(first)
	if err != nil {
		_ = writeMessage(nc, refusal(err.Error()))
		return h, &RefusedError{Peer: nc.RemoteAddr().String(), Reason: err.Error()}
	}
	if reason := m.judgeHello(nc, &h); reason != "" {
		_ = writeMessage(nc, refusal(reason))
		return h, &RefusedError{Peer: h.dialer, Reason: reason}
	}
	c := challenge{acceptor: m.cfg.Self, cluster: m.clusterID()}
	_, _ = rand.Read(c.nonce[:])
	binding, err := channelBinding(nc)
	if err != nil {
		return h, fmt.Errorf("welcome %s: %w", h.dialer, err)
	}
	signed := c.encode()
	second := slices.Concat(signed, prove(m.cfg.Secret, "acceptor", first, signed, binding))
	if err := writeMessage(nc, second); err != nil {
		return h, fmt.Errorf("welcome %s: %w", h.dialer, err)
	}
	proof, err := readReply(nc, h.dialer)
	if err != nil {
		return h, fmt.Errorf("welcome %s: %w", h.dialer, err)
	}
	if !hmac.Equal(proof[1:], prove(m.cfg.Secret, "dialer", first, second, binding)) {
		reason := "wrong secret: the two nodes have different cluster secrets"
		_ = writeMessage(nc, refusal(reason))
		return h, &RefusedError{Peer: h.dialer, Reason: reason}
	}
	if m.isEvicted(h.dialer) {
		reason := h.dialer + " was evicted from the cluster"
		_ = writeMessage(nc, append([]byte{verdictEvicted}, reason...))
		return h, &RefusedError{Peer: h.dialer, Reason: reason}
	}
	if err := writeMessage(nc, []byte{verdictOK}); err != nil {
		return h, fmt.Errorf("welcome %s: %w", h.dialer, err)
	}
	return h, nil
}

func (m *Mux) judgeHello(nc net.Conn, h *hello) (reason string) {
	node, _, err := ParsePeer(h.dialer)
	switch {
	case err != nil:
		return err.Error()
	case h.target != m.cfg.Self:
		return fmt.Sprintf("wrong peer: this is %s, not %s", m.cfg.Self, h.target)
	case clustersDiffer(h.cluster, m.clusterID()):
		return fmt.Sprintf("wrong cluster: this node belongs to %s, the dialer to %s", m.clusterID(), h.cluster)
	case h.purpose > purposeStream:
		return fmt.Sprintf("unknown purpose %d", h.purpose)
	}
	if t, ok := nc.(*tls.Conn); ok {
		if certs := t.ConnectionState().PeerCertificates; len(certs) > 0 {
			if err := certs[0].VerifyHostname(node); err != nil {
				return "wrong certificate: " + err.Error()
			}
		}
	}
	return ""
}

// channelBinding ties the proofs to the TLS session they travel in, so that
// nobody in the middle can relay them into another.
func channelBinding(nc net.Conn) ([]byte, error) {
	t, ok := nc.(*tls.Conn)
	if !ok {
		return nil, nil
	}
	state := t.ConnectionState()
	b, err := state.ExportKeyingMaterial("EXPORTER-sluice-mux-1", nil, 32)
	if err != nil {
		return nil, fmt.Errorf("bind handshake to tls: %w", err)
	}
	return b, nil
}

// connect dials target at addr and completes the handshake. ctx bounds both.
func (m *Mux) connect(ctx context.Context, addr, target string, why purpose) (nc net.Conn, cluster string, err error) {
	nc, err = m.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, "", fmt.Errorf("dial %s at %s: %w", target, addr, err)
	}
	release, ok := m.adopt(nc)
	if !ok {
		return nil, "", fmt.Errorf("dial %s: %w", target, ErrClosed)
	}
	defer release()
	raw := nc
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	if m.cfg.TLSClient != nil {
		nc, err = m.clientTLS(ctx, nc, target)
	}
	if err == nil {
		cluster, err = m.greet(nc, target, why)
	}
	if !stop() && err == nil {
		err = fmt.Errorf("greet %s: %w", target, context.Cause(ctx))
	}
	if err != nil {
		_ = raw.Close()
		return nil, "", err
	}
	_ = nc.SetDeadline(time.Time{})
	return nc, cluster, nil
}

func (m *Mux) clientTLS(ctx context.Context, nc net.Conn, target string) (net.Conn, error) {
	conf := m.cfg.TLSClient
	if conf.ServerName == "" && !conf.InsecureSkipVerify {
		node, _, err := ParsePeer(target)
		if err != nil {
			return nil, err
		}
		conf = conf.Clone()
		conf.ServerName = node
	}
	t := tls.Client(nc, conf)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, &RefusedError{Peer: target, Reason: "tls: " + err.Error()}
	}
	return t, nil
}
