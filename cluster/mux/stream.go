package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// streamsMax bounds the streams that peers have open here: a snapshot for
	// each group of a node that is rebuilt.
	streamsMax = 256
	// streamHeaderBytesMax bounds what OpenStream sends ahead of the bytes.
	streamHeaderBytesMax = 1 << 20
)

// StreamHandler serves a stream on a goroutine of its own. The stream is closed
// when it returns, and by Mux.Close before that.
type StreamHandler func(from string, group uint32, header []byte, s io.ReadWriteCloser)

// HandleStream registers the handler of an application kind (64..127) of stream;
// nil removes it. Requests and streams of the same kind have nothing in common.
func (m *Mux) HandleStream(kind Kind, h StreamHandler) {
	switch err := checkKind(kind); {
	case err != nil:
		m.logger.Error("stream handler not registered", "err", err)
	case h == nil:
		m.streamHandlers[kind-KindApplication].Store(nil)
	default:
		m.streamHandlers[kind-KindApplication].Store(&h)
	}
}

// OpenStream opens a connection of its own to peer, for bytes in bulk, and
// returns when the peer's handler has it. ctx and DialTimeout bound the opening.
// A read or write on which nothing moves for StreamStall fails. The stream also
// has CloseWrite, which ends what the peer reads.
func (m *Mux) OpenStream(ctx context.Context, peer string, kind Kind, group uint32, header []byte) (io.ReadWriteCloser, error) {
	if err := checkKind(kind); err != nil {
		return nil, err
	}
	s, _, err := m.openStream(ctx, peer, kind, group, header)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// openStream also returns the body of the answer.
func (m *Mux) openStream(ctx context.Context, peer string, kind Kind, group uint32, first []byte) (*Stream, []byte, error) {
	_, incarnation, err := ParsePeer(peer)
	if err != nil {
		return nil, nil, fmt.Errorf("open stream: %w", err)
	}
	if len(first) > streamHeaderBytesMax {
		return nil, nil, fmt.Errorf("open stream to %s: header of %d bytes, at most %d: %w", peer, len(first), streamHeaderBytesMax, ErrTooLarge)
	}
	addr, err := m.resolve(peer)
	if err != nil {
		return nil, nil, fmt.Errorf("open stream: %w: %w", ErrNotConnected, err)
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.DialTimeout)
	defer cancel()
	nc, _, err := m.connect(ctx, addr, peer, purposeStream)
	if err != nil {
		return nil, nil, fmt.Errorf("open stream: %w: %w", ErrNotConnected, err)
	}
	s, ok := m.newStream(nc)
	if !ok {
		return nil, nil, fmt.Errorf("open stream to %s: %w", peer, ErrClosed)
	}
	h := header{kind: kind, group: group, incarnation: incarnation, request: 1}
	answer, body, err := s.exchange(h, first)
	if err == nil {
		err = remoteError(peer, answer.status, body)
	}
	if err != nil {
		_ = s.Close()
		return nil, nil, fmt.Errorf("open stream to %s: %w", peer, err)
	}
	return s, body, nil
}

// Stream is one connection for bytes in bulk. Reads and writes may run at the
// same time, as on a net.Conn.
type Stream struct {
	m    *Mux
	nc   net.Conn
	once sync.Once
	free func() // takes it off the Mux
}

// newStream adopts nc; false after Close.
func (m *Mux) newStream(nc net.Conn) (*Stream, bool) {
	release, ok := m.adopt(nc)
	if !ok {
		return nil, false
	}
	m.metrics.streams.Inc()
	return &Stream{m: m, nc: nc, free: release}, true
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	_ = s.nc.SetReadDeadline(time.Now().Add(s.m.cfg.StreamStall))
	return s.nc.Read(p)
}

// Write implements io.Writer.
func (s *Stream) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		var k int
		_ = s.nc.SetWriteDeadline(time.Now().Add(s.m.cfg.StreamStall))
		k, err = s.nc.Write(p[:min(len(p), writeChunk)])
		n, p = n+k, p[k:]
	}
	return n, err
}

// CloseWrite lets the peer read to the end while its answer can still come.
func (s *Stream) CloseWrite() error {
	if half, ok := s.nc.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close ends both directions.
func (s *Stream) Close() error {
	var err error
	s.once.Do(func() {
		err = s.nc.Close()
		s.free()
		s.m.metrics.streams.Dec()
	})
	return err
}

// exchange sends a frame and reads the answer.
func (s *Stream) exchange(h header, body []byte) (header, []byte, error) {
	if err := s.writeFrame(h, body); err != nil {
		return header{}, nil, err
	}
	return s.readFrame(s.m.cfg.FrameBytesMax)
}

func (s *Stream) writeFrame(h header, body []byte) error {
	f := s.m.frames.get(len(body))
	f.buf = append(f.buf, body...)
	f.seal(h)
	_, err := s.Write(f.buf)
	s.m.frames.put(f)
	return err
}

// readFrame reads exactly one frame.
func (s *Stream) readFrame(bytesMax int) (h header, body []byte, err error) {
	var head [headerBytes]byte
	if _, err := io.ReadFull(s, head[:]); err != nil {
		return h, nil, err
	}
	n, err := frameLength(head[:], bytesMax)
	if err != nil {
		return h, nil, err
	}
	if h, err = parseHeader(head[:]); err != nil {
		return h, nil, err
	}
	body = make([]byte, n-headerBytes)
	if _, err := io.ReadFull(s, body); err != nil {
		return h, nil, err
	}
	if h.incarnation != s.m.incarnation {
		return h, nil, fmt.Errorf("frame is for incarnation %08x: %w", h.incarnation, errSpoke)
	}
	return h, body, checkFrame(head[:], body)
}

// serveStream runs a stream that peer opened.
func (m *Mux) serveStream(nc net.Conn, peer string) {
	defer m.streams.Add(-1)
	over := m.streams.Add(1) > streamsMax
	s, ok := m.newStream(nc)
	if !ok {
		return
	}
	defer func() { _ = s.Close() }()
	h, first, err := s.readFrame(streamHeaderBytesMax + headerBytes)
	if err != nil || h.response {
		m.logger.Debug("stream did not begin", "peer", peer, "err", err)
		return
	}
	_, h.incarnation, _ = ParsePeer(peer)
	h.response = true
	if over {
		m.metrics.busy.WithLabelValues("streams").Inc()
		h.status = statusBusy
		_ = s.writeFrame(h, nil)
		return
	}
	if h.kind == kindSnapshot {
		m.serveSnapshot(s, peer, h, first)
		return
	}
	handler := (*StreamHandler)(nil)
	if checkKind(h.kind) == nil {
		handler = m.streamHandlers[h.kind-KindApplication].Load()
	}
	if handler == nil {
		h.status = statusNoHandler
		_ = s.writeFrame(h, nil)
		return
	}
	if err := s.writeFrame(h, nil); err == nil {
		(*handler)(peer, h.group, first, s)
	}
}
