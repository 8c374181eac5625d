package broker

import (
	"crypto/tls"
	"errors"
	"net"

	"github.com/sluice-iot/sluice/broker/poll"
)

// patient is the TCP connection below layers: PROXY header, TLS, WebSocket. Its reads
// wait, except while it is tried: then they say that there is nothing, the layers hand
// that on, and go on where they were at the next read. So a connection with layers
// can wait without a goroutine, too.
type patient struct {
	*net.TCPConn
	socket *poll.Socket
	trying bool // owned by the reader
}

// Read implements net.Conn.
func (p *patient) Read(b []byte) (int, error) {
	if !p.trying {
		return p.TCPConn.Read(b)
	}
	n, err := p.socket.TryRead(b)
	if errors.Is(err, poll.ErrWouldBlock) {
		err = nothingYet{}
	}
	return n, err
}

// nothingYet is poll.ErrWouldBlock as crypto/tls wants to see it: after any error that
// is not temporary, its connection is of no use.
type nothingYet struct{}

func (nothingYet) Error() string        { return poll.ErrWouldBlock.Error() }
func (nothingYet) Timeout() bool        { return true }
func (nothingYet) Temporary() bool      { return true }
func (nothingYet) Is(target error) bool { return target == poll.ErrWouldBlock }

// layered is the socket of a connection with layers: armed below, read at the top.
type layered struct {
	socket
	top   net.Conn
	below *patient
}

// TryRead implements socket. What a layer has decoded and not yet handed out comes
// first, so that nobody waits for the kernel to report what has been read already.
func (l *layered) TryRead(p []byte) (int, error) {
	l.below.trying = true
	n, err := l.top.Read(p)
	l.below.trying = false
	if errors.Is(err, poll.ErrWouldBlock) {
		err = poll.ErrWouldBlock
	}
	return n, err
}

// lowest finds the connection below all layers, nil when it cannot be tried.
func lowest(nc net.Conn) *patient {
	for {
		switch layer := nc.(type) {
		case *patient:
			return layer
		case *tls.Conn:
			nc = layer.NetConn()
		case *websocketConn:
			nc = layer.Conn
		case *proxied:
			nc = layer.socket
		default:
			return nil
		}
	}
}
