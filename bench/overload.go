package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Overload is more telemetry than a cluster takes, and subscribers to it. It runs in a
// process of its own: what is measured beside it must wait for the nodes, not for the
// clients of the overload.
type Overload struct {
	Addrs       []string // of MQTT; the subscribers are at the last one
	Connections int      // that publish as fast as they are acknowledged
	Window      int      // of each
	Subscribers int      // to all telemetry
	SlowBytes   int      // per second that each of them reads; 0: as fast as it can
	Duration    time.Duration
}

// Overloaded is what became of it.
type Overloaded struct {
	Rate        float64 `json:"acknowledged_per_second"`
	Latency     Gaps    `json:"acknowledged"` // in ms
	Subscribers int     `json:"subscribers"`
	Cut         int     `json:"cut"` // how often the broker cut a subscriber off that did not keep up
}

// RunOverload publishes, subscribes, and writes what became of it as JSON.
func RunOverload(ctx context.Context, o Overload, out io.Writer) error {
	slow := readers{members: map[*member]bool{}}
	defer slow.end()
	for i := range o.Subscribers {
		if err := slow.add(ctx, o.Addrs[len(o.Addrs)-1], "reader-"+strconv.Itoa(i), o.SlowBytes); err != nil {
			return err
		}
	}
	res, err := Run(ctx, Load{Addrs: o.Addrs, Connections: o.Connections, Window: o.Window, Duration: o.Duration, Prefix: "bulk"})
	if err != nil {
		return err
	}
	l := Gaps{Count: int(res.Acked), P50: quantile(res.Latency, 50), P90: quantile(res.Latency, 90), P99: quantile(res.Latency, 99), Max: quantile(res.Latency, 100)}
	return json.NewEncoder(out).Encode(Overloaded{Rate: res.Rate(), Latency: l, Subscribers: o.Subscribers, Cut: slow.end()})
}

// overload is the process.
func overload(ctx context.Context, binary string, o Overload) (out Overloaded, err error) {
	cmd := exec.CommandContext(ctx, binary, "bench", "overload", "--addr", strings.Join(o.Addrs, ","), "--connections", strconv.Itoa(o.Connections),
		"--window", strconv.Itoa(o.Window), "--subscribers", strconv.Itoa(o.Subscribers), "--slow", strconv.Itoa(o.SlowBytes), "--duration", o.Duration.String())
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("overload of %d connections: %w", o.Connections, err)
	}
	return out, json.Unmarshal(b, &out)
}

// readers subscribe to all telemetry, again and again when they are cut off.
type readers struct {
	done sync.WaitGroup

	mu      sync.Mutex
	members map[*member]bool // that are connected
	ending  bool
	cut     int
}

// add begins with a reader of so many bytes per second; with 0 it reads as fast as it can.
func (s *readers) add(ctx context.Context, addr, id string, bytes int) error {
	m := &member{id: id, source: byte(source)}
	if err := s.open(ctx, m, addr); err != nil {
		return err
	}
	s.done.Go(func() {
		for {
			s.read(m, bytes)
			if s.closed(m) {
				return
			}
			for s.open(ctx, m, addr) != nil && ctx.Err() == nil && !s.closed(m) {
				time.Sleep(100 * time.Millisecond)
			}
		}
	})
	return nil
}

func (s *readers) open(ctx context.Context, m *member, addr string) error {
	if _, err := m.connect(ctx, addr); err != nil {
		return err
	}
	if err := m.subscribeTo("devices/+/telemetry"); err != nil {
		return errors.Join(err, m.nc.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return errors.Join(net.ErrClosed, m.nc.Close())
	}
	s.members[m] = true
	return nil
}

// read takes messages until the connection ends.
func (s *readers) read(m *member, bytes int) {
	r := bufio.NewReader(m.nc)
	for began, read := time.Now(), 0; ; {
		body, id, err := readPublish(r)
		if err == nil && id > 0 {
			_, err = m.nc.Write([]byte{0x40, 2, byte(id >> 8), byte(id)})
		}
		if err != nil {
			return
		}
		read += len(body)
		if bytes > 0 {
			time.Sleep(time.Until(began.Add(time.Duration(read) * time.Second / time.Duration(bytes))))
		}
	}
}

// closed notes that a reader is not connected any more, and reports whether it shall not be.
func (s *readers) closed(m *member) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ending && s.members[m] {
		s.cut++
	}
	delete(s.members, m)
	return s.ending
}

// end closes all and reports how often the broker had cut one off.
func (s *readers) end() int {
	s.mu.Lock()
	s.ending = true
	for m := range s.members {
		_ = m.nc.Close() // what was on its way is of no use
	}
	s.mu.Unlock()
	s.done.Wait()
	return s.cut
}
