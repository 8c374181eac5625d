package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sluice-iot/sluice/bench"
)

type benchOutageCmd struct {
	Database string        `required:"" placeholder:"URL" help:"postgres:// URL of an empty database; the nodes reach it through a relay that is cut."`
	For      time.Duration `default:"10m" help:"How long the database is away."`
	Steady   time.Duration `default:"30s" help:"How long is measured before and after."`
	Rate     float64       `default:"2000" help:"Messages per second, of four readings, throughout."`
	Shards   uint32        `default:"24" help:"Shards."`
	Data     string        `default:"" help:"Directory for the cluster; empty: a temporary one."`
	JSON     bool          `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *benchOutageCmd) Run(ctx context.Context) error {
	if c.For < time.Second || c.For > 24*time.Hour || c.Steady < time.Second || c.Steady > time.Hour || c.Rate < 50 || c.Rate > 100_000 || c.Shards < 1 || c.Shards > 256 {
		return fmt.Errorf("away for %v, %v before and after, %v messages per second, %d shards: use 1s to 24h, 1s to 1h, 50 to 100000, and 1 to 256", c.For, c.Steady, c.Rate, c.Shards)
	}
	var o *bench.Outage
	err := report(c.JSON, func(binary string) (_ *bench.Outage, err error) {
		o, err = bench.RunOutage(ctx, bench.OutageConfig{Binary: binary, Dir: c.Data, Database: c.Database, For: c.For, Steady: c.Steady, Rate: c.Rate, Shards: c.Shards, Progress: os.Stderr})
		return o, err
	})
	if err == nil && (o.Missing > 0 || o.Twice > 0) {
		err = errors.New("what was acknowledged is not exactly once in the database")
	}
	return err
}
