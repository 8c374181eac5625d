package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/sluice-iot/sluice/bench"
)

type benchLateCmd struct {
	Database string        `required:"" placeholder:"URL" help:"postgres:// URL of an empty database."`
	Rate     float64       `default:"1000" help:"Live messages per second, of four readings, throughout."`
	LateRate float64       `default:"2000" help:"Late messages per second while 128 devices upload a day of readings each."`
	Rounds   int           `default:"3" help:"How often both are measured, in turn."`
	Phase    time.Duration `default:"20s" help:"How long live rows flow alone, and how long devices upload."`
	Shards   uint32        `default:"24" help:"Shards."`
	Data     string        `default:"" help:"Directory for the cluster; empty: a temporary one."`
	JSON     bool          `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *benchLateCmd) Run(ctx context.Context) error {
	if c.Rate < 50 || c.Rate > 100_000 || c.LateRate < 32 || c.LateRate > 1e6 || c.Rounds < 1 || c.Rounds > 1000 || c.Phase < time.Second || c.Phase > time.Hour || c.Shards < 1 || c.Shards > 256 {
		return fmt.Errorf("%v live and %v late messages per second, %d rounds of %v, %d shards: use 50 to 100000, 32 to 1000000, 1 to 1000, 1s to 1h, and 1 to 256", c.Rate, c.LateRate, c.Rounds, c.Phase, c.Shards)
	}
	return report(c.JSON, func(binary string) (*bench.Late, error) {
		return bench.RunLate(ctx, bench.LateConfig{Binary: binary, Dir: c.Data, Database: c.Database, Rate: c.Rate, LateRate: c.LateRate, Rounds: c.Rounds, Phase: c.Phase, Shards: c.Shards, Progress: os.Stderr})
	})
}

type benchLagCmd struct {
	Database string        `required:"" placeholder:"URL" help:"postgres:// URL of an empty database."`
	Flat     time.Duration `default:"20s" help:"How long the cluster is loaded as fast as it acknowledges."`
	Steady   time.Duration `default:"60s" help:"How long it is loaded with half of what it sustained."`
	Shards   uint32        `default:"24" help:"Shards."`
	Data     string        `default:"" help:"Directory for the cluster; empty: a temporary one."`
	JSON     bool          `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *benchLagCmd) Run(ctx context.Context) error {
	if c.Flat < time.Second || c.Flat > time.Hour || c.Steady < time.Second || c.Steady > time.Hour || c.Shards < 1 || c.Shards > 256 {
		return fmt.Errorf("%v as fast as it goes, %v at half of it, %d shards: use 1s to 1h, 1s to 1h, and 1 to 256", c.Flat, c.Steady, c.Shards)
	}
	return report(c.JSON, func(binary string) (*bench.Lag, error) {
		return bench.RunLag(ctx, bench.LagConfig{Binary: binary, Dir: c.Data, Database: c.Database, Flat: c.Flat, Steady: c.Steady, Shards: c.Shards, Progress: os.Stderr})
	})
}
