package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// publisher is a minimal MQTT 3.1.1 connection: it frames QoS 1 publishes and
// reads acks, many of each per system call, so that the generator costs little
// beside what it measures.
type publisher struct {
	net.Conn
	r       *bufio.Reader
	lastAck time.Time
}

const (
	dialMax      = 10 * time.Second
	packetPub1   = 0x32
	packetPuback = 4
)

func dial(ctx context.Context, addr, client string) (*publisher, error) {
	d := net.Dialer{Timeout: dialMax}
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	p := &publisher{Conn: nc, r: bufio.NewReaderSize(nc, 4096)}
	body := []byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0}
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(client))), client...)
	pkt := append([]byte{0x10, byte(len(body))}, body...)
	deadline := time.Now().Add(dialMax)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := nc.SetDeadline(deadline); err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	if _, err := nc.Write(pkt); err != nil {
		return nil, errors.Join(fmt.Errorf("send CONNECT to %s: %w", addr, err), nc.Close())
	}
	var ack [4]byte
	if _, err := io.ReadFull(p.r, ack[:]); err != nil {
		return nil, errors.Join(fmt.Errorf("read CONNACK of %s: %w", addr, err), nc.Close())
	}
	if ack[0] != 0x20 || ack[3] != 0 {
		return nil, errors.Join(fmt.Errorf("%s refused the connection with code %d", addr, ack[3]), nc.Close())
	}
	return p, nc.SetDeadline(time.Time{})
}

func (p *publisher) close() { _ = p.Close() } // the broker has answered all that matters

// readAck waits for the next PUBACK and returns its packet id.
func (p *publisher) readAck() (uint16, error) {
	var b [4]byte
	if _, err := io.ReadFull(p.r, b[:]); err != nil {
		return 0, err
	}
	if b[0]>>4 != packetPuback || b[1] != 2 {
		return 0, fmt.Errorf("got packet type %d with %d bytes, want PUBACK", b[0]>>4, b[1])
	}
	return binary.BigEndian.Uint16(b[2:]), nil
}

// runner drives one connection.
type runner struct {
	load                      *Load
	conn                      *publisher
	index                     int
	start                     time.Time
	hist                      *hdrhistogram.Histogram
	published, acked, refused uint64

	buf      []byte
	payload  []byte
	inFlight int
	sent     []sent // by packet id
}

type sent struct {
	device int
	seq    uint64
	at     time.Time // intended
}

func (r *runner) run(ctx context.Context) error {
	r.sent = make([]sent, r.load.Window)
	stop := context.AfterFunc(ctx, func() { r.conn.close() })
	defer stop()
	var err error
	if r.load.Rate > 0 {
		err = r.open(ctx)
	} else {
		err = r.closed()
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("connection %d: %w", r.index, err)
	}
	return nil
}

// closed keeps the window full.
func (r *runner) closed() error {
	end := r.start.Add(r.load.Duration)
	for {
		now := time.Now()
		if now.Before(end) {
			for r.inFlight < r.load.Window {
				r.add(now)
			}
			if err := r.flush(); err != nil {
				return err
			}
		}
		if r.inFlight == 0 {
			return nil
		}
		if err := r.acks(); err != nil {
			return err
		}
	}
}

// acks waits for one ack and takes what else has arrived already.
func (r *runner) acks() error {
	for {
		id, err := r.conn.readAck()
		if err != nil {
			return err
		}
		r.settle(id)
		if r.conn.r.Buffered() < 4 {
			return nil
		}
	}
}

func (r *runner) settle(id uint16) {
	s := r.sent[int(id-1)%len(r.sent)]
	now := time.Now()
	r.conn.lastAck = now
	r.acked++
	r.inFlight--
	// A value beyond the histogram's end is recorded at its end.
	_ = r.hist.RecordValue(min(now.Sub(s.at).Microseconds(), latencyMaxMicros))
	if r.load.Latency != nil {
		r.load.Latency(now.Sub(s.at))
	}
	if r.load.Arrived != nil {
		r.load.Arrived(r.device(s.device), s.at)
	}
	if r.load.Acked != nil {
		r.load.Acked(r.device(s.device), s.seq)
	}
}

// open sends at the intended times whatever the acks do; latency counts from
// the intended time, so that a stall is not hidden by the sender's own wait.
func (r *runner) open(ctx context.Context) error {
	every := time.Duration(float64(time.Second) * float64(r.load.Connections) / r.load.Rate)
	next := r.start.Add(every * time.Duration(r.index) / time.Duration(r.load.Connections))
	end := r.start.Add(r.load.Duration)
	acks := make(chan error, 1)
	tokens := make(chan struct{}, r.load.Window)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range tokens {
			id, err := r.conn.readAck()
			if err != nil {
				acks <- err
				return
			}
			r.settle(id)
		}
	}()
	for ; next.Before(end) && ctx.Err() == nil; next = next.Add(every) {
		if d := time.Until(next); d > 0 {
			time.Sleep(d)
		}
		r.add(next)
		if err := r.flush(); err != nil {
			return err
		}
		select {
		case tokens <- struct{}{}: // blocks while the window is full: the wait counts as latency
		case err := <-acks:
			return err
		}
	}
	close(tokens)
	<-done
	select {
	case err := <-acks:
		return err
	default:
		return nil
	}
}

func (r *runner) device(n int) string {
	return r.load.Prefix + "-" + strconv.Itoa(r.index) + "-" + strconv.Itoa(n)
}

// add appends one publish to the buffer.
func (r *runner) add(at time.Time) {
	slot := int(r.published) % len(r.sent)
	dev := int(r.published) % r.load.Devices
	r.sent[slot] = sent{device: dev, seq: r.published, at: at}
	if r.load.Present {
		r.payload = appendMessageAt(r.payload[:0], r.device(dev), r.published, at)
	} else {
		r.payload = r.appendPayload(r.payload[:0], dev, r.published)
	}
	if r.load.Sent != nil {
		r.load.Sent(r.device(dev), at)
	}
	r.buf = appendPublish(r.buf, uint16(slot+1), r.device(dev), r.payload)
	r.published++
	r.inFlight++
}

func (r *runner) flush() error {
	if len(r.buf) == 0 {
		return nil
	}
	_, err := r.conn.Write(r.buf)
	r.buf = r.buf[:0]
	return err
}

func appendPublish(b []byte, id uint16, device string, payload []byte) []byte {
	const before, after = "devices/", "/telemetry"
	topic := len(before) + len(device) + len(after)
	b = append(b, packetPub1)
	b = binary.AppendUvarint(b, uint64(2+topic+2+len(payload))) // MQTT's variable length is a uvarint
	b = binary.BigEndian.AppendUint16(b, uint16(topic))
	b = append(append(append(b, before...), device...), after...)
	b = binary.BigEndian.AppendUint16(b, id)
	return append(b, payload...)
}

// Epoch is the device time of sequence number 0 where nothing else is said (Load.At);
// message n is n milliseconds later, so that stored rows can be compared with what was acknowledged.
var Epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (r *runner) appendPayload(b []byte, dev int, seq uint64) []byte {
	if r.load.Readings == 1 {
		return appendMessageAt(b, r.device(dev), seq, r.load.At(seq))
	}
	b = append(b, '[')
	for i := range uint64(r.load.Readings) {
		if i > 0 {
			b = append(b, ',')
		}
		n := seq*uint64(r.load.Readings) + i
		b = appendMessageAt(b, r.device(dev), n, r.load.At(n))
	}
	return append(b, ']')
}

// The values of message seq, as tenths and hundredths.
func values(seq uint64) (temperature, humidity, pressure, battery float64) {
	return 20 + float64(seq*7919%1000)/100, 40 + float64(seq*104729%200)/10, 1000 + float64(seq*1299709%300)/10, 90 - float64(seq%100)/10
}

// appendMessage writes a message of about 200 bytes in the documented shape,
// with values that follow from the sequence number.
func appendMessage(b []byte, device string, seq uint64) []byte {
	return appendMessageAt(b, device, seq, Epoch.Add(time.Duration(seq)*time.Millisecond))
}

func appendMessageAt(b []byte, device string, seq uint64, at time.Time) []byte {
	t, h, p, bat := values(seq)
	b = append(b, `{"device_id":"`...)
	b = append(b, device...)
	b = append(b, `","timestamp":"`...)
	b = at.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000")
	b = append(b, `","sensors":{"temperature":`...)
	b = strconv.AppendFloat(b, t, 'f', 2, 64)
	b = append(b, `,"humidity":`...)
	b = strconv.AppendFloat(b, h, 'f', 1, 64)
	b = append(b, `,"pressure":`...)
	b = strconv.AppendFloat(b, p, 'f', 1, 64)
	b = append(b, `,"battery":`...)
	b = strconv.AppendFloat(b, bat, 'f', 1, 64)
	b = append(b, `},"metadata":{"firmware_version":"1.2.3","signal_strength":-`...)
	b = strconv.AppendUint(b, 50+seq*31%40, 10)
	return append(b, `}}`...)
}

// expected is what a reader of message seq must find: the nearest float64 to
// the digits that were sent.
func expected(seq uint64) map[string]float64 {
	t, h, p, bat := values(seq)
	digits := func(v float64, n int) float64 {
		f, err := strconv.ParseFloat(strconv.FormatFloat(v, 'f', n, 64), 64)
		if err != nil {
			panic(err) // FormatFloat writes what ParseFloat reads
		}
		return f
	}
	return map[string]float64{"temperature": digits(t, 2), "humidity": digits(h, 1), "pressure": digits(p, 1), "battery": digits(bat, 1)}
}
