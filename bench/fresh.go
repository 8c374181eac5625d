package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/sluice-iot/sluice/devcluster"
)

// withFreshCluster runs f on a cluster of its own, ready and settled, in dir or in
// a temporary directory; Dir and ports of opts are chosen here.
func withFreshCluster(ctx context.Context, dir string, progress io.Writer, opts devcluster.Options, f func(*devcluster.Cluster) error) (err error) {
	if dir == "" {
		if dir, err = os.MkdirTemp("", "sluice-bench-"); err != nil {
			return fmt.Errorf("make a directory for the cluster: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	port, err := devcluster.FreePorts(2 * opts.Nodes)
	if err != nil {
		return err
	}
	opts.Dir, opts.MQTTPort, opts.HTTPPort = dir, port, port+opts.Nodes
	opts.Zones, opts.LogLevel = []string{"a", "b", "c"}, "warn"
	fmt.Fprintf(progress, "starting %d nodes, %d shards, in %s\n", opts.Nodes, opts.Shards, dir)
	c, err := devcluster.Start(ctx, slog.New(slog.DiscardHandler), opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop(context.WithoutCancel(ctx))) }()
	if err := c.WaitReady(ctx); err != nil {
		return err
	}
	time.Sleep(settleTime)
	return f(c)
}
