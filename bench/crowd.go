package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// crowd is many MQTT 5 clients that connect and then have nothing to say.
type crowd struct{ members []*member }

// member is one of them; a connection that is idle has no goroutine here either.
type member struct {
	id      string
	durable bool // a session that stays, a will
	present bool // the broker had its session
	source  byte // last byte of the address it comes from
	nc      net.Conn
}

const (
	crowdWorkers = 128 // clients that connect at the same time: what a node is asked meanwhile
	// crowdPerSource clients share an address: beyond 14,000, half of Linux's range of
	// ports, the kernel takes a millisecond to find a free one.
	crowdPerSource = 10_000
	crowdKeepAlive = 900 // seconds: nobody pings while a scenario runs
	crowdExpiry    = 3600
	crowdWillDelay = 60
)

// newCrowd makes clients that come from addresses 127.0.0.source and the next ones: not
// those of an earlier crowd, whose ports the kernel keeps for a minute.
func newCrowd(prefix string, n int, durable bool, source int) *crowd {
	c := &crowd{}
	for i := range n {
		c.members = append(c.members, &member{id: fmt.Sprintf("%s-%06d", prefix, i), durable: durable, source: byte(source + i/crowdPerSource)})
	}
	return c
}

// refusal is a CONNACK or SUBACK with an error.
type refusal byte

func (r refusal) Error() string { return fmt.Sprintf("refused with 0x%02x", byte(r)) }

// connect opens the connection and sends CONNECT; took is from then to the CONNACK.
func (m *member) connect(ctx context.Context, addr string) (took time.Duration, err error) {
	d := net.Dialer{Timeout: dialMax}
	if strings.HasPrefix(addr, "127.") {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, m.source)}
	}
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, fmt.Errorf("connect to %s: %w", addr, err)
	}
	began := time.Now()
	p, err := m.ask(nc, m.hello(), 0x20)
	if err == nil && p[1] != 0 {
		err = refusal(p[1])
	}
	if err != nil {
		return time.Since(began), errors.Join(err, nc.Close())
	}
	m.nc, m.present = nc, p[0] == 1
	return time.Since(began), nil
}

// subscribe subscribes to the commands of the device that the client is.
func (m *member) subscribe() error { return m.subscribeTo("devices/" + m.id + "/commands") }

// subscribeTo is answered when every node knows the filter.
func (m *member) subscribeTo(filter string) error {
	body := appendText([]byte{0, 1, 0}, filter)
	p, err := m.ask(m.nc, packetOf(0x82, append(body, 1)), 0x90)
	if err == nil && p[len(p)-1] >= 0x80 {
		err = refusal(p[len(p)-1])
	}
	return err
}

// ask sends a packet and waits for the one that answers it.
func (m *member) ask(nc net.Conn, pkt []byte, want byte) ([]byte, error) {
	if err := nc.SetDeadline(time.Now().Add(dialMax)); err != nil {
		return nil, err
	}
	if _, err := nc.Write(pkt); err != nil {
		return nil, fmt.Errorf("send packet %#x: %w", pkt[0], err)
	}
	var head [2]byte
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		return nil, fmt.Errorf("read answer to packet %#x: %w", pkt[0], err)
	}
	if head[0] != want || head[1] < 2 || head[1] > 127 { // these answers are short
		return nil, fmt.Errorf("got packet %#x of length %d, want %#x", head[0], head[1], want)
	}
	body := make([]byte, head[1])
	if _, err := io.ReadFull(nc, body); err != nil {
		return nil, fmt.Errorf("read answer to packet %#x: %w", pkt[0], err)
	}
	return body, nc.SetDeadline(time.Time{})
}

// hello is the CONNECT: a clean session, or one that stays, with a will.
func (m *member) hello() []byte {
	b := append(appendText(nil, "MQTT"), 5)
	if !m.durable {
		b = append(binary.BigEndian.AppendUint16(append(b, 0x02), crowdKeepAlive), 0)
		return packetOf(0x10, appendText(b, m.id))
	}
	b = binary.BigEndian.AppendUint16(append(b, 0x0c), crowdKeepAlive)      // a will of QoS 1
	b = binary.BigEndian.AppendUint32(append(b, 5, 0x11), crowdExpiry)      // session expiry
	b = appendText(b, m.id)                                                 //
	b = binary.BigEndian.AppendUint32(append(b, 5, 0x18), crowdWillDelay)   // will delay
	return packetOf(0x10, appendText(appendText(b, "fleet/"+m.id), "gone")) // will topic and payload
}

// leave says good-bye: no will is sent.
func (m *member) leave() {
	if m.nc == nil {
		return
	}
	_, _ = m.nc.Write([]byte{0xe0, 0}) // who is gone does not hear it
	_ = m.nc.Close()
	m.nc = nil
}

func packetOf(first byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...)
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// each calls f for all members, crowdWorkers of them at a time.
func (c *crowd) each(ctx context.Context, f func(*member) error) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, crowdWorkers)
	for w := range crowdWorkers {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(c.members) {
					return
				}
				if err := f(c.members[i]); err != nil {
					errs[w] = fmt.Errorf("client %s: %w", c.members[i].id, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return ctx.Err()
}

// leave lets all go.
func (c *crowd) leave() {
	for _, m := range c.members {
		m.leave()
	}
}

// timed is each, with the time that every call takes and all of them together.
func (c *crowd) timed(ctx context.Context, f func(*member) (time.Duration, error)) (*hdrhistogram.Histogram, time.Duration, error) {
	hist := hdrhistogram.New(1, latencyMaxMicros, 3)
	var mu sync.Mutex
	began := time.Now()
	err := c.each(ctx, func(m *member) error {
		took, err := f(m)
		mu.Lock()
		defer mu.Unlock()
		// A value beyond the histogram's end is recorded at its end.
		_ = hist.RecordValue(min(took.Microseconds(), latencyMaxMicros))
		return err
	})
	return hist, time.Since(began), err
}
