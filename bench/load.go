package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Load is one run of publishers.
type Load struct {
	Addrs       []string      // MQTT addresses; connection i goes to Addrs[i % len]
	Connections int           // MQTT connections
	Window      int           // publishes in flight per connection, at most
	Duration    time.Duration // how long new publishes are sent
	Rate        float64       // offered publishes per second in total; 0 sends whenever the window allows
	Devices     int           // devices per connection, in turn (default 1: the connection's own)
	Readings    int           // messages per publish, as an array (default 1)
	Prefix      string        // of device ids (default "bench")
	// Acked, when set, is called for every acknowledged publish with the device
	// and the sequence number in its message, from the connection's goroutine.
	Acked func(device string, seq uint64)
	// Latency, when set, is called likewise, with the time from the intended sending.
	Latency func(time.Duration)
	// Present makes messages bear the time they are to be sent at, instead of one
	// that follows from their sequence number (see Epoch). It needs a Rate, and one
	// message per publish.
	Present bool
	// At, when set, is the time that message seq bears, and that of the others: see
	// Epoch.
	At func(seq uint64) time.Time
	// Arrived, when set, is called for every acknowledged publish with its device and
	// its intended time, from the connection's goroutine.
	Arrived func(device string, at time.Time)
	// Sent, when set, is called with the device and the intended time of every
	// publish, from the connection's goroutine.
	Sent func(device string, at time.Time)
}

func (l *Load) defaults() {
	l.Devices, l.Readings = max(l.Devices, 1), max(l.Readings, 1)
	if l.Prefix == "" {
		l.Prefix = "bench"
	}
	if l.At == nil {
		l.At = func(seq uint64) time.Time { return Epoch.Add(time.Duration(seq) * time.Millisecond) }
	}
}

// Result of a run.
type Result struct {
	Published uint64
	Acked     uint64 // acknowledged with success
	Refused   uint64 // acknowledged with an error
	Elapsed   time.Duration
	Latency   *hdrhistogram.Histogram // microseconds, from the intended sending to the ack
}

// Rate is acknowledged publishes per second.
func (r *Result) Rate() float64 { return float64(r.Acked) / r.Elapsed.Seconds() }

// latencyMaxMicros is the end of the histogram: a minute.
const latencyMaxMicros = 60_000_000

// drainMax bounds the wait for the last acks.
const drainMax = 15 * time.Second

// Run publishes until Duration is over and the last acks are in, or ctx ends.
func Run(ctx context.Context, l Load) (*Result, error) {
	l.defaults()
	if len(l.Addrs) == 0 || l.Connections < 1 || l.Window < 1 || l.Window > 65535 {
		return nil, errors.New("a load needs addresses, connections and a window of 1 to 65535")
	}
	ctx, cancel := context.WithTimeout(ctx, l.Duration+drainMax)
	defer cancel()
	conns := make([]*publisher, l.Connections)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.close()
			}
		}
	}()
	for i := range conns {
		c, err := dial(ctx, l.Addrs[i%len(l.Addrs)], fmt.Sprintf("%s-%d", l.Prefix, i))
		if err != nil {
			return nil, err
		}
		conns[i] = c
	}
	var published, acked, refused atomic.Uint64
	errs := make([]error, len(conns))
	hists := make([]*hdrhistogram.Histogram, len(conns))
	var wg sync.WaitGroup
	start := time.Now()
	for i, c := range conns {
		hists[i] = hdrhistogram.New(1, latencyMaxMicros, 3)
		wg.Go(func() {
			r := runner{load: &l, conn: c, index: i, start: start, hist: hists[i]}
			errs[i] = r.run(ctx)
			published.Add(r.published)
			acked.Add(r.acked)
			refused.Add(r.refused)
		})
	}
	wg.Wait()
	res := &Result{Published: published.Load(), Acked: acked.Load(), Refused: refused.Load(), Elapsed: time.Since(start), Latency: hdrhistogram.New(1, latencyMaxMicros, 3)}
	if res.Elapsed > l.Duration {
		res.Elapsed = max(l.Duration, lastAck(conns, start))
	}
	for _, h := range hists {
		res.Latency.Merge(h)
	}
	return res, errors.Join(errs...)
}

func lastAck(conns []*publisher, start time.Time) time.Duration {
	var last time.Time
	for _, c := range conns {
		if c.lastAck.After(last) {
			last = c.lastAck
		}
	}
	return last.Sub(start)
}
