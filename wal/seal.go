package wal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// Encryption at rest. Every segment life has a data key of its own, drawn at
// random and kept in the segment's header wrapped by an operator key. A record is
// put together in the clear as always and then sealed: its header stays
// readable, its body and first checksum are encrypted and both authenticated, and
// the outer checksum is one of what is on disk. So whatever looks for torn
// commits and rot works alike with and without encryption, and everything behind
// window.record and segment.readRecord sees plain records only.

const (
	keyBytes   = 32 // AES-256
	keyIDBytes = 8
	nonceBytes = 12
	tagBytes   = 16

	// sealOverhead is what sealing adds to a record: nonce, first checksum, tag.
	// It is a multiple of recordAlign.
	sealOverhead = nonceBytes + 4 + tagBytes

	algorithmNone   = 0
	algorithmAESGCM = 1 // AES-256-GCM for records and for the data key
)

// ErrKey is wrapped by Open, Verify, Stat and Dump for a segment whose operator
// key is not among those given.
var ErrKey = errors.New("log is encrypted and its key is missing")

var errSealBroken = errors.New("record cannot be decrypted: somebody changed it, or memory failed")

// Key is an operator key. It wraps the data keys of segments and is never
// written or logged; ID names it.
type Key [keyBytes]byte

// ParseKeys reads operator keys, one a line or separated by commas, each as 64
// hexadecimal digits or in base64. Empty lines and lines from # on are skipped.
// The first key is the one that new segments get.
func ParseKeys(text string) ([]Key, error) {
	var keys []Key
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		for part := range strings.SplitSeq(line, ",") {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			b, err := hex.DecodeString(part)
			if err != nil {
				b, err = base64.StdEncoding.DecodeString(part)
			}
			if err != nil || len(b) != keyBytes {
				return nil, fmt.Errorf("key %d is not 32 bytes in base64 or hexadecimal: make one with head -c 32 /dev/urandom | base64", len(keys)+1)
			}
			if slices.Contains(keys, Key(b)) {
				return nil, fmt.Errorf("key %d is there twice", len(keys)+1)
			}
			keys = append(keys, Key(b))
		}
	}
	return keys, nil
}

// ID is a fingerprint that tells keys apart and says nothing about them.
func (k Key) ID() string { return hex.EncodeToString(k.id()) }

func (k Key) id() []byte {
	sum := sha256.Sum256(append([]byte("sluice wal operator key "), k[:]...))
	return sum[:keyIDBytes]
}

// String, GoString, MarshalText and LogValue keep a key out of whatever prints it.
func (k Key) String() string { return "key " + k.ID() }

// GoString implements fmt.GoStringer.
func (k Key) GoString() string { return k.String() }

// MarshalText implements encoding.TextMarshaler.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// LogValue implements slog.LogValuer.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// wrappedKey is the data key of a segment in its header.
type wrappedKey struct {
	algorithm uint8
	keyID     [keyIDBytes]byte
	nonce     [nonceBytes]byte
	data      [keyBytes + tagBytes]byte
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// wrapContext binds a wrapped key to its place: in the header of another segment
// it does not open.
func (h *segmentHeader) wrapContext() []byte {
	b := append([]byte("sluice wal data key "), h.logID[:]...)
	return binary.LittleEndian.AppendUint64(b, h.seq)
}

// encrypt draws a data key for the segment and wraps it.
func (s *segment) encrypt(k Key) error {
	data := make([]byte, keyBytes)
	w := wrappedKey{algorithm: algorithmAESGCM, keyID: [keyIDBytes]byte(k.id())}
	for _, b := range [][]byte{data, w.nonce[:]} {
		if _, err := rand.Read(b); err != nil {
			return fmt.Errorf("draw a data key: %w", err)
		}
	}
	outer, err := newAEAD(k[:])
	if err != nil {
		return fmt.Errorf("operator %v: %w", k, err)
	}
	copy(w.data[:], outer.Seal(nil, w.nonce[:], data, s.wrapContext()))
	s.wrapped = w
	if s.aead, err = newAEAD(data); err != nil {
		return fmt.Errorf("data key: %w", err)
	}
	return nil
}

// unlock finds the segment's data key; a segment in the clear needs none.
func (s *segment) unlock(keys []Key) error {
	w := &s.wrapped
	switch w.algorithm {
	case algorithmNone:
		return nil
	case algorithmAESGCM:
	default:
		return fmt.Errorf("log segment %s: encryption algorithm %d is not known to this program", s.name, w.algorithm)
	}
	ids := make([]string, 0, len(keys))
	for _, k := range keys {
		if ids = append(ids, k.ID()); [keyIDBytes]byte(k.id()) != w.keyID {
			continue
		}
		outer, err := newAEAD(k[:])
		if err != nil {
			return fmt.Errorf("operator %v: %w", k, err)
		}
		data, err := outer.Open(nil, w.nonce[:], w.data[:], s.wrapContext())
		if err != nil {
			return s.corrupt(headerWrapped, "data key cannot be unwrapped although operator "+k.String()+" is the right one", err)
		}
		s.aead, err = newAEAD(data)
		return err
	}
	have := "none is given"
	if len(ids) > 0 {
		have = "given are " + strings.Join(ids, ", ")
	}
	return fmt.Errorf("log segment %s needs key %x, %s: %w: put it behind the first key of the key file (wal.encryption); a key may leave the file when wal stat shows it on no segment", s.name, w.keyID, have, ErrKey)
}

// keyID names the operator key of an encrypted segment, empty for one in the clear.
func (s *segment) keyID() string {
	if s.wrapped.algorithm == algorithmNone {
		return ""
	}
	return hex.EncodeToString(s.wrapped.keyID[:])
}

// overhead is what each record in the segment has on top of its plain form.
func (s *segment) overhead() int {
	if s.aead == nil {
		return 0
	}
	return sealOverhead
}

// sealBytes is the room that the seal takes at the end.
func (s *segment) sealBytes() int64 { return int64(align(recordHeaderMax + s.overhead())) }

// append encodes a record for this segment.
func (s *segment) append(dst []byte, r *record) []byte {
	if s.aead == nil {
		return appendRecord(dst, s.key, r)
	}
	plain := appendRecord(nil, s.key, r)
	return s.seal(dst, plain[:r.headerSize()+len(r.body)])
}

// seal appends a plain record, without its padding, in encrypted form.
func (s *segment) seal(dst, plain []byte) []byte {
	start := len(dst)
	_, head := readHeader(plain)
	dst = slices.Grow(dst, len(plain)+sealOverhead+recordAlign)
	dst = append(dst, plain[:head]...)
	binary.LittleEndian.PutUint32(dst[start+recordLengthStart:], uint32(len(plain)+sealOverhead))
	var nonce [nonceBytes]byte
	_, _ = rand.Read(nonce[:]) // never fails: it ends the process instead
	dst = append(dst, nonce[:]...)
	at := len(dst)
	dst = append(dst, plain[head:]...)
	dst = append(dst, plain[4:8]...)
	dst = s.aead.Seal(dst[:at], nonce[:], dst[at:], dst[start+recordLengthStart:start+head])
	return sealRecord(dst, start, s.key)
}

// unseal turns a record as it is on disk, whose checksum is good, into the plain
// one, in buf's memory. What does not decrypt is damage, never a torn write.
func (s *segment) unseal(buf, raw []byte, off int64) ([]byte, error) {
	n := len(raw) - sealOverhead
	_, at := readHeader(raw)
	if at == 0 || n < at {
		return nil, s.corrupt(off, "record is too short to be encrypted", nil)
	}
	head, body := raw[:at], raw[at:]
	plain := append(slices.Grow(buf[:0], n+4), head...)
	binary.LittleEndian.PutUint32(plain[recordLengthStart:], uint32(n))
	plain, err := s.aead.Open(plain, body[:nonceBytes], body[nonceBytes:], head[recordLengthStart:])
	if err != nil {
		return nil, s.corrupt(off, "entry cannot be read", errSealBroken)
	}
	copy(plain[4:8], plain[n:])
	return plain[:n], nil
}

// current reports whether s is encrypted as the configuration says: records are
// not added to a segment in the clear once encryption is on, nor under an old key.
func (l *Log) current(s *segment) bool {
	if !l.cfg.Encrypt {
		return s.wrapped.algorithm == algorithmNone
	}
	return s.wrapped.algorithm == algorithmAESGCM && [keyIDBytes]byte(l.cfg.Keys[0].id()) == s.wrapped.keyID
}

// overhead is what each record takes more in the segments that are written now.
func (l *Log) overhead() int64 {
	if l.cfg.Encrypt {
		return sealOverhead
	}
	return 0
}
