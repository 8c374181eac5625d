//go:build !linux

package zones

import (
	"context"
	"net"
)

// Net needs Linux.
type Net struct{ rules rules }

// New needs Linux.
func New(int) (*Net, error) { return nil, ErrUnavailable }

// Host is the address of a zone.
func (n *Net) Host(int) string { return "" }

// Prefix is what comes before a command that is to run in a zone.
func (n *Net) Prefix(int) []string { return nil }

// Dial connects from within a zone.
func (n *Net) Dial(context.Context, int, string, string) (net.Conn, error) {
	return nil, ErrUnavailable
}

// Close takes everything away.
func (n *Net) Close() error { return nil }
