package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/sluice-iot/sluice/bench"
)

type benchCmd struct {
	Ingest    benchIngestCmd    `cmd:"" help:"Acknowledged messages per second, latency, CPU and log bytes per message of a fresh three-node cluster."`
	Anomalies benchAnomaliesCmd `cmd:"" help:"Recall, delay and false alarms of the detector on generated telemetry with faults."`
	NAB       benchNABCmd       `cmd:"" name:"nab" help:"Score the detector on the Numenta Anomaly Benchmark, beside the published table."`
}

type benchIngestCmd struct {
	Duration time.Duration `default:"10s" help:"Of each load."`
	Nodes    int           `default:"3" help:"Node processes."`
	Shards   uint32        `default:"24" help:"Shards."`
	Data     string        `default:"" help:"Directory for the cluster; empty: a temporary one."`
	JSON     bool          `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *benchIngestCmd) Run(ctx context.Context) error {
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this executable: %w", err)
	}
	if c.Duration < time.Second || c.Duration > 10*time.Minute {
		return fmt.Errorf("duration is %v: use 1s to 10m", c.Duration)
	}
	ms, err := bench.Ingest(ctx, bench.IngestConfig{Binary: binary, Dir: c.Data, Duration: c.Duration, Nodes: c.Nodes, Shards: c.Shards, Progress: os.Stderr})
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(os.Stdout).Encode(ms)
	}
	return bench.Table(os.Stdout, ms)
}
