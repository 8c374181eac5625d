package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/sluice-iot/sluice/bench"
)

type benchCmd struct {
	Ingest      benchIngestCmd      `cmd:"" help:"Acknowledged messages per second, latency, CPU and log bytes per message of a fresh three-node cluster."`
	Failover    benchFailoverCmd    `cmd:"" help:"Time without an acknowledgement when a leader's node is killed, again and again."`
	Outage      benchOutageCmd      `cmd:"" help:"What a database that is away for a while costs: nothing lost, backlog, memory, drain."`
	Lag         benchLagCmd         `cmd:"" help:"What a cluster sustains, and at half of that the time from an acknowledgement to the row in the database."`
	Late        benchLateCmd        `cmd:"" help:"The same time of live rows without and beside a day of late rows, in turn."`
	Connections benchConnectionsCmd `cmd:"" help:"Clients per second that a node lets in, and memory and CPU of idle ones."`
	Storm       benchStormCmd       `cmd:"" help:"A node full of clients is killed: time until all are back elsewhere, and the latency of everybody else."`
	Probe       benchProbeCmd       `cmd:"" help:"Publish at a steady rate to a running cluster and print the latency of every second as JSON."`
	Gateway     benchGatewayCmd     `cmd:"" help:"Gap and time to the full rate of gateways when a leader of their shards is killed."`
	Overload    benchOverloadCmd    `cmd:"" help:"Load a running cluster with telemetry as fast as it acknowledges, and print what became of it as JSON."`
	Priority    benchPriorityCmd    `cmd:"" help:"Latency of commands to devices, beside bulk messages, under more telemetry than the cluster takes."`
	Hold        benchHoldCmd        `cmd:"" help:"Hold idle clients with durable sessions until standard input ends."`
	Elections   benchElectionsCmd   `cmd:"" help:"Elections while every core is kept busy: there should be none."`
	Anomalies   benchAnomaliesCmd   `cmd:"" help:"Recall, delay and false alarms of the detector on generated telemetry with faults."`
	NAB         benchNABCmd         `cmd:"" name:"nab" help:"Score the detector on the Numenta Anomaly Benchmark, beside the published table."`
}

// measured is what a benchmark has found.
type measured interface {
	Table(w io.Writer) error
}

// report runs a benchmark that starts its nodes from this executable, and prints
// what it has found.
func report[T measured](asJSON bool, run func(binary string) (T, error)) error {
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this executable: %w", err)
	}
	found, err := run(binary)
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(found)
	}
	return found.Table(os.Stdout)
}

type benchConnectionsCmd struct {
	Clients  int           `default:"18000" help:"Clients, all of one node; each takes a file of this process and one of the node's."`
	Shards   uint32        `default:"24" help:"Shards."`
	Watch    time.Duration `default:"10s" help:"How long idle nodes are watched."`
	All      bool          `help:"Afterwards, as many clients on each of the other nodes."`
	Profiles string        `default:"" help:"Directory for a CPU profile of the connected node for each step."`
	Data     string        `default:"" help:"Directory for the cluster; empty: a temporary one."`
	JSON     bool          `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *benchConnectionsCmd) Run(ctx context.Context) error {
	if c.Clients < 1 || c.Clients > 50_000 || c.Shards < 1 || c.Shards > 256 || c.Watch < time.Second {
		return fmt.Errorf("%d clients, %d shards, watched for %v: use 1 to 50000, 1 to 256, and at least 1s", c.Clients, c.Shards, c.Watch)
	}
	return report(c.JSON, func(binary string) (*bench.Connections, error) {
		return bench.RunConnections(ctx, bench.ConnectionsConfig{Binary: binary, Dir: c.Data, Clients: c.Clients, Shards: c.Shards, Watch: c.Watch, All: c.All, Profiles: c.Profiles, Progress: os.Stderr})
	})
}

type benchStormCmd struct {
	Clients int     `default:"15000" help:"Clients of the node that is killed."`
	Rate    float64 `default:"2000" help:"Telemetry messages per second of others meanwhile."`
	Shards  uint32  `default:"24" help:"Shards."`
	Data    string  `default:"" help:"Directory for the cluster; empty: a temporary one."`
	JSON    bool    `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *benchStormCmd) Run(ctx context.Context) error {
	if c.Clients < 1 || c.Clients > 50_000 || c.Shards < 1 || c.Shards > 256 || c.Rate < 1 || c.Rate > 1e6 {
		return fmt.Errorf("%d clients, %d shards, %v messages per second: use 1 to 50000, 1 to 256, and 1 to 1000000", c.Clients, c.Shards, c.Rate)
	}
	return report(c.JSON, func(binary string) (*bench.Storm, error) {
		return bench.RunStorm(ctx, bench.StormConfig{Binary: binary, Dir: c.Data, Clients: c.Clients, Rate: c.Rate, Shards: c.Shards, Progress: os.Stderr})
	})
}

type benchProbeCmd struct {
	Addr     []string      `required:"" help:"MQTT addresses."`
	Rate     float64       `default:"2000" help:"Publishes per second."`
	Duration time.Duration `default:"10s" help:"How long."`
}

// Run implements kong.
func (c *benchProbeCmd) Run(ctx context.Context) error {
	if c.Rate < 1 || c.Rate > 1e6 || c.Duration < time.Second {
		return fmt.Errorf("%v publishes per second for %v: use 1 to 1000000, and at least 1s", c.Rate, c.Duration)
	}
	return bench.RunProbe(ctx, bench.Probe{Addrs: c.Addr, Rate: c.Rate, Duration: c.Duration}, os.Stdout)
}

type benchGatewayCmd struct {
	Kills   int     `default:"6" help:"Nodes to kill, one after the other."`
	Devices int     `default:"50" help:"Devices behind each of the two gateways; each publish has a message of every one."`
	Rate    float64 `default:"100" help:"Publishes per second of each gateway."`
	Window  int     `default:"64" help:"Publishes in flight of each gateway."`
	Shards  uint32  `default:"24" help:"Shards."`
	Data    string  `default:"" help:"Directory for the cluster; empty: a temporary one."`
	JSON    bool    `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *benchGatewayCmd) Run(ctx context.Context) error {
	if c.Kills < 1 || c.Kills > 10_000 || c.Devices < 1 || c.Devices > 1000 || c.Rate < 20 || c.Rate > 10_000 || c.Window < 1 || c.Window > 65_535 || c.Shards < 1 || c.Shards > 256 {
		return fmt.Errorf("%d kills, %d devices, %v publishes per second, a window of %d, %d shards: use 1 to 10000, 1 to 1000, 20 to 10000, 1 to 65535, and 1 to 256", c.Kills, c.Devices, c.Rate, c.Window, c.Shards)
	}
	return report(c.JSON, func(binary string) (*bench.Gateways, error) {
		return bench.RunGateways(ctx, bench.GatewayConfig{Binary: binary, Dir: c.Data, Kills: c.Kills, Devices: c.Devices, Rate: c.Rate, Window: c.Window, Shards: c.Shards, Progress: os.Stderr})
	})
}

type overloadFlags struct {
	Connections int           `default:"60" help:"Connections, over all nodes, that publish telemetry as fast as it is acknowledged."`
	Window      int           `default:"200" help:"Publishes in flight of each."`
	Subscribers int           `default:"4" help:"Subscribers to all telemetry, at the last node."`
	Slow        int           `default:"200000" help:"Bytes per second that each of them reads; 0: as fast as it can."`
	Duration    time.Duration `default:"20s" help:"How long."`
}

func (c *overloadFlags) check() (bench.Overload, error) {
	if c.Connections < 1 || c.Connections > 10_000 || c.Window < 1 || c.Window > 1024 || c.Subscribers < 0 || c.Subscribers > 1000 || c.Slow < 0 || c.Duration < time.Second || c.Duration > time.Hour {
		return bench.Overload{}, fmt.Errorf("%d connections, a window of %d, %d subscribers that read %d bytes per second, for %v: use 1 to 10000, 1 to 1024, 0 to 1000, 0 or more, and 1s to 1h",
			c.Connections, c.Window, c.Subscribers, c.Slow, c.Duration)
	}
	return bench.Overload{Connections: c.Connections, Window: c.Window, Subscribers: c.Subscribers, SlowBytes: c.Slow, Duration: c.Duration}, nil
}

type benchOverloadCmd struct {
	overloadFlags
	Addr []string `required:"" help:"MQTT addresses."`
}

// Run implements kong.
func (c *benchOverloadCmd) Run(ctx context.Context) error {
	o, err := c.check()
	if err != nil {
		return err
	}
	o.Addrs = c.Addr
	return bench.RunOverload(ctx, o, os.Stdout)
}

type benchPriorityCmd struct {
	overloadFlags
	Rate   float64 `default:"50" help:"Commands per second, and bulk messages per second."`
	Shards uint32  `default:"24" help:"Shards."`
	Data   string  `default:"" help:"Directory for the cluster; empty: a temporary one."`
	JSON   bool    `name:"json" help:"Print JSON."`

	Targets []string `default:"" placeholder:"0s,100ms" help:"Values of mqtt.commit_target that are compared in turn, each with a fresh cluster; 0s is no bound."`
	Rounds  int      `default:"1" help:"How often each of them."`
}

// Run implements kong.
func (c *benchPriorityCmd) Run(ctx context.Context) error {
	over, err := c.check()
	if err != nil {
		return err
	}
	if c.Rate < 1 || c.Rate > 1000 || c.Shards < 1 || c.Shards > 256 {
		return fmt.Errorf("%v commands per second, %d shards: use 1 to 1000, and 1 to 256", c.Rate, c.Shards)
	}
	cfg := bench.PriorityConfig{Dir: c.Data, Shards: c.Shards, Overload: over, Rate: c.Rate, Duration: c.Duration, Progress: os.Stderr}
	if len(c.Targets) > 0 || c.Rounds != 1 {
		return c.compare(ctx, cfg)
	}
	return report(c.JSON, func(binary string) (*bench.Priority, error) {
		cfg.Binary = binary
		return bench.RunPriority(ctx, cfg)
	})
}

func (c *benchPriorityCmd) compare(ctx context.Context, cfg bench.PriorityConfig) error {
	if c.Rounds < 1 || c.Data != "" {
		return fmt.Errorf("%d rounds in %q: use at least 1, and no --data with --targets or --rounds, which make a cluster each", c.Rounds, c.Data)
	}
	targets := c.Targets
	if len(targets) == 0 {
		targets = []string{""}
	}
	return report(c.JSON, func(binary string) (bench.Priorities, error) {
		cfg.Binary = binary
		return bench.ComparePriority(ctx, cfg, targets, c.Rounds)
	})
}

type benchHoldCmd struct {
	Addr    string `required:"" help:"MQTT address."`
	Clients int    `default:"1000" help:"Clients."`
	Prefix  string `default:"meter" help:"Of client ids."`
	Source  int    `default:"2" help:"Clients come from 127.0.0.SOURCE and the next addresses."`
}

// Run implements kong.
func (c *benchHoldCmd) Run(ctx context.Context) error {
	if c.Clients < 1 || c.Clients > 50_000 || c.Source < 2 || c.Source > 245 {
		return fmt.Errorf("%d clients from 127.0.0.%d: use 1 to 50000, and 2 to 245", c.Clients, c.Source)
	}
	return bench.RunHolder(ctx, bench.Holder{Addr: c.Addr, Clients: c.Clients, Prefix: c.Prefix, Source: c.Source}, os.Stdin, os.Stdout)
}

type benchIngestCmd struct {
	Duration    time.Duration `default:"10s" help:"Of each load."`
	Nodes       int           `default:"3" help:"Node processes."`
	Shards      uint32        `default:"24" help:"Shards."`
	Data        string        `default:"" help:"Directory for the cluster; empty: a temporary one."`
	JSON        bool          `name:"json" help:"Print JSON."`
	Snapshots   int           `default:"0" help:"Instead: one load until every shard has taken so many snapshots after its first; prints the bytes written per byte of block."`
	Devices     int           `default:"50" help:"With --snapshots: devices, which make the state."`
	Readings    int           `default:"1" help:"With --snapshots: messages per publish."`
	Rate        float64       `default:"0" help:"With --snapshots: publishes per second; 0: as many as are acknowledged."`
	SnapshotKiB int           `name:"snapshot-kib" default:"0" help:"With --snapshots: wal.snapshot_kib of the nodes; 0: the default."`
	Database    string        `default:"" placeholder:"URL" help:"With --snapshots: postgres:// URL of an empty database instead of the embedded store."`
	Longest     time.Duration `default:"1h" help:"With --snapshots: give up after this."`
}

// Run implements kong.
func (c *benchIngestCmd) Run(ctx context.Context) error {
	if c.Snapshots != 0 {
		return c.steady(ctx)
	}
	if c.Duration < time.Second || c.Duration > 10*time.Minute {
		return fmt.Errorf("duration is %v: use 1s to 10m", c.Duration)
	}
	return report(c.JSON, func(binary string) (bench.Measures, error) {
		return bench.Ingest(ctx, bench.IngestConfig{Binary: binary, Dir: c.Data, Duration: c.Duration, Nodes: c.Nodes, Shards: c.Shards, Progress: os.Stderr})
	})
}

func (c *benchIngestCmd) steady(ctx context.Context) error {
	if c.Snapshots < 1 || c.Snapshots > 1000 || c.Devices < 1 || c.Devices > 10_000_000 || c.Readings < 1 || c.Readings > 1000 || c.Rate < 0 || c.SnapshotKiB < 0 || c.Longest < time.Minute {
		return fmt.Errorf("%d snapshots, %d devices, %d messages per publish, %v publishes per second, %d KiB of log per snapshot, %v at most: use 1 to 1000, 1 to 10000000, 1 to 1000, no negative number, and at least 1m",
			c.Snapshots, c.Devices, c.Readings, c.Rate, c.SnapshotKiB, c.Longest)
	}
	return report(c.JSON, func(binary string) (*bench.Steady, error) {
		return bench.RunSteady(ctx, bench.SteadyConfig{
			Binary: binary, Dir: c.Data, Nodes: c.Nodes, Shards: c.Shards, Snapshots: c.Snapshots, Devices: c.Devices, Readings: c.Readings, Rate: c.Rate,
			SnapshotKiB: c.SnapshotKiB, Database: c.Database, Longest: c.Longest, Progress: os.Stderr,
		})
	})
}

type benchFailoverCmd struct {
	Kills  int    `default:"50" help:"Nodes to kill, one after the other."`
	Shards uint32 `default:"24" help:"Shards; one client publishes to each."`
	Data   string `default:"" help:"Directory for the cluster; empty: a temporary one."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *benchFailoverCmd) Run(ctx context.Context) error {
	if c.Kills < 1 || c.Kills > 10_000 || c.Shards < 1 || c.Shards > 256 {
		return fmt.Errorf("%d kills, %d shards: use 1 to 10000 and 1 to 256", c.Kills, c.Shards)
	}
	return report(c.JSON, func(binary string) (*bench.Failover, error) {
		return bench.RunFailover(ctx, bench.FailoverConfig{Binary: binary, Dir: c.Data, Kills: c.Kills, Shards: c.Shards, Progress: os.Stderr})
	})
}

type benchElectionsCmd struct {
	Duration time.Duration `default:"1m" help:"How long the cores are kept busy."`
	Spinners int           `default:"0" help:"Goroutines that never wait; 0: two per core."`
	Shards   uint32        `default:"24" help:"Shards; one client publishes to each."`
	Data     string        `default:"" help:"Directory for the cluster; empty: a temporary one."`
	JSON     bool          `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *benchElectionsCmd) Run(ctx context.Context) error {
	if c.Duration < time.Second || c.Spinners < 0 || c.Shards < 1 || c.Shards > 256 {
		return fmt.Errorf("duration %v, %d spinners, %d shards: use at least 1s, 0 or more, 1 to 256", c.Duration, c.Spinners, c.Shards)
	}
	return report(c.JSON, func(binary string) (*bench.Elections, error) {
		return bench.RunElections(ctx, bench.ElectionsConfig{Binary: binary, Dir: c.Data, Duration: c.Duration, Spinners: c.Spinners, Shards: c.Shards, Progress: os.Stderr})
	})
}
