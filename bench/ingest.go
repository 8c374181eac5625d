package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/devcluster"
)

// IngestConfig of the ingest scenario.
type IngestConfig struct {
	Binary   string        // the sluice executable
	Dir      string        // for the cluster's data; "" is a temporary directory
	Duration time.Duration // of each measured load
	Nodes    int
	Shards   uint32
	Progress io.Writer // what is being done, may be nil
}

// Measures are those of all loads.
type Measures []Measure

// Measure is one load and what it cost.
type Measure struct {
	Name            string             `json:"name"`
	Connections     int                `json:"connections"`
	Window          int                `json:"window"`
	Offered         float64            `json:"offered_per_second,omitempty"`
	Rate            float64            `json:"acknowledged_per_second"`
	P50             float64            `json:"p50_ms"`
	P99             float64            `json:"p99_ms"`
	CPU             float64            `json:"cpu_us_per_message"` // all nodes together
	LogBytes        float64            `json:"log_bytes_per_message_per_replica"`
	SnapshotBytes   float64            `json:"snapshot_bytes_per_message_per_replica"`
	BlockBytes      float64            `json:"block_bytes_per_message"`
	BlockMessages   float64            `json:"messages_per_block"`
	Stages          map[string]float64 `json:"cpu_share_by_stage,omitempty"`
	ReadingsPerSec  float64            `json:"readings_per_second"`
	ReadingsPerPubl int                `json:"messages_per_publish"`
}

// load of the scenario; every message has four readings.
type ingestLoad struct {
	name                                   string
	connections, window, readings, devices int
	rate                                   float64
	profile                                bool
}

var ingestLoads = []ingestLoad{
	{name: "latency at 2,000/s", connections: 50, window: 64, rate: 2000},
	{name: "50 x 16", connections: 50, window: 16, profile: true},
	{name: "4,000 in flight", connections: 50, window: 80, profile: true},
	{name: "gateways, arrays of 50", connections: 24, window: 16, readings: 50},
}

// Ingest runs the scenario: a fresh three-node cluster with the embedded store,
// loads one after the other, each on devices of its own.
func Ingest(ctx context.Context, cfg IngestConfig) (out Measures, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	opts := devcluster.Options{Binary: cfg.Binary, Nodes: cfg.Nodes, Shards: cfg.Shards, Debug: true}
	fmt.Fprintf(cfg.Progress, "starting %d nodes, %d shards\n", cfg.Nodes, cfg.Shards)
	c, stop, err := freshCluster(ctx, cfg.Dir, opts)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for i, l := range ingestLoads {
		fmt.Fprintf(cfg.Progress, "%s ...\n", l.name)
		m, err := measure(ctx, c, l, fmt.Sprintf("b%d", i), cfg.Duration)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		out = append(out, *m)
	}
	return out, nil
}

const warmUp = 2 * time.Second

func measure(ctx context.Context, c *devcluster.Cluster, l ingestLoad, prefix string, d time.Duration) (*Measure, error) {
	load := Load{
		Addrs: addrs(c), Connections: l.connections, Window: l.window, Rate: l.rate,
		Readings: max(l.readings, 1), Devices: l.devices, Duration: warmUp, Prefix: prefix + "w",
	}
	if _, err := Run(ctx, load); err != nil {
		return nil, fmt.Errorf("warm up: %w", err)
	}
	load.Duration, load.Prefix = d, prefix
	before, err := observe(ctx, c)
	if err != nil {
		return nil, err
	}
	var prof chan profiled
	if l.profile {
		prof = profileAll(ctx, c, d)
	}
	res, err := Run(ctx, load)
	if err != nil {
		return nil, err
	}
	after, err := observe(ctx, c)
	if err != nil {
		return nil, err
	}
	m := &Measure{
		Name: l.name, Connections: l.connections, Window: l.window, Offered: l.rate, Rate: res.Rate(), ReadingsPerPubl: load.Readings,
		P50: float64(res.Latency.ValueAtQuantile(50)) / 1000, P99: float64(res.Latency.ValueAtQuantile(99)) / 1000,
	}
	messages := float64(res.Acked) * float64(load.Readings)
	m.ReadingsPerSec = m.Rate * float64(load.Readings) * readingsPerMessage
	m.CPU = (after.cpu - before.cpu).Seconds() * 1e6 / messages
	m.LogBytes = (after.logBytes - before.logBytes) / messages / float64(len(c.Nodes()))
	m.SnapshotBytes = (after.snapshotBytes - before.snapshotBytes) / messages / float64(len(c.Nodes()))
	m.BlockBytes = (after.blockBytes - before.blockBytes) / messages
	m.BlockMessages = messages / (after.blocks - before.blocks)
	if prof != nil {
		p := <-prof
		if p.err != nil {
			return nil, p.err
		}
		m.Stages = p.stages
	}
	return m, nil
}

const readingsPerMessage = 4

func addrs(c *devcluster.Cluster) []string {
	var out []string
	for _, n := range c.Nodes() {
		out = append(out, n.MQTT)
	}
	return out
}

// Table writes measures for people.
func (ms Measures) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%-24s %6s %8s %10s %9s %9s %8s %9s %10s %9s %9s\n", "load", "conns", "window", "acked/s", "p50 ms", "p99 ms", "us/msg", "log B/msg", "snap B/msg", "blk B/msg", "msg/block")
	for _, m := range ms {
		fmt.Fprintf(&b, "%-24s %6d %8d %10.0f %9.2f %9.2f %8.1f %9.1f %10.1f %9.1f %9.1f\n", m.Name, m.Connections, m.Window, m.Rate, m.P50, m.P99, m.CPU, m.LogBytes, m.SnapshotBytes, m.BlockBytes, m.BlockMessages)
	}
	for _, m := range ms {
		if len(m.Stages) > 0 {
			fmt.Fprintf(&b, "\nCPU of all nodes by stage, %s (%.1f us per message):\n", m.Name, m.CPU)
			for _, s := range stageOrder {
				fmt.Fprintf(&b, "  %-34s %5.1f %%  %6.2f us\n", s, 100*m.Stages[s], m.Stages[s]*m.CPU)
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
