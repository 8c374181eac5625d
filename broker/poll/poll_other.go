//go:build !linux

package poll

import (
	"errors"
	"net"
)

// Poller exists on Linux only.
type Poller struct{}

// Socket exists on Linux only.
type Socket struct{}

// New answers errors.ErrUnsupported.
func New() (*Poller, error) { return nil, errors.ErrUnsupported }

// Socket is never reached without a poller.
func (*Poller) Socket(*net.TCPConn, func()) (*Socket, error) { return nil, errors.ErrUnsupported }

// Close does nothing.
func (*Poller) Close() error { return nil }

// TryRead is never reached without a poller.
func (*Socket) TryRead([]byte) (int, error) { return 0, errors.ErrUnsupported }

// Arm is never reached without a poller.
func (*Socket) Arm() error { return errors.ErrUnsupported }

// Forget is never reached without a poller.
func (*Socket) Forget() {}
