package main

import (
	"context"
	"log/slog"
	"sync"

	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/simulate"
)

// simulate starts the simulated devices of a local cluster. stop ends them,
// with a little patience for answers that are under way, and is idempotent.
func (c *devCmd) simulate(ctx context.Context, logger *slog.Logger, cl *devcluster.Cluster) (stop func(), err error) {
	if c.Simulate == 0 {
		return func() {}, nil
	}
	cfg := simulate.Config{Devices: c.Simulate}
	for _, n := range cl.Nodes() {
		cfg.Brokers = append(cfg.Brokers, n.MQTT)
	}
	s, err := simulate.New(logger, cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			logger.Warn("simulated devices ended", "err", err)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}, nil
}
