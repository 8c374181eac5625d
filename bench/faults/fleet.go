package faults

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/bench"
)

// recorder is a recorded client: it keeps the ledger and outlives the nodes.
type recorder interface {
	Run(ctx context.Context, settle time.Duration)
	History() bench.History
	Acked() int
}

// Load is how many clients of each kind a run has.
type Load struct {
	Timed   int // MQTT QoS 1, a time in every message
	Untimed int // MQTT QoS 1, no time: repeats are told by DUP alone
	Posters int // HTTP with an Idempotency-Key
	Probes  int // MQTT QoS 1 with one message in flight: their latency is that of the cluster
}

// DefaultLoad is about 1,500 messages per second, far below what a cluster
// takes, so that the rate tells how it is and not how busy the machine is.
var DefaultLoad = Load{Timed: 16, Untimed: 8, Posters: 3, Probes: 6}

const (
	clientPause    = 15 * time.Millisecond // after every message of a client
	clientWindow   = 32
	probePause     = 25 * time.Millisecond
	clientPatience = 1500 * time.Millisecond // then it goes to another node
	posterLines    = 8
	posterPause    = 100 * time.Millisecond
)

// fleet is the clients of a run.
type fleet struct {
	meter   *meter
	probes  *meter // latencies of the probes alone
	clients []recorder
	mqtt    []*bench.Survivor
	spawn   func(recorder) // runs one more client
	cancel  context.CancelFunc
	done    sync.WaitGroup
	stopped bool
}

func newFleet(l Load, mqtt, urls []string) *fleet {
	f := &fleet{meter: newMeter(), probes: newMeter()}
	rotate := func(list []string, i int) []string {
		i %= len(list)
		return append(append([]string(nil), list[i:]...), list[:i]...)
	}
	add := func(kind string, n int, noTime bool) {
		for i := range n {
			s := &bench.Survivor{
				Addrs: rotate(mqtt, i), Device: fmt.Sprintf("%s-%d", kind, i), Window: clientWindow,
				Pause: clientPause, Patience: clientPatience, NoTime: noTime, OnAck: f.meter.ack,
			}
			f.clients, f.mqtt = append(f.clients, s), append(f.mqtt, s)
		}
	}
	add("timed", l.Timed, false)
	add("untimed", l.Untimed, true)
	for i := range l.Probes {
		f.clients = append(f.clients, &bench.Survivor{
			Addrs: rotate(mqtt, i), Device: fmt.Sprintf("probe-%d", i), Window: 1, Pause: probePause, Patience: clientPatience,
			OnAck: func(d time.Duration) { f.meter.ack(d); f.probes.ack(d) },
		})
	}
	for i := range l.Posters {
		f.clients = append(f.clients, &bench.Poster{
			URLs: rotate(urls, i), Device: fmt.Sprintf("posted-%d", i), Lines: posterLines,
			Pause: posterPause, Patience: clientPatience, OnAck: f.meter.ack,
		})
	}
	return f
}

// settleMax is how long clients try to have their last messages acknowledged.
const settleMax = 30 * time.Second

func (f *fleet) start(ctx context.Context) {
	ctx, f.cancel = context.WithCancel(ctx)
	f.spawn = func(c recorder) { f.done.Go(func() { c.Run(ctx, settleMax) }) }
	for _, c := range f.clients {
		f.spawn(c)
	}
}

// lone adds a client that knows one node only.
func (f *fleet) lone(device, addr string) *bench.Survivor {
	s := &bench.Survivor{Addrs: []string{addr}, Device: device, Window: clientWindow, Pause: clientPause, Patience: clientPatience, OnAck: f.meter.ack}
	f.clients = append(f.clients, s)
	f.spawn(s)
	return s
}

// stop ends the load and waits for the last acknowledgements.
func (f *fleet) stop() {
	if f.cancel == nil || f.stopped {
		return
	}
	f.stopped = true
	f.cancel()
	f.done.Wait()
}

func (f *fleet) acked() (n int) {
	for _, c := range f.clients {
		n += c.Acked()
	}
	return n
}

func (f *fleet) histories() []bench.History {
	var out []bench.History
	for _, c := range f.clients {
		out = append(out, c.History())
	}
	return out
}
