package faults

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// link is a connection of an MQTT 3.1.1 client that says and reads one packet at a
// time: what the checks of delivery are made of. It is not safe for concurrent use.
type link struct {
	nc net.Conn
	r  *bufio.Reader
}

// inbound is a packet from the broker, as far as anybody here wants to know.
type inbound struct {
	kind    byte
	id      uint16
	topic   string
	payload string
	refused bool // of a SUBACK
}

// The packets that are read and written here, by the first half of their first byte.
const (
	kindConnack  = 2
	kindPublish  = 3
	kindPuback   = 4
	kindSuback   = 9
	kindUnsuback = 11
	kindPingresp = 13
)

// linkMax bounds connecting: a shard without a leader is answered after 5 s.
const linkMax = 8 * time.Second

// dialLink connects a client, to its durable session or to a clean one.
func dialLink(ctx context.Context, addr, client string, clean bool) (l *link, present bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, linkMax)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, false, err
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	flags := byte(0)
	if clean {
		flags = 2
	}
	hello := mqttPacket(0x10, mqttString(append(mqttString(nil, "MQTT"), 4, flags, 0, 0), client))
	var ack [4]byte
	if _, err = nc.Write(hello); err == nil {
		_, err = io.ReadFull(nc, ack[:])
	}
	if err == nil && (ack[0]>>4 != kindConnack || ack[3] != 0) {
		err = fmt.Errorf("CONNECT of %s is answered with % x", client, ack)
	}
	if err != nil {
		return nil, false, errors.Join(err, nc.Close())
	}
	return &link{nc: nc, r: bufio.NewReader(nc)}, ack[2] == 1, nil
}

func (l *link) close() { _ = l.nc.Close() } // whatever was on its way comes again, or is lost as it may be

func (l *link) write(p []byte) error {
	if err := l.nc.SetWriteDeadline(time.Now().Add(linkMax)); err != nil {
		return err
	}
	_, err := l.nc.Write(p)
	return err
}

func (l *link) publish(id uint16, topic, payload string, dup bool) error {
	first := byte(0x32)
	if dup {
		first |= 8
	}
	return l.write(mqttPacket(first, append(append(mqttString(nil, topic), byte(id>>8), byte(id)), payload...)))
}

// subscribe asks for messages of QoS 1.
func (l *link) subscribe(id uint16, filter string) error {
	return l.write(mqttPacket(0x82, append(mqttString([]byte{byte(id >> 8), byte(id)}, filter), 1)))
}

func (l *link) unsubscribe(id uint16, filter string) error {
	return l.write(mqttPacket(0xa2, mqttString([]byte{byte(id >> 8), byte(id)}, filter)))
}

func (l *link) ack(id uint16) error { return l.write([]byte{0x40, 2, byte(id >> 8), byte(id)}) }

func (l *link) ping() error { return l.write([]byte{0xc0, 0}) }

// read waits for a packet until a moment; ok is false when none has begun by then.
func (l *link) read(until time.Time) (p inbound, ok bool, err error) {
	if err := l.nc.SetReadDeadline(until); err != nil {
		return p, false, err
	}
	if _, err := l.r.Peek(1); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return p, false, nil
		}
		return p, false, err
	}
	if err := l.nc.SetReadDeadline(time.Now().Add(linkMax)); err != nil {
		return p, false, err
	}
	first, _ := l.r.ReadByte() // it has been peeked at
	n, err := l.length()
	if err != nil {
		return p, false, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(l.r, body); err != nil {
		return p, false, err
	}
	p, err = parseInbound(first, body)
	return p, err == nil, err
}

func parseInbound(first byte, body []byte) (p inbound, err error) {
	p.kind = first >> 4
	switch {
	case p.kind == kindPublish:
		if len(body) < 2 {
			return p, errShort
		}
		n := int(number(body))
		if len(body) < 2+n+2 {
			return p, errShort
		}
		p.topic, body = string(body[2:2+n]), body[2+n:]
		if first&6 > 0 {
			p.id, body = number(body), body[2:]
		}
		p.payload = string(body)
	case len(body) >= 2:
		p.id = number(body)
		p.refused = p.kind == kindSuback && (len(body) < 3 || body[2] >= 0x80)
	}
	return p, nil
}

// length reads the variable length of a packet.
func (l *link) length() (n int, err error) {
	for shift := 0; ; shift += 7 {
		b, err := l.r.ReadByte()
		if err != nil || shift > 21 {
			return 0, errors.Join(err, errShort)
		}
		n |= int(b&0x7f) << shift
		if b < 0x80 {
			return n, nil
		}
	}
}

func number(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }

var errShort = errors.New("a packet of the broker is cut short")
