package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sluice-iot/sluice/devcluster"
)

// SteadyConfig of the steady scenario.
type SteadyConfig struct {
	Binary      string // the sluice executable
	Dir         string // for the cluster's data; "" is a temporary directory
	Nodes       int
	Shards      uint32
	Snapshots   int           // of each shard and replica that are measured, after the first
	Devices     int           // all together
	Readings    int           // messages per publish, as an array
	Rate        float64       // publishes per second; 0: as many as are acknowledged
	SnapshotKiB int           // wal.snapshot_kib; 0 leaves the default
	Database    string        // postgres:// URL of an empty database; "" is the embedded store
	Longest     time.Duration // gives up after this
	Progress    io.Writer     // what is being done, may be nil
}

// Steady is what a replica writes for each byte of blocks once its shards take
// snapshots over and over.
type Steady struct {
	Shards        uint32        `json:"shards"`
	Devices       int           `json:"devices"`
	Rounds        []SteadyRound `json:"rounds"`
	All           SteadyRound   `json:"all"`
	SnapshotBytes float64       `json:"bytes_per_snapshot"`
}

// SteadyRound is the time in which every shard takes one snapshot on every
// replica, on average. Bytes are those of one replica.
type SteadyRound struct {
	Seconds       float64 `json:"seconds"`
	Messages      float64 `json:"messages"`
	BlockMessages float64 `json:"messages_per_block"`
	BlockBytes    float64 `json:"block_bytes_per_message"`
	LogRatio      float64 `json:"log_over_blocks"`
	SnapshotRatio float64 `json:"snapshots_over_blocks"`
	Amplification float64 `json:"write_amplification"`
}

const (
	steadyConnections = 50
	steadyWindow      = 80
	steadyLook        = time.Second
)

// RunSteady loads a fresh cluster until every shard has taken its snapshots, and
// counts what was written meanwhile.
func RunSteady(ctx context.Context, cfg SteadyConfig) (out *Steady, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	var environ []string
	if cfg.SnapshotKiB > 0 {
		environ = append(environ, fmt.Sprintf("SLUICE_WAL_SNAPSHOT_KIB=%d", cfg.SnapshotKiB))
	}
	opts := devcluster.Options{Binary: cfg.Binary, Nodes: cfg.Nodes, Shards: cfg.Shards, Database: cfg.Database, Environ: environ}
	fmt.Fprintf(cfg.Progress, "starting %d nodes, %d shards\n", cfg.Nodes, cfg.Shards)
	c, stop, err := freshCluster(ctx, cfg.Dir, opts)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	s := steadyRun{cfg: cfg, cluster: c, began: time.Now()}
	return s.run(ctx)
}

type steadyRun struct {
	cfg     SteadyConfig
	cluster *devcluster.Cluster
	began   time.Time
	acked   atomic.Uint64
}

// steadyMark is what was written up to a moment.
type steadyMark struct {
	observation
	at       time.Time
	messages float64
}

func (s *steadyRun) run(ctx context.Context) (*Steady, error) {
	load, stop := context.WithCancel(ctx)
	defer stop()
	over := make(chan error, 1)
	go func() {
		_, err := Run(load, Load{
			Addrs: addrs(s.cluster), Connections: steadyConnections, Window: steadyWindow, Rate: s.cfg.Rate, Readings: s.cfg.Readings,
			Devices: max(1, s.cfg.Devices/steadyConnections), Duration: s.cfg.Longest, Prefix: "steady",
			Acked: func(string, uint64) { s.acked.Add(1) },
		})
		over <- err
	}()
	out, err := s.rounds(ctx, over)
	stop()
	if err == nil {
		err = <-over // nil: it was stopped
	}
	return out, err
}

// rounds waits for the first snapshot of the shards, and measures the others.
func (s *steadyRun) rounds(ctx context.Context, over chan error) (*Steady, error) {
	first, err := s.await(ctx, over, 1)
	if err != nil {
		return nil, err
	}
	out := &Steady{Shards: s.cfg.Shards, Devices: max(1, s.cfg.Devices/steadyConnections) * steadyConnections}
	before := first
	for n := range s.cfg.Snapshots {
		after, err := s.await(ctx, over, float64(n+2))
		if err != nil {
			return nil, err
		}
		out.Rounds = append(out.Rounds, before.until(after, s.cfg.Nodes))
		before = after
	}
	out.All = first.until(before, s.cfg.Nodes)
	out.SnapshotBytes = (before.snapshotBytes - first.snapshotBytes) / max(1, before.snapshots-first.snapshots)
	return out, nil
}

// await waits until the shards have taken so many snapshots each, on average, on
// all nodes together.
func (s *steadyRun) await(ctx context.Context, over chan error, each float64) (m steadyMark, err error) {
	want := each * float64(s.cfg.Shards) * float64(min(s.cfg.Nodes, replicasOfShard))
	tick := time.NewTicker(steadyLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return m, ctx.Err()
		case err := <-over:
			over <- err
			if err == nil {
				err = fmt.Errorf("the shards have taken %.0f of %.0f snapshots within %v: allow longer, or less log per snapshot (--snapshot-kib)", m.snapshots, want, s.cfg.Longest)
			}
			return m, err
		}
		if m.observation, err = observe(ctx, s.cluster); err != nil {
			return m, err
		}
		m.at, m.messages = time.Now(), float64(s.acked.Load())*float64(max(1, s.cfg.Readings))
		if m.snapshots >= want {
			fmt.Fprintf(s.cfg.Progress, "%4.0f s: %.0f snapshots, %.1f per shard and replica\n", time.Since(s.began).Seconds(), m.snapshots, each)
			return m, nil
		}
	}
}

// replicasOfShard is how many replicas a shard has where there are as many nodes.
const replicasOfShard = 3

// until is what was written between two marks.
func (a *steadyMark) until(b steadyMark, nodes int) SteadyRound {
	r := SteadyRound{Seconds: b.at.Sub(a.at).Seconds(), Messages: b.messages - a.messages}
	blocks := b.blockBytes - a.blockBytes // each is written by every replica, and counted by its origin
	r.BlockBytes, r.BlockMessages = blocks/r.Messages, r.Messages/(b.blocks-a.blocks)
	replicas := float64(min(nodes, replicasOfShard))
	r.LogRatio = (b.logBytes - a.logBytes) / replicas / blocks
	r.SnapshotRatio = (b.snapshotBytes - a.snapshotBytes) / replicas / blocks
	r.Amplification = r.LogRatio + r.SnapshotRatio
	return r
}

// Table writes the result for people.
func (o *Steady) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d shards, %d devices, %.0f KiB per snapshot\n\n", o.Shards, o.Devices, o.SnapshotBytes/1024)
	fmt.Fprintf(&b, "%-10s %8s %12s %10s %10s %11s %14s %10s\n", "snapshot", "seconds", "messages/s", "msg/block", "blk B/msg", "log/blocks", "snaps/blocks", "together")
	line := func(name string, r SteadyRound) {
		fmt.Fprintf(&b, "%-10s %8.0f %12.0f %10.1f %10.1f %11.3f %14.3f %10.3f\n", name, r.Seconds, r.Messages/r.Seconds, r.BlockMessages, r.BlockBytes, r.LogRatio, r.SnapshotRatio, r.Amplification)
	}
	for i, r := range o.Rounds {
		line(fmt.Sprint(i+2), r)
	}
	line("all", o.All)
	_, err := io.WriteString(w, b.String())
	return err
}
