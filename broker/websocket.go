package broker

import (
	"bufio"
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
	upgradeBytesMax  = 8 << 10 // of the HTTP request, headers included
	websocketBuffer  = 1 << 10 // per connection, for reading; writes borrow from a pool
	websocketClosing = 100 * time.Millisecond
)

var websocketBuffers sync.Pool

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
	up := websocket.Upgrader{Subprotocols: []string{"mqtt"}, ReadBufferSize: websocketBuffer,
		WriteBufferSize: websocketBuffer, WriteBufferPool: &websocketBuffers, CheckOrigin: w.allowed}
	ws, err := up.Upgrade(rw, req, nil)
	if err != nil {
		return nil, fmt.Errorf("upgrade to WebSocket: %w", err)
	}
	return &websocketConn{Conn: nc, ws: ws}, nil
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
// the TLS state are those of the connection below.
type websocketConn struct {
	net.Conn
	ws      *websocket.Conn
	message io.Reader // being read, nil between two
}

// Read is called by one goroutine. MQTT packets may begin and end anywhere in a
// message; a text message is against the standard and ends the connection.
func (c *websocketConn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, r, err := c.ws.NextReader()
			if err != nil {
				if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.CloseNoStatusReceived) {
					err = io.EOF
				}
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				c.sayGoodbye(websocket.CloseUnsupportedData)
				return 0, fmt.Errorf("WebSocket message of type %d: MQTT needs binary ones", kind)
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

// Write is called by one goroutine at a time and sends one message.
func (c *websocketConn) Write(p []byte) (int, error) {
	if err := c.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite tells the client that nothing more comes.
func (c *websocketConn) CloseWrite() error {
	c.sayGoodbye(websocket.CloseNormalClosure)
	return closeWrite(c.Conn)
}

func (c *websocketConn) sayGoodbye(code int) {
	// Whoever is gone does not hear it.
	_ = c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, ""), time.Now().Add(websocketClosing))
}

// Close says good-bye and closes the socket.
func (c *websocketConn) Close() error {
	c.sayGoodbye(websocket.CloseNormalClosure)
	return c.Conn.Close()
}
