package detector

import (
	"context"
	"errors"
	"net"
	"os"
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

// knock asks, on a goroutine, at a peer's address; what that says, if anything, is
// a signal.
func (d *Detector) knock(peer string, ask func(addr string) (Signal, bool)) {
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
		s, ok := ask(addr)
		d.mu.Lock()
		delete(d.knocks, peer)
		d.mu.Unlock()
		if ok {
			d.Observe(peer, s)
		}
	})
}

// touch connects to addr and hangs up.
func (d *Detector) touch(ctx context.Context, addr string) error {
	dial := d.cfg.Dial
	if dial == nil {
		dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	c, err := dial(ctx, addr)
	if err == nil {
		_ = c.Close()
	}
	return err
}

// refused finds out whether the machine at addr says that nobody listens there.
func (d *Detector) refused(addr string) (Signal, bool) {
	for _, after := range knockAfter {
		select {
		case <-d.ctx.Done():
			return 0, false
		case <-time.After(after):
		}
		ctx, cancel := context.WithTimeout(d.ctx, knockTimeout)
		err := d.touch(ctx, addr)
		cancel()
		if errors.Is(err, syscall.ECONNREFUSED) {
			return Refused, true
		}
	}
	return 0, false
}

const (
	// touches connects, touchEvery apart, have to stay without an answer until
	// touchTimeout: one packet may always get lost, and the last of them has had
	// twice the round trip of a network on which pings are answered in time.
	touches      = 4
	touchEvery   = 70 * time.Millisecond
	touchTimeout = 400 * time.Millisecond
)

// unreachable finds out whether no machine answers at addr. Refusing is an answer
// too. While this process stood still, answers may have waited for it, and a touch
// may have begun too late: nothing is said then.
func (d *Detector) unreachable(addr string) (Signal, bool) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(d.ctx, touchTimeout)
	defer cancel()
	answers := make(chan error, touches)
	for i := range touches {
		d.wg.Go(func() {
			select {
			case <-ctx.Done():
				answers <- context.Canceled // somebody answered an earlier one
			case <-time.After(time.Duration(i) * touchEvery):
				if time.Since(began) > time.Duration(i+1)*touchEvery {
					answers <- nil // we are late, and have not given it its time
					return
				}
				answers <- d.touch(ctx, addr)
			}
		})
	}
	for range touches {
		err := <-answers
		if errors.Is(err, syscall.ECONNREFUSED) {
			return Refused, true
		}
		if !noAnswer(err) {
			return 0, false
		}
	}
	paused := time.Since(began) > touchTimeout+d.cfg.Slack
	return Unreachable, !paused && d.ctx.Err() == nil
}

// noAnswer reports whether err says that nothing came back: until the deadline, or,
// from the next router or our own kernel, that nothing will.
func noAnswer(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTDOWN)
}
