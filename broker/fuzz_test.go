package broker

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// script is a net.Conn that plays bytes and ends.
type script struct {
	net.Conn
	mu   sync.Mutex
	data []byte
}

func (s *script) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.data) == 0 {
		return 0, net.ErrClosed
	}
	n := copy(p, s.data)
	s.data = s.data[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// FuzzPackets plays arbitrary bytes behind a valid CONNECT, and as one: nothing may
// panic, hang, or stay behind.
func FuzzPackets(f *testing.F) {
	c := &client{v: 5}
	f.Add([]byte{0xC0, 0}, byte(5))
	f.Add(c.encode(pub{topic: topic1, payload: "{}", qos: 2, id: 1}), byte(5))
	f.Add(packet(0x82, append(appendString([]byte{0, 1, 0}, "$share/g/a/+"), 1)), byte(5))
	f.Add(packet(0x82, append(appendString([]byte{0, 1}, "#"), 1)), byte(4))
	f.Add(connectPacket(5, "x", connectOptions{}), byte(0))
	f.Add([]byte{0x62, 2, 0, 1, 0x70, 2, 0, 1, 0xE0, 0}, byte(4))
	m := newMemory()
	m.auto = applied
	b := start(f, Config{}, m)
	f.Fuzz(func(t *testing.T, data []byte, version byte) {
		var hello []byte
		if version == 4 || version == 5 {
			hello = connectPacket(version, "fuzz", connectOptions{})
		}
		if !b.track() {
			t.Fatal("broker closed")
		}
		b.serve(context.Background(), &script{data: append(hello, data...)}, &Endpoint{})
		if n := b.inFlight.Load() + b.unanswered.Load() + b.waitBytes.Load() + b.budget.used.Load() + b.connected.Load(); n != 0 {
			t.Fatalf("left over: %+v, %d unanswered", b.Stats(), b.unanswered.Load())
		}
		m.mu.Lock()
		m.received = nil
		m.mu.Unlock()
	})
}
