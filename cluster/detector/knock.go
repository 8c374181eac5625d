package detector

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

const (
	// knocksMax bounds the doors knocked at at a time: more than a zone of a
	// large cluster has nodes. Beyond it gossip gives the second opinion.
	knocksMax = 64
	// knockTimeout is long for a connect on a LAN; a machine that is gone does
	// not answer at all and says nothing here.
	knockTimeout = 200 * time.Millisecond
)

// knockAfter spaces the attempts: a dying process may close its connections
// before its listener, so the first knock can still be answered by the kernel.
var knockAfter = [...]time.Duration{0, 10 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond}

// Resolver finds the address that a peer's mux listens on. It must not block.
type Resolver interface {
	Resolve(peer string) (addr string, err error)
}

// knock finds out, on a goroutine, whether anybody still listens at a peer's
// address.
func (d *Detector) knock(peer string) {
	r, ok := d.prober.(Resolver)
	if !ok {
		return
	}
	addr, err := r.Resolve(peer)
	if err != nil {
		return // gossip knows of a newer incarnation, or nothing
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing || d.knocks[peer] || len(d.knocks) >= knocksMax {
		return
	}
	d.knocks[peer] = true
	d.wg.Go(func() {
		if refused(d.ctx, addr) {
			d.Observe(peer, Refused)
		}
		d.mu.Lock()
		delete(d.knocks, peer)
		d.mu.Unlock()
	})
}

// refused reports whether the machine at addr says that nobody listens there.
func refused(ctx context.Context, addr string) bool {
	dialer := net.Dialer{Timeout: knockTimeout}
	for _, after := range knockAfter {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(after):
		}
		c, err := dialer.DialContext(ctx, "tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return true
		}
	}
	return false
}
