package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/telemetry"
)

// FailoverConfig of the fail-over scenario.
type FailoverConfig struct {
	Binary   string // the sluice executable
	Dir      string // for the cluster's data; "" is a temporary directory
	Kills    int
	Shards   uint32
	Progress io.Writer // what is being done, may be nil
}

// Failover is what clients see of the death of a leader's node: the longest time
// without an acknowledgement, in milliseconds, one value per kill and client.
type Failover struct {
	Kills      int     `json:"kills"`
	Clients    int     `json:"clients"` // one per shard, on all nodes in turn
	LoadBefore float64 `json:"load_average_before"`
	LoadAfter  float64 `json:"load_average_after"`
	// Affected clients publish to a shard that the dead node led, or through it.
	Affected  Gaps `json:"affected"`
	Led       Gaps `json:"led"`       // to such a shard, through another node
	Connected Gaps `json:"connected"` // through the dead node
	Others    Gaps `json:"others"`    // neither: the control
	// Dying is from the signal to the end of the process, which is part of every
	// gap: on a machine whose cores are taken the kernel needs a while for it.
	Dying Gaps           `json:"dying"`
	Each  []FailoverKill `json:"each"`
}

// Gaps are quantiles of the longest times without an acknowledgement.
type Gaps struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50_ms"`
	P90   float64 `json:"p90_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`
}

// FailoverKill is one kill.
type FailoverKill struct {
	Node   string    `json:"node"`
	At     time.Time `json:"at"`
	Dying  float64   `json:"dying_ms"`
	Led    int       `json:"shards_led"`
	P50    float64   `json:"p50_ms"` // of the affected clients
	Max    float64   `json:"max_ms"`
	Slow   string    `json:"slowest_device"`
	SlowTo uint32    `json:"slowest_shard"`
	Others float64   `json:"others_p50_ms"` // the control: what the machine did to everybody
}

const (
	failoverNodes = 3
	failoverPause = 20 * time.Millisecond // between two publishes of a client: the resolution of a gap
	// failoverWatch is how long a kill is watched, a multiple of the bound.
	failoverWatch = 4 * time.Second
	// Leaderships are settled when nobody has moved for settledFor; the balance
	// moves two every two seconds.
	settledFor = 2500 * time.Millisecond
	settleMax  = time.Minute
)

// watcher is one client with the shard it publishes to.
type watcher struct {
	*Survivor
	shard telemetry.ShardID
	home  string // address it begins at

	mu      sync.Mutex
	last    time.Time     // of the latest ack
	longest time.Duration // between two acks since the last reset
}

func (w *watcher) acked(time.Duration) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longest = max(w.longest, now.Sub(w.last))
	w.last = now
}

// reset begins a new observation: what was before does not count.
func (w *watcher) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longest, w.last = 0, time.Now()
}

// gap is the longest time without an ack since reset, the present one included.
func (w *watcher) gap() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(w.longest, time.Since(w.last))
}

// RunFailover kills leaders' nodes with SIGKILL, one after the other, in a
// cluster of three under a steady light load, and starts each again.
func RunFailover(ctx context.Context, cfg FailoverConfig) (out *Failover, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	c, stop, err := scratchCluster(ctx, cfg.Binary, cfg.Dir, cfg.Shards)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	clients := watchers(c, cfg.Shards)
	running, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	for _, w := range clients {
		done.Go(func() { w.Run(running, time.Second) })
	}
	defer done.Wait()
	defer cancel()
	out = &Failover{Kills: cfg.Kills, Clients: len(clients)}
	out.LoadBefore = loadAverage()
	var all samples
	for k := range cfg.Kills {
		kill, s, err := killOne(ctx, c, clients, c.Nodes()[k%failoverNodes])
		if err != nil {
			return nil, fmt.Errorf("kill %d: %w", k+1, err)
		}
		out.Each = append(out.Each, *kill)
		all.add(s)
		fmt.Fprintf(cfg.Progress, "kill %d of %d: %s led %d shards, acknowledged again after %.0f ms (median), %.0f ms (longest); it was dead after %.0f ms, others waited %.0f ms\n", k+1, cfg.Kills, kill.Node, kill.Led, kill.P50, kill.Max, kill.Dying, kill.Others)
	}
	out.LoadAfter = loadAverage()
	out.Affected, out.Led, out.Connected, out.Others = gapsOf(slices.Concat(all.led, all.connected)), gapsOf(all.led), gapsOf(all.connected), gapsOf(all.others)
	out.Dying = gapsOf(all.dying)
	return out, nil
}

// watchers makes one client per shard; neighbours begin at different nodes.
func watchers(c *devcluster.Cluster, shards uint32) []*watcher { return watchersOf(addrs(c), shards) }

func watchersOf(list []string, shards uint32) []*watcher {
	var out []*watcher
	for s := range shards {
		device := ""
		for n := 0; device == "" || telemetry.ShardOf(device, shards) != telemetry.ShardID(s); n++ {
			device = fmt.Sprintf("f%d-%d", s, n)
		}
		at := (int(s) + int(s)/len(list)) % len(list) // not in step with the preferred leaders
		w := &watcher{shard: telemetry.ShardID(s), home: list[at], last: time.Now()}
		w.Survivor = &Survivor{Addrs: slices.Concat(list[at:], list[:at]), Device: device, Window: 2, Pause: failoverPause, OnAck: w.acked}
		out = append(out, w)
	}
	return out
}

// samples are gaps by what the client had to do with the dead node.
type samples struct{ led, connected, others, dying []time.Duration }

func (s *samples) add(t *samples) {
	s.led = append(s.led, t.led...)
	s.connected = append(s.connected, t.connected...)
	s.others = append(s.others, t.others...)
	s.dying = append(s.dying, t.dying...)
}

func killOne(ctx context.Context, c *devcluster.Cluster, clients []*watcher, victim *devcluster.Node) (*FailoverKill, *samples, error) {
	leaders, err := settled(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	through := map[*watcher]bool{}
	for _, w := range clients {
		through[w] = w.Address() == victim.MQTT
		w.reset()
	}
	kill := &FailoverKill{Node: victim.ID, At: time.Now()}
	if err := victim.Kill(); err != nil {
		return nil, nil, err
	}
	died := time.Since(kill.At)
	kill.Dying = ms(died)
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case <-time.After(failoverWatch):
	}
	s := &samples{dying: []time.Duration{died}}
	var affected []time.Duration
	for _, w := range clients {
		gap, led := w.gap(), leaders[w.shard] == telemetry.NodeID(victim.ID)
		if led {
			kill.Led++
		}
		switch {
		case through[w]:
			s.connected = append(s.connected, gap)
		case led:
			s.led = append(s.led, gap)
		default:
			s.others = append(s.others, gap)
			continue
		}
		if affected = append(affected, gap); ms(gap) > kill.Max {
			kill.Max, kill.Slow, kill.SlowTo = ms(gap), w.Device, uint32(w.shard)
		}
	}
	kill.P50, kill.Others = gapsOf(affected).P50, gapsOf(slices.Clone(s.others)).P50
	if err := victim.Start(); err != nil {
		return nil, nil, err
	}
	if err := victim.WaitReady(ctx); err != nil {
		return nil, nil, err
	}
	return kill, s, goHome(ctx, clients)
}

// goHome brings every client back to the node that it began at, so that each
// kill meets as many of them. A cut sends a client to its next address.
func goHome(ctx context.Context, clients []*watcher) error {
	for end := time.Now().Add(settleMax); time.Now().Before(end); {
		away := 0
		for _, w := range clients {
			if at := w.Address(); at != w.home {
				away++
				if at != "" {
					w.Switch()
				}
			}
		}
		if away == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond): // several times what a client needs to connect
		}
	}
	return fmt.Errorf("clients are not back at their nodes within %v", settleMax)
}

// settled waits until every shard has a leader, all nodes are alive and no
// leadership has moved for a while, and returns the leaders.
func settled(ctx context.Context, c *devcluster.Cluster) (map[telemetry.ShardID]telemetry.NodeID, error) {
	var last map[telemetry.ShardID]telemetry.NodeID
	since := time.Now()
	for end := time.Now().Add(settleMax); time.Now().Before(end); {
		asked := time.Now()
		now, err := leadersOf(ctx, c)
		switch {
		case err != nil, time.Since(asked) > settledFor/2: // an answer that took long tells of a while ago
			last, since = nil, time.Now()
		case !mapsEqual(now, last):
			last, since = now, time.Now()
		case time.Since(since) >= settledFor:
			return now, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("leaderships do not settle within %v", settleMax)
}

func mapsEqual(a, b map[telemetry.ShardID]telemetry.NodeID) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}

func leadersOf(ctx context.Context, c *devcluster.Cluster) (map[telemetry.ShardID]telemetry.NodeID, error) {
	cl, err := c.Nodes()[0].Client()
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	st, err := cl.Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range st.Nodes {
		if n.State != api.NodeAlive {
			return nil, fmt.Errorf("node %s is %s", n.ID, n.State)
		}
	}
	out := map[telemetry.ShardID]telemetry.NodeID{}
	for _, s := range st.Shards {
		if s.Leader == "" {
			return nil, fmt.Errorf("shard %d has no leader", s.ID)
		}
		out[s.ID] = s.Leader
	}
	return out, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func gapsOf(ds []time.Duration) Gaps {
	if len(ds) == 0 {
		return Gaps{}
	}
	slices.Sort(ds)
	at := func(q float64) float64 { return ms(ds[min(len(ds)-1, int(q*float64(len(ds))))]) }
	return Gaps{Count: len(ds), P50: at(0.50), P90: at(0.90), P99: at(0.99), Max: ms(ds[len(ds)-1])}
}

// loadAverage is the machine's, over a minute; 0 where the kernel tells none.
func loadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	var v float64
	if _, err := fmt.Sscan(string(b), &v); err != nil {
		return 0
	}
	return v
}

// Table writes the result for people.
func (f *Failover) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d kills with SIGKILL of a leader's node, %d clients; load average %.1f before, %.1f after\n", f.Kills, f.Clients, f.LoadBefore, f.LoadAfter)
	fmt.Fprintf(&b, "longest time without an acknowledgement, ms\n%-46s %7s %8s %8s %8s %8s\n", "clients", "values", "p50", "p90", "p99", "max")
	for _, r := range []struct {
		name string
		g    Gaps
	}{{"affected", f.Affected}, {"  of a shard it led, through another node", f.Led}, {"  connected to it", f.Connected}, {"others (control)", f.Others}, {"from the signal to the end of the process", f.Dying}} {
		fmt.Fprintf(&b, "%-46s %7d %8.0f %8.0f %8.0f %8.0f\n", r.name, r.g.Count, r.g.P50, r.g.P90, r.g.P99, r.g.Max)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
