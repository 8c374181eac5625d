package bench

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/devcluster"
)

// PriorityConfig of the scenario of commands under overload.
type PriorityConfig struct {
	Binary   string // the sluice executable
	Dir      string // for the cluster's data; "" is a temporary directory
	Shards   uint32
	Overload Overload // what is going on beside the commands; its addresses and length are chosen here
	Rate     float64  // of either class, per second
	Target   string   // mqtt.commit_target of the nodes; "" is their default
	Duration time.Duration
	Progress io.Writer // what is being done, may be nil
}

// Priority compares commands with bulk messages that are published beside them: through
// one node, at QoS 1, for a device that is connected to another one.
type Priority struct {
	Telemetry  Overloaded    `json:"telemetry"` // beside the loaded round
	Idle       PriorityRound `json:"idle"`      // without telemetry
	Loaded     PriorityRound `json:"loaded"`
	Target     string        `json:"commit_target,omitempty"`
	CPU        float64       `json:"cpu_us_per_message"` // of all nodes together, for the telemetry and all else in the loaded round
	Block      float64       `json:"messages_per_block"`
	LoadBefore float64       `json:"load_average_before"`
	LoadAfter  float64       `json:"load_average_after"`
}

// PriorityRound is what commands and bulk messages took, in ms.
type PriorityRound struct {
	Commands PriorityClass `json:"commands"`
	Bulk     PriorityClass `json:"bulk"`
}

// PriorityClass is one class of messages.
type PriorityClass struct {
	Sent      int  `json:"sent"`
	Ack       Gaps `json:"acknowledged"` // from its intended sending to its PUBACK
	Delivered Gaps `json:"delivered"`    // to its receipt by the device
	Lost      int  `json:"lost"`         // acknowledged, and not received within a minute
}

const (
	priorityDevice = "valve"
	priorityIdle   = 5 * time.Second
	priorityWarm   = 3 * time.Second
	priorityDrain  = time.Minute // for what waits in the end
	priorityBulk   = "fleet/" + priorityDevice + "/report"
	priorityOrder  = "devices/" + priorityDevice + "/commands"
)

// RunPriority loads a fresh cluster beyond what it takes and publishes commands and bulk
// messages in turn.
func RunPriority(ctx context.Context, cfg PriorityConfig) (out *Priority, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	var environ []string
	if cfg.Target != "" {
		environ = append(environ, "SLUICE_MQTT_COMMIT_TARGET="+cfg.Target)
	}
	c, stop, err := scratchCluster(ctx, cfg.Binary, cfg.Dir, cfg.Shards, environ...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	out = &Priority{Target: cfg.Target, LoadBefore: loadAverage()}
	fmt.Fprintf(cfg.Progress, "commands and bulk messages on an idle cluster for %v ...\n", priorityIdle)
	if out.Idle, err = priorityRound(ctx, &cfg, c, priorityIdle); err != nil {
		return nil, err
	}
	fmt.Fprintf(cfg.Progress, "under telemetry of %d connections for %v ...\n", cfg.Overload.Connections, cfg.Duration)
	over := cfg.Overload
	over.Duration = cfg.Duration + 2*priorityWarm
	for _, n := range c.Nodes() {
		over.Addrs = append(over.Addrs, n.MQTT)
	}
	before, err := observe(ctx, c)
	if err != nil {
		return nil, err
	}
	loaded := make(chan error, 1)
	go func() {
		var err error
		out.Telemetry, err = overload(ctx, cfg.Binary, over)
		loaded <- err
	}()
	time.Sleep(priorityWarm)
	out.Loaded, err = priorityRound(ctx, &cfg, c, cfg.Duration)
	if err = errors.Join(err, <-loaded); err != nil {
		return nil, err
	}
	out.LoadAfter = loadAverage()
	after, err := observe(ctx, c)
	if n := float64(out.Telemetry.Latency.Count); n > 0 {
		out.CPU = (after.cpu - before.cpu).Seconds() * 1e6 / n
		out.Block = n / max(1, after.blocks-before.blocks)
	}
	return out, err
}

// Priorities are runs with several targets, in turn.
type Priorities []*Priority

// ComparePriority runs the scenario with each of the commit targets in turn, several
// times over, so that all of them have the machine as it is.
func ComparePriority(ctx context.Context, cfg PriorityConfig, targets []string, rounds int) (out Priorities, err error) {
	for range rounds {
		for _, target := range targets {
			cfg.Target = target
			o, err := RunPriority(ctx, cfg)
			if err != nil {
				return out, err
			}
			out = append(out, o)
		}
	}
	return out, nil
}

// Table compares medians over the rounds of each target, for people.
func (runs Priorities) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%-14s %6s %10s %10s %9s %9s  %22s  %22s\n", "commit_target", "rounds", "messages/s", "ack p50", "us/msg", "msg/block", "command delivered", "bulk delivered")
	var targets []string
	for _, o := range runs {
		if !slices.Contains(targets, o.Target) {
			targets = append(targets, o.Target)
		}
	}
	for _, target := range targets {
		var of []*Priority
		for _, o := range runs {
			if o.Target == target {
				of = append(of, o)
			}
		}
		mid := func(f func(*Priority) float64) float64 {
			v := make([]float64, len(of))
			for i, o := range of {
				v[i] = f(o)
			}
			slices.Sort(v)
			return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
		}
		both := func(g func(*Priority) *Gaps) string {
			return fmt.Sprintf("%.1f / %.0f", mid(func(o *Priority) float64 { return g(o).P50 }), mid(func(o *Priority) float64 { return g(o).P99 }))
		}
		fmt.Fprintf(&b, "%-14s %6d %10.0f %10.1f %9.1f %9.1f  %22s  %22s\n", cmp.Or(target, "default"), len(of),
			mid(func(o *Priority) float64 { return o.Telemetry.Rate }), mid(func(o *Priority) float64 { return o.Telemetry.Latency.P50 }),
			mid(func(o *Priority) float64 { return o.CPU }), mid(func(o *Priority) float64 { return o.Block }),
			both(func(o *Priority) *Gaps { return &o.Loaded.Commands.Delivered }), both(func(o *Priority) *Gaps { return &o.Loaded.Bulk.Delivered }))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// priorityRound publishes through the first node for the device at the last one.
func priorityRound(ctx context.Context, cfg *PriorityConfig, c *devcluster.Cluster, length time.Duration) (r PriorityRound, err error) {
	d := &listener{orders: map[string]time.Time{}, some: make(chan struct{}, 1)}
	m := &member{id: priorityDevice, durable: true, source: byte(source)}
	if _, err := m.connect(ctx, c.Nodes()[failoverNodes-1].MQTT); err != nil {
		return r, err
	}
	defer m.leave()
	for _, f := range []string{priorityOrder, priorityBulk} {
		if err := m.subscribeTo(f); err != nil {
			return r, err
		}
	}
	go d.listen(m.nc)
	classes := []*PriorityClass{&r.Commands, &r.Bulk}
	errs := make([]error, len(classes))
	var wg sync.WaitGroup
	for i, topic := range []string{priorityOrder, priorityBulk} {
		wg.Go(func() {
			errs[i] = orders(ctx, c.Nodes()[0].MQTT, topic, time.Duration(float64(time.Second)/cfg.Rate), length, d, classes[i])
		})
	}
	wg.Wait()
	return r, errors.Join(errs...)
}

// orders publishes at a steady rate whatever the acknowledgements do, and waits until
// what was acknowledged has arrived.
func orders(ctx context.Context, addr, topic string, every, length time.Duration, d *listener, out *PriorityClass) error {
	p, err := dial(ctx, addr, "sender-of-"+strings.ReplaceAll(topic, "/", "-"))
	if err != nil {
		return err
	}
	defer p.close()
	stop := context.AfterFunc(ctx, p.close)
	defer stop()
	var at []time.Time // intended
	sent := make(chan time.Time, int(length/every)+2)
	var acks []time.Duration
	done := make(chan error, 1)
	go func() {
		for t := range sent {
			if _, err := p.readAck(); err != nil {
				done <- fmt.Errorf("acknowledgement of a publish on %s: %w", topic, err)
				return
			}
			acks = append(acks, time.Since(t))
		}
		done <- nil
	}()
	begin := time.Now()
	for next := begin; next.Before(begin.Add(length)) && ctx.Err() == nil; next = next.Add(every) {
		time.Sleep(time.Until(next))
		if _, err := p.Write(appendOrder(nil, topic, uint16(len(at)%60_000)+1, orderText(topic, len(at)))); err != nil {
			return err
		}
		at = append(at, next)
		sent <- next
	}
	close(sent)
	if err := p.SetReadDeadline(time.Now().Add(priorityDrain)); err != nil {
		return err
	}
	if err := <-done; err != nil {
		return err
	}
	out.Sent, out.Ack = len(at), gapsOf(acks)
	var took []time.Duration
	for i, t := range at {
		if got, ok := d.await(ctx, orderText(topic, i)); ok {
			took = append(took, got.Sub(t))
		} else {
			out.Lost++
		}
	}
	out.Delivered = gapsOf(took)
	return ctx.Err()
}

func orderText(topic string, seq int) string { return topic + " " + strconv.Itoa(seq) }

func appendOrder(b []byte, topic string, id uint16, text string) []byte {
	return append(b, packetOf(packetPub1, append(binary.BigEndian.AppendUint16(appendText(nil, topic), id), text...))...)
}

// listener is the device: it notes when it was given what.
type listener struct {
	some chan struct{}

	mu     sync.Mutex
	orders map[string]time.Time
	over   bool
}

// listen reads until the connection ends, and acknowledges.
func (l *listener) listen(nc net.Conn) {
	r := bufio.NewReader(nc)
	for {
		body, id, err := readPublish(r)
		if err == nil && id > 0 {
			_, err = nc.Write([]byte{0x40, 2, byte(id >> 8), byte(id)})
		}
		l.mu.Lock()
		if err == nil {
			if _, again := l.orders[body]; !again {
				l.orders[body] = time.Now()
			}
		}
		l.over = err != nil
		l.mu.Unlock()
		select {
		case l.some <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// await is when a message came; false when it does not come any more.
func (l *listener) await(ctx context.Context, text string) (time.Time, bool) {
	for end := time.Now().Add(priorityDrain); ; {
		l.mu.Lock()
		at, ok := l.orders[text]
		over := l.over
		l.mu.Unlock()
		if ok || over || time.Now().After(end) || ctx.Err() != nil {
			return at, ok
		}
		select {
		case <-l.some:
		case <-time.After(50 * time.Millisecond): // another waits, too
		case <-ctx.Done():
		}
	}
}

// readPublish reads packets up to the next PUBLISH to an MQTT 5 client.
func readPublish(r *bufio.Reader) (payload string, id uint16, err error) {
	for {
		first, err := r.ReadByte()
		if err != nil {
			return "", 0, err
		}
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return "", 0, err
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(r, body); err != nil {
			return "", 0, err
		}
		if first>>4 != 3 {
			continue
		}
		at := 2
		if len(body) >= 2 {
			at += int(binary.BigEndian.Uint16(body))
		}
		if first&6 > 0 && len(body) >= at+2 {
			id, at = binary.BigEndian.Uint16(body[at:]), at+2
		}
		if at >= len(body) {
			return "", 0, errors.New("a PUBLISH of the broker is cut short")
		}
		props, n := binary.Uvarint(body[at:])
		if at += n + int(props); n < 1 || at > len(body) {
			return "", 0, errors.New("the properties of a PUBLISH of the broker are cut short")
		}
		return string(body[at:]), id, nil
	}
}

// Table writes the result for people.
func (o *Priority) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%.0f messages/s of telemetry acknowledged, after %.0f ms at the median and %.0f ms at p99; %d subscribers to it, cut off %d times\n",
		o.Telemetry.Rate, o.Telemetry.Latency.P50, o.Telemetry.Latency.P99, o.Telemetry.Subscribers, o.Telemetry.Cut)
	fmt.Fprintf(&b, "%.1f us of CPU of all nodes per message of telemetry, %.1f messages per block\n", o.CPU, o.Block)
	fmt.Fprintf(&b, "load average %.1f before, %.1f after\n", o.LoadBefore, o.LoadAfter)
	fmt.Fprintf(&b, "%-32s %6s %6s  %26s  %26s\n", "ms", "sent", "lost", "acknowledged p50/p99/max", "delivered p50/p99/max")
	for _, r := range []struct {
		name string
		c    *PriorityClass
	}{{"idle: commands", &o.Idle.Commands}, {"idle: bulk", &o.Idle.Bulk}, {"overload: commands", &o.Loaded.Commands}, {"overload: bulk", &o.Loaded.Bulk}} {
		three := func(g Gaps) string { return fmt.Sprintf("%.1f / %.1f / %.0f", g.P50, g.P99, g.Max) }
		fmt.Fprintf(&b, "%-32s %6d %6d  %26s  %26s\n", r.name, r.c.Sent, r.c.Lost, three(r.c.Ack), three(r.c.Delivered))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
