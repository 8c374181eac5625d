package node

import (
	"context"
	"net"
	"path/filepath"
	"time"

	"github.com/sluice-iot/sluice/cluster/gossip"
	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/internal/vfs"
)

// system is what a node takes from its machine: the network, the disk under the
// log, the wall clock. The zero value is the machine itself; a simulation brings
// its own (see sim_test.go), and everything else of a node is the same in both.
type system struct {
	listen    func(addr string) (net.Listener, error)                  // of MQTT, HTTP and the other nodes
	dial      func(ctx context.Context, addr string) (net.Conn, error) // to other nodes
	gossip    gossip.Transport                                         // of membership
	log       vfs.FS                                                   // of the log
	logLinger time.Duration                                            // see wal.Config
	clock     *clock.Clock                                             // that leaders propose
	found     *damages                                                 // that outlive a life; nil: of this one
	born      func(*node)                                              // is told of every life
}

// open listens on an address of the configuration.
func (s *system) open(addr string) (net.Listener, error) {
	if s.listen != nil {
		return s.listen(addr)
	}
	return net.Listen("tcp", addr)
}

// logDir is where the log lies: in the data directory, or on a disk of its own.
func (s *system) logDir(data string) string {
	if s.log != nil {
		return "wal"
	}
	return filepath.Join(data, "wal")
}
