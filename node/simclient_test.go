package node

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// simMQTT is one connection of MQTT 3.1.1 to a simulated node.
type simMQTT struct {
	net.Conn
	packets chan simPacket // closed at the end of the connection
	present bool           // of a session
}

type simPacket struct {
	kind    byte // the first byte
	id      uint16
	payload string
}

const simDialMax = 3 * time.Second

func (w *simWorld) connect(host, client string, clean bool) (*simMQTT, error) {
	ctx, cancel := context.WithTimeout(context.Background(), simDialMax)
	defer cancel()
	nc, err := w.net.Dial(simClients)(ctx, host+":1883")
	if err != nil {
		return nil, err
	}
	flags := byte(0)
	if clean {
		flags = 2
	}
	c := &simMQTT{Conn: nc, packets: make(chan simPacket, 64)}
	body := append(simString(nil, "MQTT"), 4, flags, 0, 0)
	err = errors.Join(nc.SetDeadline(time.Now().Add(simDialMax)), c.send(0x10, simString(body, client)))
	var ack [4]byte
	if err == nil {
		_, err = io.ReadFull(nc, ack[:])
	}
	if err == nil && (ack[0] != 0x20 || ack[3] != 0) {
		err = fmt.Errorf("refused: % x", ack)
	}
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	c.present = ack[2] == 1
	go c.read()
	return c, nil
}

// read delivers packets until the connection ends.
func (c *simMQTT) read() {
	defer close(c.packets)
	r := bufio.NewReader(c.Conn)
	for {
		kind, err := r.ReadByte()
		if err != nil {
			return
		}
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		p := simPacket{kind: kind}
		switch {
		case kind>>4 == 3 && kind&6 != 0:
			topic := 2 + int(binary.BigEndian.Uint16(body))
			p.id, p.payload = binary.BigEndian.Uint16(body[topic:]), string(body[topic+2:])
		case kind>>4 == 4 || kind>>4 == 9:
			p.id = binary.BigEndian.Uint16(body)
		}
		c.packets <- p
	}
}

func (c *simMQTT) send(first byte, body []byte) error {
	_, err := c.Write(append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...))
	return err
}

func (c *simMQTT) publish(topic string, id uint16, dup bool, payload string) error {
	first := byte(0x32)
	if dup {
		first |= 8
	}
	return c.send(first, append(binary.BigEndian.AppendUint16(simString(nil, topic), id), payload...))
}

// end closes the connection and waits for its reader.
func (c *simMQTT) end() {
	_ = c.Close() // the broker hears of it or finds out
	for range c.packets {
	}
}

func simString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// simPublisher has a ledger that outlives the nodes: it publishes numbered
// messages, a window of them at once, and sends again elsewhere, marked, what was
// not acknowledged in time.
type simPublisher struct {
	w      *simWorld
	client string
	topic  string
	window int
	pause  time.Duration
	text   func(seq int) string

	mu    sync.Mutex
	sent  int
	acked map[int]bool
}

const simPatience = 3 * time.Second

func (p *simPublisher) run(ctx context.Context, at int) {
	var open []int
	for ctx.Err() == nil {
		nodes := p.w.members()
		open = p.connected(ctx, nodes[at%len(nodes)].host, open)
		at++
		simSleep(ctx, 50*time.Millisecond)
	}
}

// connected uses one node until it does not answer.
func (p *simPublisher) connected(ctx context.Context, host string, open []int) []int {
	c, err := p.w.connect(host, p.client, true)
	if err != nil {
		return open
	}
	defer c.end()
	for _, seq := range open {
		if c.publish(p.topic, simID(seq), true, p.text(seq)) != nil {
			return open
		}
	}
	for ctx.Err() == nil {
		for len(open) < p.window {
			seq := p.take()
			open = append(open, seq)
			if c.publish(p.topic, simID(seq), false, p.text(seq)) != nil {
				return open
			}
		}
		select {
		case got, ok := <-c.packets:
			if !ok {
				return open
			}
			if got.kind>>4 == 4 {
				open = p.ack(open, got.id)
			}
		case <-time.After(simPatience):
			return open
		case <-ctx.Done():
		}
		simSleep(ctx, p.pause)
	}
	return open
}

func simID(seq int) uint16 { return uint16(seq%60000) + 1 }

func (p *simPublisher) take() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent++
	return p.sent - 1
}

func (p *simPublisher) ack(open []int, id uint16) []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, seq := range open {
		if simID(seq) == id {
			p.acked[seq] = true
			return append(open[:i], open[i+1:]...)
		}
	}
	return open
}

func (p *simPublisher) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.acked)
}

// simSubscriber has a durable session and goes from node to node with it.
type simSubscriber struct {
	w      *simWorld
	client string
	filter string
	ready  chan struct{} // closed when it has subscribed
	once   sync.Once

	mu    sync.Mutex
	first []string // payloads in the order in which each was first delivered
	seen  map[string]bool
}

func (s *simSubscriber) run(ctx context.Context, at int, stay func() time.Duration) {
	for ctx.Err() == nil {
		nodes := s.w.members()
		s.connected(ctx, nodes[at%len(nodes)].host, stay())
		at++
		simSleep(ctx, 100*time.Millisecond)
	}
}

// connected takes what one node delivers, for a while or until it is silent.
func (s *simSubscriber) connected(ctx context.Context, host string, stay time.Duration) {
	c, err := s.w.connect(host, s.client, false)
	if err != nil {
		return
	}
	defer c.end()
	if !c.present {
		body := binary.BigEndian.AppendUint16(nil, 1)
		if c.send(0x82, append(simString(body, s.filter), 1)) != nil {
			return
		}
	}
	ping := time.NewTicker(time.Second)
	defer ping.Stop()
	leave, heard := time.After(stay), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-leave:
			return
		case <-ping.C:
			if time.Since(heard) > simPatience || c.send(0xc0, nil) != nil {
				return
			}
		case p, ok := <-c.packets:
			if !ok {
				return
			}
			heard = time.Now()
			switch p.kind >> 4 {
			case 9:
				s.once.Do(func() { close(s.ready) })
			case 3:
				s.deliver(p.payload)
				if c.send(0x40, binary.BigEndian.AppendUint16(nil, p.id)) != nil {
					return
				}
			}
		}
	}
}

func (s *simSubscriber) deliver(payload string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.seen[payload] {
		s.seen[payload] = true
		s.first = append(s.first, payload)
	}
}

// judge compares what was delivered with what was sent: everything acknowledged,
// nothing else, in order.
func (s *simSubscriber) judge(p *simPublisher) (errs []error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for seq := range p.acked {
		if !s.seen[p.text(seq)] {
			errs = append(errs, fmt.Errorf("%s: command %d was acknowledged and never delivered", s.client, seq))
		}
	}
	last := -1
	for _, text := range s.first {
		var seq int
		if _, err := fmt.Sscanf(text, "%d", &seq); err != nil || seq >= p.sent || text != p.text(seq) {
			errs = append(errs, fmt.Errorf("%s: %q was delivered and never sent", s.client, text))
			continue
		}
		if seq < last {
			errs = append(errs, fmt.Errorf("%s: command %d was first delivered behind %d", s.client, seq, last))
		}
		last = max(last, seq)
	}
	return errs
}

func simSleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
