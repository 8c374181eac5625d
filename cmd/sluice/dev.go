package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/devcluster"
)

type devCmd struct {
	Nodes    int           `default:"3" help:"Number of node processes."`
	Zones    []string      `default:"a,b,c" help:"Zones, given to the nodes in turn."`
	Data     string        `default:"sluice-data" type:"path" help:"Directory for everything; a cluster in it is continued."`
	MQTTPort int           `name:"mqtt-port" default:"1883" help:"MQTT port of the first node; the next ones follow."`
	HTTPPort int           `name:"http-port" default:"8080" help:"HTTP port of the first node; the next ones follow."`
	Simulate int           `default:"0" help:"Simulated devices that publish once per second."`
	Database string        `default:"" help:"postgres:// URL to store rows in; empty: embedded Parquet files."`
	Shards   uint32        `default:"24" help:"Shards of a new cluster."`
	Flush    time.Duration `default:"0" help:"Flush interval of the nodes; 0: 10s, or 1s with a database."`
}

// devFlush is the flush interval of a local cluster with the embedded store: who
// looks at it wants to see files soon, and does not run it for weeks.
const devFlush = 10 * time.Second

// devReadyMax bounds the wait for leaders of all shards after a start.
const devReadyMax = 60 * time.Second

// Run implements kong.
func (c *devCmd) Run(ctx context.Context) error {
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this executable: %w", err)
	}
	if c.Simulate < 0 {
		return fmt.Errorf("simulate is %d: use 0 or more devices", c.Simulate)
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if c.Flush == 0 && c.Database == "" {
		c.Flush = devFlush
	}
	cl, err := devcluster.Start(ctx, logger, devcluster.Options{
		Binary: binary, Dir: c.Data, Nodes: c.Nodes, Zones: c.Zones, MQTTPort: c.MQTTPort, HTTPPort: c.HTTPPort,
		Shards: c.Shards, Database: c.Database, FlushInterval: c.Flush,
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil // interrupted while starting: Start has stopped what ran
		}
		return err
	}
	err = c.attend(ctx, logger, cl)
	fmt.Println("\nstopping: draining all nodes, then ending them")
	if stopErr := cl.Stop(context.WithoutCancel(ctx)); stopErr != nil {
		return errors.Join(err, stopErr)
	}
	fmt.Println("stopped; the data stays in", c.Data)
	return err
}

// attend waits for readiness, then shows what happens until ctx ends.
func (c *devCmd) attend(ctx context.Context, logger *slog.Logger, cl *devcluster.Cluster) error {
	ready, cancel := context.WithTimeout(ctx, devReadyMax)
	defer cancel()
	if err := cl.WaitReady(ready); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	c.banner(os.Stdout, cl)
	stopSim, err := c.simulate(ctx, logger, cl)
	if err != nil {
		return err
	}
	defer stopSim()
	line := newLiveLine(os.Stdout, cl)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-cl.Exited():
			line.say("%s (pid %d, zone %s) has died; it stays dead until you start it again with:\n  %s", n.ID, n.PID, n.Zone, quoted(n.Cmd))
		case <-tick.C:
			line.show(ctx)
		}
	}
}

func (c *devCmd) banner(w io.Writer, cl *devcluster.Cluster) {
	var b strings.Builder
	fmt.Fprintf(&b, "sluice %s: %d nodes on this machine, data in %s\n\n", version, len(cl.Nodes()), c.Data)
	for _, n := range cl.Nodes() {
		fmt.Fprintf(&b, "  %s  zone %s  mqtt://%s  http://%s\n", n.ID, n.Zone, n.MQTT, n.HTTP)
	}
	first := cl.Nodes()[0]
	_, port, _ := strings.Cut(first.MQTT, ":")
	fmt.Fprintf(&b, `
publish  mosquitto_pub -p %s -q 1 -t devices/d1/telemetry -m '{"sensors":{"temperature":21.5}}'
read     curl -s 'http://%s/api/v1/devices/d1/readings'
look     %s status --api http://%s
stop     Ctrl-C

`, port, first.HTTP, quoted(first.Cmd[:1]), first.HTTP)
	// A terminal that is gone ends us by a signal, not here.
	_, _ = io.WriteString(w, b.String())
}

func quoted(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		if strings.ContainsAny(a, " '\"$\\") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out[i] = a
	}
	return strings.Join(out, " ")
}
