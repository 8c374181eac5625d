package shard

import (
	"errors"
	"net"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/wal"
)

// gate stops what passes through it while it is shut: with every link of a node
// and its log behind one, the node stands still as a stopped process does, and
// goes on afterwards with what lies in its sockets.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed while the gate is open
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

func (g *gate) wait() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	<-open
}

// gatedLog is a log that stands still with its node: a leader that writes does
// not look at its lease meanwhile.
type gatedLog struct {
	*wal.Group
	gate *gate
}

func (l gatedLog) StoreLogs(logs []*raft.Log) error {
	l.gate.wait()
	return l.Group.StoreLogs(logs)
}

func (l gatedLog) StoreLog(log *raft.Log) error {
	l.gate.wait()
	return l.Group.StoreLog(log)
}

// link carries one node's connections to another one.
type link struct {
	listener net.Listener
	target   func() (string, error)
	gates    [2]*gate
	running  sync.WaitGroup
	mu       sync.Mutex
	conns    []net.Conn
	closed   bool
}

func newLink(target func() (string, error), from, to *gate) (*link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &link{listener: l, target: target, gates: [2]*gate{from, to}}
	k.running.Go(k.accept)
	return k, nil
}

func (k *link) accept() {
	for {
		in, err := k.listener.Accept()
		if err != nil {
			return
		}
		k.running.Go(func() { k.serve(in) })
	}
}

func (k *link) serve(in net.Conn) {
	defer in.Close()
	addr, err := k.target()
	if err != nil {
		return
	}
	out, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer out.Close()
	if !k.keep(in, out) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { k.carry(in, out) })
	both.Go(func() { k.carry(out, in) })
	both.Wait()
}

func (k *link) keep(conns ...net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conns = append(k.conns, conns...)
	return !k.closed
}

func (k *link) carry(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		for _, g := range k.gates {
			g.wait()
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			_, _ = from.Close(), to.Close()
			return
		}
	}
}

func (k *link) close() error {
	err := k.listener.Close()
	k.mu.Lock()
	k.closed = true
	for _, c := range k.conns {
		err = errors.Join(err, ignoreClosed(c.Close()))
	}
	k.mu.Unlock()
	k.running.Wait()
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
