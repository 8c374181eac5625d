package mux

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// peersMax bounds the peers we keep a connection to: incarnations of a cluster
// of a few hundred nodes.
const peersMax = 1024

// waitingMax bounds the calls that wait for one attempt to connect.
const waitingMax = 16 << 10

type phase uint8

const (
	phaseIdle    phase = iota // no connection; the next attempt has its time
	phaseDialing              // an attempt is under way
	phaseUp                   // connected
	phaseGone                 // forgotten; ask the Mux for a new peer
)

// peer is the dialing side towards one peer. Its goroutine (run) dials, then
// reads; the phase is moved only under mu.
type peer struct {
	m       *Mux
	id      string
	conn    atomic.Pointer[conn]
	inbound atomic.Int32 // connections it has to us
	used    atomic.Int64 // Mux.now of the last call

	mu      sync.Mutex
	phase   phase
	waiting []func(*conn, error)
	quick   *time.Timer // ends the patience of those who wait
	patient bool        // the quick time is not over
	again   bool        // the address changed: no backoff
	ended   int64       // Mux.now of the last attempt's end
	lastErr error
	addr    string
	cancel  context.CancelFunc
	wake    chan struct{}
	up      chan struct{} // closed while connected
}

// with hands fn the connection, at once when there is one, else when the attempt
// that is under way (or begun here) succeeds. fn runs exactly once and must not
// block. false: the peer was forgotten meanwhile.
func (p *peer) with(fn func(*conn, error)) bool {
	if c := p.conn.Load(); c != nil {
		fn(c, nil)
		return true
	}
	now := p.m.now()
	p.used.Store(now)
	p.mu.Lock()
	if p.phase == phaseGone {
		p.mu.Unlock()
		return false
	}
	if c := p.conn.Load(); c != nil {
		p.mu.Unlock()
		fn(c, nil)
		return true
	}
	if p.phase == phaseIdle && now-p.ended >= int64(p.m.cfg.RedialMin) {
		p.begin()
	}
	if p.phase == phaseDialing && p.patient && len(p.waiting) < waitingMax {
		p.waiting = append(p.waiting, fn)
		p.mu.Unlock()
		return true
	}
	err := p.lastErr
	stuckAt, cancel := "", p.cancel
	if p.phase == phaseDialing && !p.patient {
		stuckAt = p.addr
	}
	p.mu.Unlock()
	if stuckAt != "" {
		p.unstick(stuckAt, cancel)
	}
	fn(nil, p.notConnected(err))
	return true
}

// notConnected wraps what the last attempt ended with.
func (p *peer) notConnected(err error) error {
	if err == nil {
		return fmt.Errorf("reach %s: %w", p.id, ErrNotConnected)
	}
	return fmt.Errorf("reach %s: %w: %w", p.id, ErrNotConnected, err)
}

// begin starts an attempt; mu is held, phase is idle.
func (p *peer) begin() {
	p.phase, p.patient = phaseDialing, true
	p.quick = time.AfterFunc(p.m.cfg.QuickDial, p.impatient)
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// impatient fails those who have waited for the quick time.
func (p *peer) impatient() {
	p.mu.Lock()
	p.patient = false
	waiting, err := p.waiting, p.lastErr
	p.waiting = nil
	p.mu.Unlock()
	for _, fn := range waiting {
		fn(nil, p.notConnected(err))
	}
}

// unstick cancels an attempt that hangs at an address the peer no longer has.
func (p *peer) unstick(stuckAt string, cancel context.CancelFunc) {
	addr, err := p.m.resolve(p.id)
	if err != nil || addr == stuckAt {
		return
	}
	p.mu.Lock()
	p.again = true
	p.mu.Unlock()
	cancel()
}

// run is the peer's goroutine.
func (p *peer) run() {
	backoff := p.m.cfg.RedialMin
	for p.pause(backoff) {
		c, err := p.attempt()
		if err != nil {
			backoff = min(max(2*backoff, p.m.cfg.RedialMin), p.m.cfg.RedialMax)
			if p.failed(err) {
				backoff = 0
			}
			continue
		}
		backoff = p.m.cfg.RedialMin
		p.serve(c)
	}
	p.mu.Lock()
	p.phase = phaseGone
	if p.quick != nil {
		p.quick.Stop()
	}
	waiting := p.waiting
	p.waiting = nil
	p.mu.Unlock()
	for _, fn := range waiting {
		fn(nil, fmt.Errorf("reach %s: %w", p.id, ErrClosed))
	}
}

// pause waits until the next attempt is due: after the backoff (0.5 to 1.5 times,
// so that nodes do not dial in step) or when a call begins one. false: no more.
func (p *peer) pause(backoff time.Duration) bool {
	timer := time.NewTimer(backoff/2 + time.Duration(rand.Int64N(int64(backoff)+1)))
	defer timer.Stop()
	select {
	case <-p.m.done:
		return false
	case <-p.wake:
		return true
	case <-timer.C:
	}
	if p.inbound.Load() == 0 && p.m.now()-p.used.Load() > int64(p.m.cfg.ForgetAfter) && p.m.forget(p) {
		return false
	}
	p.mu.Lock()
	if p.phase == phaseIdle {
		p.begin()
	}
	p.mu.Unlock()
	select {
	case <-p.m.done:
		return false
	case <-p.wake:
		return true
	}
}

// attempt dials once.
func (p *peer) attempt() (*conn, error) {
	addr, err := p.m.resolve(p.id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.m.cfg.DialTimeout)
	defer cancel()
	p.mu.Lock()
	p.addr, p.cancel = addr, cancel
	p.mu.Unlock()
	if p.m.closed() {
		return nil, ErrClosed // Close may have looked for cancel before it was there
	}
	nc, cluster, err := p.m.connect(ctx, addr, p.id, purposeFrames)
	if err != nil {
		return nil, err
	}
	return newConn(p.m, nc, p, p.id, cluster), nil
}

// failed ends an attempt; again: the next one should follow at once.
func (p *peer) failed(err error) (again bool) {
	p.mu.Lock()
	p.quick.Stop()
	p.phase, p.ended, p.addr, p.cancel = phaseIdle, p.m.now(), "", nil
	again, p.again = p.again, false
	repeated := p.lastErr != nil && p.lastErr.Error() == err.Error()
	p.lastErr = err
	waiting := p.waiting
	p.waiting = nil
	p.mu.Unlock()
	for _, fn := range waiting {
		fn(nil, p.notConnected(err))
	}
	p.m.metrics.dialFailures.Inc()
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		if !repeated {
			p.m.logger.Warn("connection refused", "peer", p.id, "err", err)
		}
		p.m.emit(Event{Peer: p.id, Kind: Refused, Err: err})
	}
	return again
}

// stop cancels an attempt that is under way.
func (p *peer) stop() {
	p.mu.Lock()
	cancel := p.cancel
	p.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// connected is closed while there is a connection, and when it comes.
func (p *peer) connected() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up
}

// serve makes c the connection until it ends.
func (p *peer) serve(c *conn) {
	if !p.m.register(c) {
		c.fail(ErrClosed)
		return
	}
	defer p.m.unregister(c)
	p.m.logger.Info("peer connected", "peer", p.id, "addr", c.nc.RemoteAddr().String())
	p.m.metrics.connects.WithLabelValues(p.id).Inc()
	p.m.emit(Event{Peer: p.id, Kind: Up})
	p.m.spawn(c.write)
	c.ping(p.m.now())
	p.announce(c)
	c.fail(c.read())
	p.lost(c)
	p.m.logger.Info("peer disconnected", "peer", p.id, "err", c.reason())
	p.m.emit(Event{Peer: p.id, Kind: Down, Err: c.reason()})
}

// announce passes c to those who wait, in their order, then to everybody.
func (p *peer) announce(c *conn) {
	for {
		p.mu.Lock()
		p.quick.Stop()
		if len(p.waiting) == 0 {
			p.phase, p.lastErr, p.addr, p.cancel, p.again = phaseUp, nil, "", nil, false
			p.conn.Store(c)
			close(p.up)
			p.mu.Unlock()
			return
		}
		waiting := p.waiting
		p.waiting = nil
		p.mu.Unlock()
		for _, fn := range waiting {
			fn(c, nil)
		}
	}
}

// lost takes c away; calls begin a new attempt after RedialMin.
func (p *peer) lost(c *conn) {
	if !p.conn.CompareAndSwap(c, nil) {
		return
	}
	now := p.m.now()
	p.used.Store(now)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up = make(chan struct{})
	if p.phase == phaseUp {
		p.phase, p.ended, p.lastErr = phaseIdle, now, c.reason()
	}
}
