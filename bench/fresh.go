package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/sluice-iot/sluice/devcluster"
)

// scratchCluster starts a fresh cluster of failoverNodes nodes that serve profiles;
// environ is added to their environment.
func scratchCluster(ctx context.Context, binary, dir string, shards uint32, environ ...string) (*devcluster.Cluster, func() error, error) {
	return freshCluster(ctx, dir, devcluster.Options{Binary: binary, Nodes: failoverNodes, Shards: shards, Debug: true, Environ: environ})
}

// freshCluster starts a cluster in dir, or in a temporary directory, and waits until
// its leaders have settled; directory, zones, ports and the level of its logs are chosen here.
// The function it returns stops the cluster and removes what is temporary.
func freshCluster(ctx context.Context, dir string, opts devcluster.Options) (*devcluster.Cluster, func() error, error) {
	remove := func() error { return nil }
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "sluice-bench-"); err != nil {
			return nil, nil, fmt.Errorf("make a directory for the cluster: %w", err)
		}
		remove = func() error { return os.RemoveAll(dir) }
	}
	port, err := devcluster.FreePorts(2 * opts.Nodes)
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	opts.Dir, opts.MQTTPort, opts.HTTPPort = dir, port, port+opts.Nodes
	opts.Zones, opts.LogLevel = []string{"a", "b", "c"}, "warn"
	c, err := devcluster.Start(ctx, slog.New(slog.DiscardHandler), opts)
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	stop := func() error { return errors.Join(c.Stop(context.WithoutCancel(ctx)), remove()) }
	if err = c.WaitReady(ctx); err == nil {
		_, err = settled(ctx, c)
	}
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return c, stop, nil
}
