package bench

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// Survivor publishes for one device and outlives the nodes: when a connection
// breaks it goes to the next address and sends again, marked as a repeat, what
// has no answer. It keeps the ledger that the store is compared with.
type Survivor struct {
	Addrs  []string
	Device string
	Window int           // publishes in flight
	Pause  time.Duration // before every Burst publishes; 0 is none
	Burst  int           // 0 is 1
	// Patience is how long it waits for an ack before it goes to the next
	// address; 0 waits for as long as the connection lives.
	Patience time.Duration
	// NoTime sends messages without a time of their own: each has a value of its
	// own instead, so that one stored twice is seen.
	NoTime bool
	// OnAck, if set, is called for every acknowledged message with the time since
	// it was first sent, from the client's goroutine.
	OnAck func(latency time.Duration)

	mu     sync.Mutex
	conn   *publisher           // the present connection, if any
	addr   string               // of it
	sent   uint64               // sequence numbers below it were sent at least once
	acked  map[uint64]bool      // ... and these acknowledged
	latest uint64               // the last of them
	since  map[uint64]time.Time // when those without an ack were first sent
	gaps   []time.Duration      // between an ack and the one before it, where longer than gapMin
	last   time.Time
}

// gapMin is what counts as an interruption.
const gapMin = 100 * time.Millisecond

// redialPause keeps a client whose every address refuses from spinning.
const redialPause = 20 * time.Millisecond

// Run publishes until ctx ends, then waits up to settle for the last acks.
func (s *Survivor) Run(ctx context.Context, settle time.Duration) {
	s.acked, s.since = map[uint64]bool{}, map[uint64]time.Time{}
	s.last = time.Now()
	end, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(settle, cancel) })
	defer stop()
	var open []uint64 // sent and not acknowledged, ascending
	for at := 0; end.Err() == nil; at++ {
		if ctx.Err() != nil && len(open) == 0 {
			return
		}
		open = s.connected(ctx, end, s.Addrs[at%len(s.Addrs)], open)
		select {
		case <-end.Done():
		case <-time.After(redialPause):
		}
	}
}

// connected uses one connection for as long as it lives and returns what is
// still without an answer.
func (s *Survivor) connected(ctx, end context.Context, addr string, open []uint64) []uint64 {
	p, err := s.dial(end, addr)
	if err != nil {
		return open
	}
	defer p.close()
	s.hold(p, addr)
	defer s.hold(nil, "")
	stop := context.AfterFunc(end, p.close)
	defer stop()
	ids := map[uint16]uint64{}
	send := func(seq uint64, dup bool) error {
		// A repeat has the packet id of its first transmission, as MQTT asks.
		id := uint16(seq%math.MaxUint16) + 1
		ids[id] = seq
		b := appendPublish(nil, id, s.Device, s.message(seq))
		if dup {
			b[0] |= 0x08
		}
		_, err := p.Write(b)
		return err
	}
	for _, seq := range open {
		if send(seq, true) != nil {
			return open
		}
	}
	for {
		for len(open) < s.Window && ctx.Err() == nil {
			if s.Pause > 0 && s.Sent()%uint64(max(s.Burst, 1)) == 0 {
				time.Sleep(s.Pause) // before the message: its acknowledgement is not read meanwhile
			}
			seq := s.take()
			open = append(open, seq)
			if send(seq, false) != nil {
				return open
			}
		}
		if len(open) == 0 {
			return nil
		}
		if s.Patience > 0 {
			if err := p.SetReadDeadline(time.Now().Add(s.Patience)); err != nil {
				return open
			}
		}
		id, err := p.readAck()
		if err != nil {
			return open
		}
		seq, ok := ids[id]
		delete(ids, id)
		if !ok {
			continue
		}
		s.ack(seq)
		for i, o := range open {
			if o == seq {
				open = append(open[:i], open[i+1:]...)
				break
			}
		}
	}
}

func (s *Survivor) dial(ctx context.Context, addr string) (*publisher, error) {
	if s.Patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Patience)
		defer cancel()
	}
	return dial(ctx, addr, s.Device)
}

func (s *Survivor) message(seq uint64) []byte {
	if !s.NoTime {
		return appendMessage(nil, s.Device, seq)
	}
	return fmt.Appendf(nil, `{"device_id":%q,"sensors":{%q:%d}}`, s.Device, sensorNoTime, seq)
}

// sensorNoTime is the one sensor of messages without a time; its value is the
// sequence number.
const sensorNoTime = "sequence"

func (s *Survivor) hold(p *publisher, addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn, s.addr = p, addr
}

// Address is where it is connected right now, "" while it is not.
func (s *Survivor) Address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Switch cuts the present connection, so that the next address is used.
func (s *Survivor) Switch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.close()
	}
}

func (s *Survivor) take() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent++
	s.since[s.sent-1] = time.Now()
	return s.sent - 1
}

func (s *Survivor) ack(seq uint64) {
	s.mu.Lock()
	now := time.Now()
	s.acked[seq], s.latest = true, seq
	latency := now.Sub(s.since[seq])
	delete(s.since, seq)
	if gap := now.Sub(s.last); gap >= gapMin {
		s.gaps = append(s.gaps, gap)
	}
	s.last = now
	s.mu.Unlock()
	if s.OnAck != nil {
		s.OnAck(latency)
	}
}

// Sent is how many messages were sent, numbered from 0.
func (s *Survivor) Sent() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// Acked is how many of them were acknowledged.
func (s *Survivor) Acked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.acked)
}

// Latest is the message that was acknowledged last.
func (s *Survivor) Latest() (seq uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latest, len(s.acked) > 0
}

// LongestGap is the longest time without an ack.
func (s *Survivor) LongestGap() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var longest time.Duration
	for _, g := range s.gaps {
		longest = max(longest, g)
	}
	return longest
}

// History is what the client knows, for a judge.
func (s *Survivor) History() History {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := History{Device: s.Device, NoTime: s.NoTime, Sent: s.sent}
	for seq := range s.acked {
		h.Acked = append(h.Acked, seq)
	}
	slices.Sort(h.Acked)
	return h
}

// Judge compares what is stored of the device with the ledger and returns what
// is wrong, at most a few of each kind.
func (s *Survivor) Judge(stored []Stored) []error {
	h := s.History()
	v := h.Judge(stored)
	return v.Errors
}
