package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/devcluster"
)

// GatewayConfig of the scenario of gateways that lose a leader.
type GatewayConfig struct {
	Binary   string // the sluice executable
	Dir      string // for the cluster's data; "" is a temporary directory
	Kills    int
	Devices  int     // behind each gateway, one message of each per publish
	Rate     float64 // publishes per second of each gateway
	Window   int     // its publishes in flight
	Shards   uint32
	Progress io.Writer // what is being done, may be nil
}

// Gateways is what gateways, whose every publish needs every shard, notice of the death of
// a node that leads a third of them and that they are not connected to.
type Gateways struct {
	Kills      int           `json:"kills"`
	Gateways   int           `json:"gateways"`
	Messages   float64       `json:"messages_per_second"` // of each gateway
	Each       []GatewayKill `json:"each"`
	Gap        Gaps          `json:"gap"`       // longest time without an acknowledgement
	Full       Gaps          `json:"full_rate"` // from the kill until acks keep up with the offered rate again
	Control    Gaps          `json:"control"`   // the same of the seconds before the kill: what the machine does without one
	LoadBefore float64       `json:"load_average_before"`
	LoadAfter  float64       `json:"load_average_after"`
}

// GatewayKill is one kill as one gateway saw it.
type GatewayKill struct {
	Node    string  `json:"node"`
	Gateway int     `json:"gateway"`
	Gap     float64 `json:"gap_ms"`
	Full    float64 `json:"full_rate_ms"`
	Before  float64 `json:"control_ms"`
	Late    float64 `json:"late_ms"` // a publish that waits for longer is late
	P50     float64 `json:"p50_ms"`  // before the kill
}

const (
	gatewayWatch = 5 * time.Second // before and after the kill
	// A publish is late when it waits for longer than gatewayLate, or gatewaySlow times what the ninety-ninth of
	// a hundred waited for before the kill.
	gatewayLate = 100 * time.Millisecond
	gatewaySlow = 2
	// gatewayHold is for how long none must be late for the rate to count as whole again.
	gatewayHold = time.Second
)

// RunGateways kills nodes, one after the other, under gateways that are connected to
// the others.
func RunGateways(ctx context.Context, cfg GatewayConfig) (out *Gateways, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	c, stop, err := scratchCluster(ctx, cfg.Binary, cfg.Dir, cfg.Shards)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	out = &Gateways{Kills: cfg.Kills, Gateways: failoverNodes - 1, Messages: cfg.Rate * float64(cfg.Devices), LoadBefore: loadAverage()}
	var gaps, full, control []time.Duration
	for k := range cfg.Kills {
		victim := c.Nodes()[k%failoverNodes]
		if _, err := settled(ctx, c); err != nil {
			return nil, err
		}
		kills, err := killUnderGateways(ctx, &cfg, c, victim, k)
		if err != nil {
			return nil, fmt.Errorf("kill %d: %w", k+1, err)
		}
		for _, one := range kills {
			fmt.Fprintf(cfg.Progress, "kill %d of %d: %s, gateway %d: longest gap %.0f ms, full rate after %.0f ms (control %.0f ms), p50 %.1f ms\n",
				k+1, cfg.Kills, one.Node, one.Gateway, one.Gap, one.Full, one.Before, one.P50)
			gaps, full = append(gaps, time.Duration(one.Gap*1e6)), append(full, time.Duration(one.Full*1e6))
			control = append(control, time.Duration(one.Before*1e6))
		}
		out.Each = append(out.Each, kills...)
	}
	out.Gap, out.Full, out.Control, out.LoadAfter = gapsOf(gaps), gapsOf(full), gapsOf(control), loadAverage()
	return out, nil
}

func killUnderGateways(ctx context.Context, cfg *GatewayConfig, c *devcluster.Cluster, victim *devcluster.Node, round int) ([]GatewayKill, error) {
	var gateways []*gateway
	defer func() {
		for _, g := range gateways {
			g.conn.close()
		}
	}()
	for i, n := range c.Nodes() {
		if n == victim {
			continue
		}
		name := fmt.Sprintf("g%d-%d", round, i)
		conn, err := dial(ctx, n.MQTT, name)
		if err != nil {
			return nil, err
		}
		gateways = append(gateways, &gateway{conn: conn, name: name, cfg: cfg})
	}
	running, cancel := context.WithTimeout(ctx, 2*gatewayWatch+time.Second) // the first second warms up
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(gateways))
	for i, g := range gateways {
		wg.Go(func() { errs[i] = g.run(running) })
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(gatewayWatch + time.Second):
	}
	killed := time.Now()
	err := victim.Kill()
	wg.Wait()
	if err = errors.Join(append(errs, err, ctx.Err())...); err != nil {
		return nil, err
	}
	var out []GatewayKill
	for i, g := range gateways {
		kill := g.judge(killed)
		kill.Node, kill.Gateway = victim.ID, i
		out = append(out, kill)
	}
	if err := victim.Start(); err != nil {
		return nil, err
	}
	return out, victim.WaitReady(ctx)
}

// gateway publishes arrays of one message of each of its devices at a steady rate.
type gateway struct {
	conn *publisher
	name string
	cfg  *GatewayConfig

	sent  []time.Time // intended, by number
	acked []time.Time // by number; acks come in order
}

// run publishes until ctx ends and waits for the last acks.
func (g *gateway) run(ctx context.Context) error {
	every := time.Duration(float64(time.Second) / g.cfg.Rate)
	places := make(chan struct{}, g.cfg.Window)
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for range places {
			if _, err := g.conn.readAck(); err != nil {
				failed <- err
				return
			}
			g.acked = append(g.acked, time.Now())
		}
	}()
	var buf, payload []byte
	for next := time.Now(); ctx.Err() == nil; next = next.Add(every) {
		if d := time.Until(next); d > 0 {
			time.Sleep(d)
		}
		payload = g.appendPayload(payload[:0], uint64(len(g.sent)))
		buf = appendGatewayPublish(buf[:0], uint16(len(g.sent)%g.cfg.Window+1), g.name, payload)
		g.sent = append(g.sent, next)
		if _, err := g.conn.Write(buf); err != nil {
			close(places)
			return fmt.Errorf("gateway %s: %w", g.name, err)
		}
		select {
		case places <- struct{}{}: // waits while the window is full
		case err := <-failed:
			close(places)
			return fmt.Errorf("gateway %s: %w", g.name, err)
		}
	}
	close(places)
	if err := g.conn.SetReadDeadline(time.Now().Add(drainMax)); err != nil {
		return err
	}
	if err := <-failed; err != nil {
		return fmt.Errorf("gateway %s: %w", g.name, err)
	}
	return nil
}

func (g *gateway) appendPayload(b []byte, seq uint64) []byte {
	b = append(b, '[')
	for i := range g.cfg.Devices {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendMessage(b, fmt.Sprintf("%s-%d", g.name, i), seq)
	}
	return append(b, ']')
}

func appendGatewayPublish(b []byte, id uint16, name string, payload []byte) []byte {
	topic := "gateways/" + name + "/telemetry"
	b = binary.AppendUvarint(append(b, packetPub1), uint64(2+len(topic)+2+len(payload)))
	b = binary.BigEndian.AppendUint16(appendText(b, topic), id)
	return append(b, payload...)
}

// judge says what the kill did to the acknowledgements.
func (g *gateway) judge(killed time.Time) (k GatewayKill) {
	var waits []time.Duration
	last := killed
	longest := time.Duration(0)
	for i, at := range g.acked {
		switch {
		case at.Before(killed.Add(-gatewayWatch)): // the first second warms up
		case at.Before(killed):
			waits = append(waits, at.Sub(g.sent[i]))
		default:
			longest, last = max(longest, at.Sub(last)), at
		}
	}
	before := gapsOf(waits)
	late := max(gatewayLate, time.Duration(gatewaySlow*before.P99*float64(time.Millisecond)))
	k.Gap, k.P50, k.Late = ms(longest), before.P50, ms(late)
	k.Before, k.Full = ms(g.whole(killed.Add(-gatewayWatch), late)), ms(g.whole(killed, late))
	return k
}

// whole is how long after a moment the gateway had its full rate again: until the ack of the last publish
// that was late, when none was for gatewayHold afterwards. What was not delayed at all had it at once.
func (g *gateway) whole(from time.Time, late time.Duration) time.Duration {
	last := from
	for i, at := range g.acked {
		if at.Before(from) {
			continue
		}
		if at.Sub(g.sent[i]) > late {
			last = at
		} else if g.sent[i].Sub(last) > gatewayHold {
			break
		}
	}
	return last.Sub(from)
}

// Table writes the result for people.
func (o *Gateways) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d kills of a node that %d gateways with %.0f messages/s each are not connected to; load average %.1f before, %.1f after\n", o.Kills, o.Gateways, o.Messages, o.LoadBefore, o.LoadAfter)
	fmt.Fprintf(&b, "%-42s %7s %8s %8s %8s %8s\n", "ms", "values", "p50", "p90", "p99", "max")
	for _, r := range []struct {
		name string
		g    Gaps
	}{{"longest time without an acknowledgement", o.Gap}, {"until the full rate", o.Full}, {"the same without a kill (control)", o.Control}} {
		fmt.Fprintf(&b, "%-42s %7d %8.0f %8.0f %8.0f %8.0f\n", r.name, r.g.Count, r.g.P50, r.g.P90, r.g.P99, r.g.Max)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
