//go:build !linux

package postgres

import (
	"syscall"
	"time"
)

// userTimeout is Linux's; elsewhere keep-alives alone notice a dead server.
func userTimeout(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }
