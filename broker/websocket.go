package broker

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// WebSocket says which requests are upgraded.
type WebSocket struct {
	// Path of the endpoint, "/mqtt" by default. Other paths are answered 404.
	Path string

	// Origins lists the web origins (https://console.example.net) whose pages may
	// connect, "*" is all of them. Empty: only pages that come from the same host.
	// Clients that are no browsers send no origin and are not concerned.
	Origins []string
}

const (
	upgradeBytesMax = 8 << 10 // of the HTTP request, headers included
	upgradeBuffer   = 512
	// websocketPong bounds the write of a control frame, and the message that is being
	// written beside it: not less than what that may take by default.
	websocketPong      = 30 * time.Second
	websocketClosing   = 100 * time.Millisecond // the same for the last frame
	websocketFrameKept = 16 << 10
)

var upgradeBuffers sync.Pool

// upgrade reads the HTTP request that begins the connection and answers it.
func (w *WebSocket) upgrade(nc net.Conn) (net.Conn, error) {
	br := bufio.NewReaderSize(io.LimitReader(nc, upgradeBytesMax), 1<<10)
	req, err := http.ReadRequest(br)
	if err != nil {
		return nil, fmt.Errorf("read WebSocket upgrade: %w", err)
	}
	rw := &upgradeWriter{nc: nc, br: br, header: http.Header{}}
	if path := w.Path; path != req.URL.Path && (path != "" || req.URL.Path != "/mqtt") {
		http.Error(rw, "MQTT is served at /mqtt, or where mqtt.websocket.path says", http.StatusNotFound)
		return nil, fmt.Errorf("upgrade of unknown path %.100q", req.URL.Path)
	}
	if !slices.Contains(websocket.Subprotocols(req), "mqtt") {
		http.Error(rw, "this is an MQTT broker: connect with the WebSocket subprotocol mqtt", http.StatusBadRequest)
		return nil, fmt.Errorf("upgrade without the subprotocol mqtt")
	}
	up := websocket.Upgrader{Subprotocols: []string{"mqtt"}, ReadBufferSize: upgradeBuffer,
		WriteBufferSize: upgradeBuffer, WriteBufferPool: &upgradeBuffers, CheckOrigin: w.allowed}
	if _, err := up.Upgrade(rw, req, nil); err != nil { // what it returns waits in reads: frames are taken apart here
		return nil, fmt.Errorf("upgrade to WebSocket: %w", err)
	}
	return newWebsocketConn(nc), nil
}

func (w *WebSocket) allowed(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || slices.Contains(w.Origins, "*") || slices.Contains(w.Origins, origin) {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && len(w.Origins) == 0 && strings.EqualFold(u.Host, r.Host)
}

// upgradeWriter is the little of an HTTP server that an upgrade needs; the
// connection's deadline is the broker's, and only one request is ever answered.
type upgradeWriter struct {
	nc     net.Conn
	br     *bufio.Reader
	header http.Header
	status int
}

func (u *upgradeWriter) Header() http.Header { return u.header }

func (u *upgradeWriter) WriteHeader(status int) { u.status = status }

func (u *upgradeWriter) Write(p []byte) (int, error) {
	if u.status == 0 {
		u.status = http.StatusOK
	}
	resp := http.Response{StatusCode: u.status, ProtoMajor: 1, ProtoMinor: 1, Header: u.header, Close: true,
		ContentLength: int64(len(p)), Body: io.NopCloser(strings.NewReader(string(p)))}
	if err := resp.Write(u.nc); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Hijack implements http.Hijacker.
func (u *upgradeWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return deadlineless{u.nc}, bufio.NewReadWriter(u.br, bufio.NewWriterSize(u.nc, 512)), nil
}

// deadlineless keeps the library from moving deadlines, which are the broker's.
type deadlineless struct{ net.Conn }

func (deadlineless) SetDeadline(time.Time) error      { return nil }
func (deadlineless) SetReadDeadline(time.Time) error  { return nil }
func (deadlineless) SetWriteDeadline(time.Time) error { return nil }

// websocketConn is a stream of bytes in binary messages. Deadlines, addresses and
// the TLS state are those of the connection below, and so is waiting: a read that
// finds nothing leaves everything as it is.
type websocketConn struct {
	net.Conn
	frames frames
	failed error // what the client has done wrong, once its last good bytes are out
	said   bool  // a close frame has been sent
}

func newWebsocketConn(nc net.Conn) *websocketConn {
	c := &websocketConn{Conn: nc}
	c.frames.reply = c.control
	return c
}

// Read is called by one goroutine. MQTT packets may begin and end anywhere in a
// message; a text message is against the standard and ends the connection.
func (c *websocketConn) Read(p []byte) (int, error) {
	for {
		if c.failed != nil {
			return 0, c.failed
		}
		n, err := c.Conn.Read(p)
		if n == 0 {
			return 0, err
		}
		n, c.failed = c.frames.take(p[:n]) // an error of the read comes again
		if c.failed != nil {
			c.sayGoodbye(closeCode(c.failed))
		}
		if n > 0 {
			return n, nil
		}
	}
}

// frameBuffers are for frames that are written; larger ones than websocketFrameKept
// are not kept.
var frameBuffers = sync.Pool{New: func() any { return new([]byte) }}

// Write is called by one goroutine at a time and sends one message, in one write:
// control frames that are sent meanwhile do not get into it.
func (c *websocketConn) Write(p []byte) (int, error) {
	buf := frameBuffers.Get().(*[]byte)
	frame := appendFrame((*buf)[:0], frameBinary, p)
	_, err := c.Conn.Write(frame)
	if cap(frame) <= websocketFrameKept {
		*buf = frame
		frameBuffers.Put(buf)
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// control sends a control frame. The deadline that the last message was written under
// may be over.
func (c *websocketConn) control(op byte, payload []byte) {
	if c.said {
		return
	}
	d := websocketPong
	if c.said = op == frameClose; c.said {
		d = websocketClosing
	}
	_ = c.SetWriteDeadline(time.Now().Add(d))
	_, _ = c.Conn.Write( // whoever is gone does not hear it
		appendFrame(nil, op, payload))
}

// CloseWrite tells the client that nothing more comes.
func (c *websocketConn) CloseWrite() error {
	c.sayGoodbye(closeNormal)
	return closeWrite(c.Conn)
}

func (c *websocketConn) sayGoodbye(code uint16) {
	c.control(frameClose, binary.BigEndian.AppendUint16(nil, code))
}

// Close says good-bye and closes the socket.
func (c *websocketConn) Close() error {
	c.sayGoodbye(closeNormal)
	return c.Conn.Close()
}
