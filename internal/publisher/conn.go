package publisher

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// link is one accepted connection.
type link struct {
	conn      net.Conn
	w         *bufio.Writer
	r         *bufio.Reader
	window    int // the broker's receive maximum
	packetMax int // the broker's maximum packet size, 0 for none
	keepAlive time.Duration
	lastRead  atomic.Int64 // unix nanoseconds
	lastWrite time.Time
	pinged    time.Time // of the PINGREQ under way, zero for none
}

// run connects until the Publisher is closed.
func (p *Publisher) run(ctx context.Context) {
	defer close(p.ended)
	failures := 0
	for at := 0; ctx.Err() == nil; at++ {
		l, err := p.connect(ctx, p.cfg.Brokers[at%len(p.cfg.Brokers)])
		if err == nil {
			began := time.Now()
			answered := p.Stats().Answered
			p.connects.Add(1)
			err = p.serve(ctx, l)
			p.disconnects.Add(1)
			if p.Stats().Answered > answered || time.Since(began) > retryMax {
				failures = 0
			}
		}
		p.down(err)
		failures++
		if failures%len(p.cfg.Brokers) != 0 {
			continue
		}
		if !pause(ctx, min(retryMax, retryMin<<min(failures/len(p.cfg.Brokers)-1, 10))) {
			return
		}
	}
}

// pause waits for d, give or take half, and reports whether ctx still lives:
// thousands of clients of a dead node must not come back in step.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// connect dials one broker and introduces itself.
func (p *Publisher) connect(ctx context.Context, broker string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.ConnectTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", broker)
	if err != nil {
		return nil, fmt.Errorf("connect to broker: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // wakes reads and writes below
	l, err := p.introduce(conn)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close() // the error above is the one that matters
		return nil, fmt.Errorf("connect to broker %s: %w", broker, err)
	}
	return l, nil
}

// introduce sends CONNECT and reads CONNACK.
func (p *Publisher) introduce(conn net.Conn) (*link, error) {
	l := &link{
		conn: conn, w: bufio.NewWriterSize(conn, p.cfg.BufferBytes), r: bufio.NewReaderSize(conn, 512),
		window: 65535, keepAlive: p.cfg.KeepAlive, lastWrite: time.Now(),
	}
	if err := conn.SetDeadline(time.Now().Add(p.cfg.ConnectTimeout)); err != nil {
		return nil, err
	}
	c := packets.NewControlPacket(packets.CONNECT)
	content := c.Content.(*packets.Connect)
	content.ClientID, content.CleanStart, content.KeepAlive = p.cfg.ClientID, true, uint16(max(1, p.cfg.KeepAlive/time.Second))
	if _, err := c.WriteTo(conn); err != nil {
		return nil, err
	}
	answer, err := packets.ReadPacket(l.r)
	if err != nil {
		return nil, err
	}
	ack, ok := answer.Content.(*packets.Connack)
	if !ok {
		return nil, fmt.Errorf("answered CONNECT with %s: is this an MQTT broker?", answer.PacketType())
	}
	if ack.ReasonCode >= reasonFailure {
		return nil, fmt.Errorf("refused with reason 0x%02x %s", ack.ReasonCode, ack.Properties.ReasonString)
	}
	if n := ack.Properties.ReceiveMaximum; n != nil && *n > 0 {
		l.window = int(*n)
	}
	if n := ack.Properties.MaximumPacketSize; n != nil {
		l.packetMax = int(*n)
	}
	if n := ack.Properties.ServerKeepAlive; n != nil && *n > 0 {
		l.keepAlive = time.Duration(*n) * time.Second
	}
	l.lastRead.Store(time.Now().UnixNano())
	return l, conn.SetDeadline(time.Time{})
}

// serve sends over one connection until it ends; the error is never nil.
func (p *Publisher) serve(ctx context.Context, l *link) error {
	p.begin()
	reader := make(chan error, 1)
	go func() { reader <- p.read(l) }()
	err := p.send(ctx, l, reader)
	if ctx.Err() != nil {
		p.goodbye(l)
	}
	_ = l.conn.Close() // ends the reader too
	if ended := <-reader; err == nil {
		return ended
	}
	return err // it ended the reader too
}

// send is the loop of the sending side: nil when the reader has ended.
func (p *Publisher) send(ctx context.Context, l *link, reader chan error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := p.sendReady(l); err != nil {
			return err
		}
		next, err := p.tick(l, time.Now())
		if err != nil {
			return err
		}
		timer.Reset(time.Until(next))
		select {
		case <-p.wake:
		case <-timer.C:
		case err := <-reader:
			reader <- err // serve takes it
			return nil
		case <-ctx.Done():
			return ErrClosed
		}
	}
}

// sendReady writes all that the window allows.
func (p *Publisher) sendReady(l *link) error {
	wrote := false
	for {
		it, tooLarge := p.next(l)
		if it == nil {
			break
		}
		if tooLarge {
			p.finish(it, Result{Err: ErrTooLarge})
			continue
		}
		if !wrote {
			if err := l.conn.SetWriteDeadline(time.Now().Add(p.cfg.AckTimeout)); err != nil {
				return fmt.Errorf("publish: %w", err)
			}
		}
		wrote = true
		if err := writePublish(l.w, it); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
	if !wrote {
		return nil
	}
	l.lastWrite = time.Now()
	if err := l.w.Flush(); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

// next marks the next item as sent on l and returns it.
func (p *Publisher) next(l *link) (it *item, tooLarge bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sent >= len(p.queue) || p.sent >= l.window {
		return nil, false
	}
	it = p.queue[p.sent]
	if l.packetMax > 0 && publishBytes(it) > l.packetMax {
		p.remove(p.sent)
		delete(p.ids, it.id)
		return it, true
	}
	p.sent++
	it.sends++
	it.sentAt = time.Now()
	if it.sends > 1 && it.dup {
		p.stats.Resent++
	}
	return it, false
}

// tick does what time demands and says when to come back.
func (p *Publisher) tick(l *link, now time.Time) (time.Time, error) {
	next := now.Add(l.keepAlive)
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	p.mu.Lock()
	for len(p.paused) > 0 && !p.paused[0].due.After(now) {
		p.queue = append(p.queue, p.paused[0])
		p.paused = p.paused[1:]
		sooner(now)
	}
	if len(p.paused) > 0 {
		sooner(p.paused[0].due)
	}
	var oldest time.Time
	if p.sent > 0 {
		oldest = p.queue[0].sentAt
	}
	p.mu.Unlock()
	if !oldest.IsZero() {
		if now.Sub(oldest) >= p.cfg.AckTimeout {
			return next, fmt.Errorf("broker %s has not answered a publish for %v", l.conn.RemoteAddr(), p.cfg.AckTimeout)
		}
		sooner(oldest.Add(p.cfg.AckTimeout))
	}
	return next, p.ping(l, now, sooner)
}

// ping keeps an idle connection alive and notices a dead one.
func (p *Publisher) ping(l *link, now time.Time, sooner func(time.Time)) error {
	if !l.pinged.IsZero() && l.lastRead.Load() >= l.pinged.UnixNano() {
		l.pinged = time.Time{}
	}
	if !l.pinged.IsZero() {
		if now.Sub(l.pinged) >= p.cfg.AckTimeout {
			return fmt.Errorf("broker %s does not answer pings", l.conn.RemoteAddr())
		}
		sooner(l.pinged.Add(p.cfg.AckTimeout))
		return nil
	}
	at := l.lastWrite.Add(l.keepAlive * 3 / 4)
	if now.Before(at) {
		sooner(at)
		return nil
	}
	if err := l.conn.SetWriteDeadline(now.Add(p.cfg.AckTimeout)); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	if _, err := packets.NewControlPacket(packets.PINGREQ).WriteTo(l.conn); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	l.lastWrite, l.pinged = now, now
	sooner(now.Add(p.cfg.AckTimeout))
	return nil
}

// read takes answers until the connection ends.
func (p *Publisher) read(l *link) error {
	for {
		packet, err := packets.ReadPacket(l.r)
		if err != nil {
			return fmt.Errorf("connection to broker %s ended: %w", l.conn.RemoteAddr(), err)
		}
		l.lastRead.Store(time.Now().UnixNano())
		switch c := packet.Content.(type) {
		case *packets.Puback:
			if err := p.answer(c.PacketID, c.ReasonCode, c.Properties.ReasonString); err != nil {
				return err
			}
			p.poke() // the window has room
		case *packets.Disconnect:
			return fmt.Errorf("broker %s said good-bye with reason 0x%02x %s", l.conn.RemoteAddr(), c.ReasonCode, c.Properties.ReasonString)
		case *packets.Pingresp:
		default:
			return fmt.Errorf("broker %s sent %s to a client that only publishes", l.conn.RemoteAddr(), packet.PacketType())
		}
	}
}

// goodbye is best effort: the connection ends anyway.
func (p *Publisher) goodbye(l *link) {
	_ = l.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = packets.NewControlPacket(packets.DISCONNECT).WriteTo(l.conn)
}

// begin starts a connection: everything unanswered is to be sent on it.
func (p *Publisher) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent, p.lost = 0, nil
	close(p.up)
}

// down ends a connection, or the attempt at one.
func (p *Publisher) down(err error) {
	if err != nil && !errors.Is(err, ErrClosed) {
		p.logger.Debug("no connection to broker", "client", p.cfg.ClientID, "err", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, it := range p.queue[:p.sent] {
		it.dup = true
	}
	p.sent = 0
	if p.lost == nil {
		p.up = make(chan struct{})
	}
	p.lost = err
}
