package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Commands to devices, in every run beside the telemetry: whoever sends one goes from
// node to node until it is acknowledged, and its device moves from node to node with
// a durable session. None may be lost, come to another device, or overtake an
// earlier one (C11).

const (
	commandDevices  = 6
	commandPause    = 60 * time.Millisecond
	commandWindow   = 4 // commands of a sender without an acknowledgement
	commandPatience = 1500 * time.Millisecond
	commandStay     = 4 * time.Second // of a device at a node, at most
	commandSettle   = 30 * time.Second
	commandArrive   = 60 * time.Second // for what waited, once the fault is over
)

// Commands is what is known of the commands to one device.
type Commands struct {
	Device  string
	Sent    uint64   // commands 0 to Sent-1 were sent at least once
	Acked   []uint64 // and these acknowledged
	Got     []uint64 // by the device, in this order, repeats among them
	Foreign []string // what it was given that is not its own
	Lost    bool     // a node did not know its session
}

// commands drives and records.
type commands struct {
	addrs  []string
	still  atomic.Bool        // the devices stay where they are
	cancel context.CancelFunc // of the senders
	leave  context.CancelFunc // of the devices
	sent   sync.WaitGroup
	done   sync.WaitGroup

	mu      sync.Mutex
	devices []*Commands
	ready   int // devices that are subscribed
}

func startCommands(ctx context.Context, addrs []string, seed uint64) *commands {
	c := &commands{addrs: addrs}
	c.still.Store(true)
	sends, cancel := context.WithCancel(ctx)
	lives, leave := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel, c.leave = cancel, leave
	for i := range commandDevices {
		d := &Commands{Device: fmt.Sprintf("valve-%d", i)}
		c.devices = append(c.devices, d)
		c.done.Go(func() { c.receive(lives, d, i, rand.New(rand.NewPCG(seed, uint64(200+i)))) })
		c.sent.Go(func() { c.send(sends, d, i+1) })
	}
	return c
}

// subscribed reports whether every device hears its commands.
func (c *commands) subscribed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready == commandDevices
}

func (c *commands) topic(d *Commands) string { return "devices/" + d.Device + "/command" }

// send publishes the commands of one device, in order, once the device listens.
func (c *commands) send(ctx context.Context, d *Commands, at int) {
	for !c.subscribed() && ctx.Err() == nil {
		sleep(ctx, commandPause)
	}
	end, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(commandSettle, cancel) })
	defer stop()
	var open []uint64
	for ; end.Err() == nil && (ctx.Err() == nil || len(open) > 0); at++ {
		l, _, err := dialLink(end, c.addrs[at%len(c.addrs)], "sender-"+d.Device, true)
		if err == nil {
			open = c.sendOn(ctx, end, l, d, open)
			l.close()
		}
		sleep(end, commandPause)
	}
}

// sendOn uses one connection until it breaks or an acknowledgement is late.
func (c *commands) sendOn(ctx, end context.Context, l *link, d *Commands, open []uint64) []uint64 {
	send := func(seq uint64, dup bool) error {
		return l.publish(uint16(seq%60_000)+1, c.topic(d), fmt.Sprintf("%s %d", d.Device, seq), dup)
	}
	for _, seq := range open {
		if send(seq, true) != nil {
			return open
		}
	}
	var next time.Time // paced: a device that is away for long has a queue of 1,000
	for late := time.Now().Add(commandPatience); end.Err() == nil; {
		if len(open) < commandWindow && ctx.Err() == nil && !time.Now().Before(next) {
			next = time.Now().Add(commandPause)
			c.mu.Lock()
			seq := d.Sent
			d.Sent++
			c.mu.Unlock()
			open = append(open, seq)
			if send(seq, false) != nil {
				return open
			}
		}
		p, ok, err := l.read(time.Now().Add(commandPause))
		switch {
		case err != nil:
			return open
		case ok && p.kind == kindPuback:
			late = time.Now().Add(commandPatience)
			open = c.acknowledged(d, open, p.id)
		case !ok && len(open) > 0 && time.Now().After(late):
			return open
		}
		if len(open) == 0 && ctx.Err() != nil {
			return nil
		}
	}
	return open
}

func (c *commands) acknowledged(d *Commands, open []uint64, id uint16) []uint64 {
	at := slices.IndexFunc(open, func(seq uint64) bool { return uint16(seq%60_000)+1 == id })
	if at < 0 {
		return open
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d.Acked = append(d.Acked, open[at])
	return slices.Delete(open, at, at+1)
}

// receive is the device: a durable session that is moved from node to node.
func (c *commands) receive(ctx context.Context, d *Commands, at int, rng *rand.Rand) {
	known := false
	for ; ctx.Err() == nil; at++ {
		l, present, err := dialLink(ctx, c.addrs[at%len(c.addrs)], d.Device, false)
		if err != nil {
			sleep(ctx, commandPause)
			continue
		}
		if known && !present {
			c.mu.Lock()
			d.Lost = true
			c.mu.Unlock()
		}
		if !known {
			known = c.listen(l, d)
		}
		stay := time.Now().Add(commandStay/4 + time.Duration(rng.Int64N(int64(commandStay))))
		for known && ctx.Err() == nil && (c.still.Load() || time.Now().Before(stay)) && c.take(l, d) == nil {
		}
		l.close()
	}
}

// listen subscribes a device to its commands.
func (c *commands) listen(l *link, d *Commands) bool {
	if l.subscribe(1, c.topic(d)) != nil {
		return false
	}
	p, ok, err := l.read(time.Now().Add(linkMax))
	if !ok || err != nil || p.kind != kindSuback || p.refused {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ready++
	return true
}

// take waits a moment for a command, notes it, and acknowledges it.
func (c *commands) take(l *link, d *Commands) error {
	p, ok, err := l.read(time.Now().Add(200 * time.Millisecond))
	if !ok || err != nil || p.kind != kindPublish {
		return err
	}
	c.mu.Lock()
	text, own := strings.CutPrefix(p.payload, d.Device+" ")
	seq, err := strconv.ParseUint(text, 10, 64)
	if !own || err != nil || p.topic != c.topic(d) {
		d.Foreign = append(d.Foreign, p.topic+": "+p.payload)
	} else {
		d.Got = append(d.Got, seq)
	}
	c.mu.Unlock()
	return l.ack(p.id)
}

// stop ends the senders, waits until what they were acknowledged has arrived, or for
// a bounded time, and ends the devices.
func (c *commands) stop(ctx context.Context, patience time.Time) []Commands {
	c.cancel()
	c.sent.Wait()
	for !c.arrived() && time.Now().Before(patience) && ctx.Err() == nil {
		sleep(ctx, commandPause)
	}
	c.leave()
	c.done.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Commands
	for _, d := range c.devices {
		out = append(out, *d)
	}
	return out
}

func (c *commands) arrived() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.devices {
		if len(d.missing()) > 0 {
			return false
		}
	}
	return true
}

// missing lists what was acknowledged and has not arrived.
func (d *Commands) missing() (out []uint64) {
	got := map[uint64]bool{}
	for _, seq := range d.Got {
		got[seq] = true
	}
	for _, seq := range d.Acked {
		if !got[seq] {
			out = append(out, seq)
		}
	}
	return out
}

// judge checks C11 of one device.
func (d *Commands) judge(res *Result) {
	if d.Lost {
		res.fail("C11", "%s: its session is gone", d.Device)
	}
	if len(d.Acked) == 0 {
		res.fail("C11", "%s: no command was acknowledged", d.Device)
	}
	if lost := d.missing(); len(lost) > 0 {
		res.fail("C11", "%s: %d acknowledged commands have not arrived: %v", d.Device, len(lost), lost[:min(len(lost), 10)])
	}
	for _, f := range d.Foreign {
		res.fail("C11", "%s was given %q", d.Device, f)
	}
	for _, seq := range d.Got {
		if seq >= d.Sent {
			res.fail("C11", "%s was given command %d of %d", d.Device, seq, d.Sent)
		}
	}
	if before, seq, ok := unordered(d.Got); ok {
		res.fail("C11", "%s: command %d came first behind command %d", d.Device, seq, before)
	}
}
