package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/sluice-iot/sluice/devcluster"
)

// ConnectionsConfig of the scenario of many idle clients.
type ConnectionsConfig struct {
	Binary   string // the sluice executable
	Dir      string // for the cluster's data; "" is a temporary directory
	Clients  int    // of one node
	Shards   uint32
	Watch    time.Duration // how long idle nodes are watched
	All      bool          // afterwards, as many on each of the other nodes
	Profiles string        // directory for a CPU profile of the connected node per step, "" for none
	Progress io.Writer     // what is being done, may be nil
}

// Connections is what clients cost that are connected to one node of three and say
// nothing.
type Connections struct {
	Clients int           `json:"clients"`
	Shards  uint32        `json:"shards"`
	Steps   []ConnectStep `json:"steps"`
	Idle    []IdleNode    `json:"idle"`
	// Full is the same with as many clients on every node; per connection of the node.
	Full []IdleNode `json:"full,omitempty"`
	// Local is what the connected node holds more than its peers, which hold the
	// replicated sessions as well; Replicated is what a peer holds.
	Local      float64 `json:"local_bytes_per_connection"`
	Replicated float64 `json:"replicated_bytes_per_session_and_node"`
}

// ConnectStep is one thing that all clients did.
type ConnectStep struct {
	Name     string  `json:"name"`
	Rate     float64 `json:"per_second"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	Max      float64 `json:"max_ms"`
	CPU      float64 `json:"cpu_us"`           // of the node they connect to
	System   float64 `json:"system_us"`        // the kernel's part of it
	Client   float64 `json:"client_cpu_us"`    // of this process, which is all clients
	PerCore  float64 `json:"per_core_second"`  // what a core that the node has for itself would take
	CPUAll   float64 `json:"cpu_us_all_nodes"` // all three
	LogBytes float64 `json:"log_bytes_per_replica"`
}

// IdleNode is what a node has more while the clients are there than before.
type IdleNode struct {
	Node       string  `json:"node"`
	Connected  bool    `json:"connected"`
	Bytes      float64 `json:"bytes_per_connection"` // heap, stacks and the runtime's own
	RSS        float64 `json:"rss_bytes_per_connection"`
	Goroutines float64 `json:"goroutines_per_connection"`
	CPUBefore  float64 `json:"cpu_ms_per_second_before"`
	CPUIdle    float64 `json:"cpu_ms_per_second_idle"`
}

// unlimited takes away the limit of CONNECTs per second: it is to be seen what a node can do.
const unlimited = "SLUICE_MQTT_LIMITS_CONNECTS=1000000"

// RunConnections connects clients to one node of a fresh cluster: with clean sessions,
// then with sessions that stay, wills, keep-alives and a subscription, and looks at
// what they cost while they are idle.
func RunConnections(ctx context.Context, cfg ConnectionsConfig) (out *Connections, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	c, stop, err := scratchCluster(ctx, cfg.Binary, cfg.Dir, cfg.Shards, unlimited)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	r := connectionsRun{cfg: &cfg, c: c, out: &Connections{Clients: cfg.Clients, Shards: cfg.Shards}}
	if err := r.warm(ctx); err != nil {
		return nil, err
	}
	if err := r.durable(ctx); err != nil {
		return nil, err
	}
	return r.out, r.clean(ctx)
}

type connectionsRun struct {
	cfg *ConnectionsConfig
	c   *devcluster.Cluster
	out *Connections
}

// warm makes the nodes take what they take once, however many clients follow.
func (r *connectionsRun) warm(ctx context.Context) error {
	all := newCrowd("warm", min(warmClients, r.cfg.Clients), true, source)
	defer all.leave()
	_, _, err := all.timed(ctx, r.connect(ctx))
	return err
}

const warmClients = 500

// source is where the addresses of clients begin, see newCrowd: not where those of the
// run before began, as a rule.
var source = 2 + rand.IntN(150)

func (r *connectionsRun) clean(ctx context.Context) error {
	if err := r.gone(ctx); err != nil {
		return err
	}
	fmt.Fprintf(r.cfg.Progress, "%d clients with clean sessions ...\n", r.cfg.Clients)
	all := newCrowd("clean", r.cfg.Clients, false, source+20)
	defer all.leave()
	return r.step(ctx, all, "CONNECT, clean session", r.connect(ctx))
}

func (r *connectionsRun) durable(ctx context.Context) error {
	if err := r.gone(ctx); err != nil {
		return err
	}
	fmt.Fprintf(r.cfg.Progress, "idle without clients, %v ...\n", r.cfg.Watch)
	before, err := r.look(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(r.cfg.Progress, "%d clients with durable sessions ...\n", r.cfg.Clients)
	all := newCrowd("meter", r.cfg.Clients, true, source+10)
	defer all.leave()
	if err := r.step(ctx, all, "CONNECT, durable, will", r.connect(ctx)); err != nil {
		return err
	}
	if err := r.step(ctx, all, "SUBSCRIBE to commands", taking((*member).subscribe)); err != nil {
		return err
	}
	fmt.Fprintf(r.cfg.Progress, "idle with clients, %v ...\n", r.cfg.Watch)
	after, err := r.look(ctx)
	if err != nil {
		return err
	}
	r.out.Idle = r.compare(before, after, 1)
	for _, p := range r.out.Idle[1:] {
		r.out.Replicated += p.Bytes / float64(len(r.out.Idle)-1)
	}
	r.out.Local = r.out.Idle[0].Bytes - r.out.Replicated
	if r.cfg.All {
		if err := r.full(ctx, before); err != nil {
			return err
		}
	}
	// Wildcards of different texts: nobody knows them yet. Each is asked for on every shard.
	some := &crowd{members: all.members[:min(wildcardClients, len(all.members))]}
	return r.step(ctx, some, "SUBSCRIBE to a wildcard", taking(func(m *member) error { return m.subscribeTo("sites/" + m.id + "/#") }))
}

// wildcardClients are fewer than the others: a wildcard costs more.
const wildcardClients = 2000

// taking measures what a client does.
func taking(f func(*member) error) func(*member) (time.Duration, error) {
	return func(m *member) (time.Duration, error) {
		began := time.Now()
		err := f(m)
		return time.Since(began), err
	}
}

func (r *connectionsRun) connect(ctx context.Context) func(*member) (time.Duration, error) {
	addr := r.c.Nodes()[0].MQTT
	return func(m *member) (time.Duration, error) { return m.connect(ctx, addr) }
}

// step lets every client do something, and notes what that took.
func (r *connectionsRun) step(ctx context.Context, all *crowd, name string, f func(*member) (time.Duration, error)) error {
	before, err := r.spent(ctx)
	if err != nil {
		return err
	}
	profiled := r.profile(ctx, name)
	hist, took, err := all.timed(ctx, f)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	after, err := r.spent(ctx)
	if err != nil {
		return err
	}
	n := float64(len(all.members))
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / n }
	node := each(after.node - before.node)
	r.out.Steps = append(r.out.Steps, ConnectStep{Name: name, Rate: n / took.Seconds(), P50: quantile(hist, 50), P99: quantile(hist, 99), Max: quantile(hist, 100),
		CPU: node, System: each(after.system - before.system), Client: each(after.client - before.client), PerCore: 1e6 / node,
		CPUAll: each(after.cpu - before.cpu), LogBytes: (after.logBytes - before.logBytes) / n / failoverNodes})
	return <-profiled
}

// spending is what everybody has spent so far.
type spending struct {
	observation                // all nodes
	node, system time.Duration // the node that is connected to, and the kernel for it
	client       time.Duration // this process
}

func (r *connectionsRun) spent(ctx context.Context) (s spending, err error) {
	if s.observation, err = observe(ctx, r.c); err != nil {
		return s, err
	}
	user, system, err := cpuParts(r.c.Nodes()[0].PID)
	if err != nil {
		return s, err
	}
	s.node, s.system = user+system, system
	s.client, err = cpuOf(os.Getpid())
	return s, err
}

// profileSpan is longer than a step on a machine with nothing else to do; what a node does after a
// step is next to nothing.
const profileSpan = 5 * time.Second

// profile writes where the connected node's CPU time goes, if that is wanted.
func (r *connectionsRun) profile(ctx context.Context, step string) <-chan error {
	done := make(chan error, 1)
	if r.cfg.Profiles == "" {
		done <- nil
		return done
	}
	go func() {
		prof, err := fetchProfile(ctx, r.c.Nodes()[0].Debug, profileSpan)
		if err != nil {
			done <- fmt.Errorf("profile %s: %w", step, err)
			return
		}
		name := strings.Map(func(c rune) rune {
			if c >= 'a' && c <= 'z' {
				return c
			}
			return '-'
		}, strings.ToLower(step))
		f, err := os.Create(filepath.Join(r.cfg.Profiles, name+".pprof"))
		if err != nil {
			done <- err
			return
		}
		done <- errors.Join(prof.Write(f), f.Close())
	}()
	return done
}

// quantile of a histogram of microseconds, in milliseconds.
func quantile(h *hdrhistogram.Histogram, q float64) float64 {
	return float64(h.ValueAtQuantile(q)) / 1000
}

// gone waits until the nodes have forgotten the clients of before.
func (r *connectionsRun) gone(ctx context.Context) error {
	for {
		left := 0.0
		for _, n := range r.c.Nodes() {
			v, err := scrape(ctx, n, "sluice_broker_connections")
			if err != nil {
				return err
			}
			left += v[0]
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %.0f clients to be forgotten: %w", left, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// condition is how a node does at a moment.
type condition struct {
	bytes, rss, goroutines float64
	cpu                    float64 // ms per second
}

// idleAfter is when what the clients caused is over.
const idleAfter = 5 * time.Second

// look waits until the clients are idle, watches the nodes' CPU time, and has each
// collect its garbage.
func (r *connectionsRun) look(ctx context.Context) ([]condition, error) {
	nodes := r.c.Nodes()
	out := make([]condition, len(nodes))
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(idleAfter):
	}
	began := time.Now()
	for i, n := range nodes {
		cpu, err := cpuOf(n.PID)
		if err != nil {
			return nil, err
		}
		out[i].cpu = -float64(cpu.Microseconds()) / 1000
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(r.cfg.Watch):
	}
	took := time.Since(began).Seconds()
	for i, n := range nodes {
		cpu, err := cpuOf(n.PID)
		if err != nil {
			return nil, err
		}
		out[i].cpu = (out[i].cpu + float64(cpu.Microseconds())/1000) / took
	}
	for i, n := range nodes {
		if err := collect(ctx, n.Debug); err != nil {
			return nil, err
		}
		v, err := scrape(ctx, n, "go_memstats_heap_alloc_bytes", "go_memstats_stack_inuse_bytes", "go_memstats_mspan_inuse_bytes", "go_memstats_mcache_inuse_bytes",
			"go_memstats_other_sys_bytes", "process_resident_memory_bytes", "go_goroutines")
		if err != nil {
			return nil, err
		}
		out[i].bytes, out[i].rss, out[i].goroutines = v[0]+v[1]+v[2]+v[3]+v[4], v[5], v[6]
	}
	return out, nil
}

// collect runs the garbage collector of a node, twice: what the first finds unused
// is free after the second.
func collect(ctx context.Context, addr string) error {
	for range 2 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/debug/pprof/heap?gc=1", nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return fmt.Errorf("collect garbage: %w", err)
		}
		_, err = io.Copy(io.Discard, res.Body)
		if err = errors.Join(err, res.Body.Close()); err != nil {
			return fmt.Errorf("collect garbage: %w", err)
		}
	}
	return nil
}

// compare tells what the nodes have more than before; the first ones are connected to.
func (r *connectionsRun) compare(before, after []condition, connected int) (out []IdleNode) {
	n := float64(r.cfg.Clients)
	for i, node := range r.c.Nodes() {
		b, a := before[i], after[i]
		out = append(out, IdleNode{Node: node.ID, Connected: i < connected, Bytes: (a.bytes - b.bytes) / n, RSS: (a.rss - b.rss) / n,
			Goroutines: (a.goroutines - b.goroutines) / n, CPUBefore: b.cpu, CPUIdle: a.cpu})
	}
	return out
}

// full fills the other nodes as well, from processes of their own, and looks again.
func (r *connectionsRun) full(ctx context.Context, before []condition) (err error) {
	for i, n := range r.c.Nodes()[1:] {
		fmt.Fprintf(r.cfg.Progress, "%d clients of %s ...\n", r.cfg.Clients, n.ID)
		h, err := startHolder(ctx, r.cfg.Binary, Holder{Addr: n.MQTT, Clients: r.cfg.Clients, Prefix: "meter-" + n.ID, Source: source + 30 + 10*i})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, h.stop()) }()
	}
	after, err := r.look(ctx)
	if err != nil {
		return err
	}
	r.out.Full = r.compare(before, after, len(after))
	return nil
}

// Table writes the result for people.
func (o *Connections) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d clients of one node of three, %d shards\n\n", o.Clients, o.Shards)
	fmt.Fprintf(&b, "%-26s %8s %8s %8s %8s | %9s %8s %8s %8s | %13s %13s\n", "step", "per s", "p50 ms", "p99 ms", "max ms", "CPU: node", "kernel", "clients", "3 nodes", "per node core", "log B/replica")
	for _, s := range o.Steps {
		fmt.Fprintf(&b, "%-26s %8.0f %8.1f %8.1f %8.1f | %6.0f us %5.0f us %5.0f us %5.0f us | %11.0f/s %13.0f\n",
			s.Name, s.Rate, s.P50, s.P99, s.Max, s.CPU, s.System, s.Client, s.CPUAll, s.PerCore, s.LogBytes)
	}
	fmt.Fprintf(&b, "\nper node core: what the CPU time per step of the connected node leaves room for on one core, whatever else the machine does;\n5,000/s with clean sessions are 200 us, 2,000/s with durable ones 500 us\n")
	fmt.Fprintf(&b, "\n%-18s %12s %12s %14s %16s %16s\n", "idle, per client", "bytes", "RSS bytes", "goroutines", "CPU ms/s before", "CPU ms/s idle")
	rows := func(list []IdleNode) {
		for _, n := range list {
			name := n.Node + ", a peer"
			if n.Connected {
				name = n.Node + ", connected"
			}
			fmt.Fprintf(&b, "%-18s %12.0f %12.0f %14.2f %16.1f %16.1f\n", name, n.Bytes, n.RSS, n.Goroutines, n.CPUBefore, n.CPUIdle)
		}
	}
	rows(o.Idle)
	fmt.Fprintf(&b, "\nof the connected node alone %.0f B, replicated on each node %.0f B\n", o.Local, o.Replicated)
	if len(o.Full) > 0 {
		fmt.Fprintf(&b, "\nall nodes full, %d clients of the cluster, per client of the node:\n", len(o.Full)*o.Clients)
		rows(o.Full)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
