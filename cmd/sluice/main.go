package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/sluice-iot/sluice/node"
)

// version is set by the linker.
var version = "0.0.0-dev"

type cli struct {
	Dev       devCmd    `cmd:"" help:"Run a local cluster of real node processes in the foreground."`
	SmokeTest smokeCmd  `cmd:"" help:"Publish through each node of a local cluster and read back through another."`
	Node      nodeCmd   `cmd:"" help:"Run one node in the foreground."`
	Config    configCmd `cmd:"" help:"Check or print a node's configuration."`

	Status     statusCmd     `cmd:"" help:"Show nodes, shards and the ledger of the cluster."`
	Nodes      nodesCmd      `cmd:"" help:"List the nodes, or evict one for ever."`
	Shards     shardsCmd     `cmd:"" help:"List the shards, or accept the loss of rows that a database has lost."`
	Device     deviceCmd     `cmd:"" help:"List and show devices, read and set their attributes."`
	Query      queryCmd      `cmd:"" help:"Print readings of a device, or figures over buckets of time."`
	Anomalies  anomaliesCmd  `cmd:"" help:"List or follow anomalies; maintenance, feedback, target, physical ranges."`
	Quarantine quarantineCmd `cmd:"" help:"List, replay or drop messages that are no telemetry."`

	Deadletter deadletterCmd `cmd:"" help:"List, replay or drop rows that the database refused."`

	Import   importCmd   `cmd:"" help:"Send a CSV or NDJSON file to the cluster."`
	Simulate simulateCmd `cmd:"" help:"Publish as many simulated devices."`
	Detect   detectCmd   `cmd:"" help:"Find anomalies in a CSV file, without a cluster."`

	Cluster  clusterCmd  `cmd:"" help:"Create a cluster."`
	Drain    drainCmd    `cmd:"" help:"Let a node's clients, leaderships and then its replicas go to the others, until its next start or --cancel."`
	Archive  archiveCmd  `cmd:"" help:"Bring rows back from an archive or a backup."`
	Database databaseCmd `cmd:"" help:"Prepare the database."`
	WAL      walCmd      `cmd:"" name:"wal" help:"Look into a stopped node's log."`

	Bench   benchCmd   `cmd:"" help:"Measure on this machine."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

func main() {
	os.Exit(run(os.Args[1:]))
}

// run executes one command; every failure is one line on stderr.
func run(args []string) int {
	var c cli
	exit := -1
	parser, err := kong.New(&c, kong.Name("sluice"), kong.UsageOnError(), kong.Exit(func(code int) { exit = code }),
		kong.Description("A distributed time-series ingestion cluster for devices."))
	if err != nil {
		return fail(err)
	}
	k, err := parser.Parse(args)
	if exit >= 0 {
		return exit
	}
	if err != nil {
		return fail(fmt.Errorf("%w: see sluice --help", err))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	k.BindTo(ctx, (*context.Context)(nil))
	if err := k.Run(); err != nil {
		return fail(err)
	}
	return 0
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "sluice: "+strings.Join(strings.Split(strings.TrimSpace(err.Error()), "\n"), "; "))
	return 1
}

type nodeCmd struct {
	Config string   `required:"" type:"path" placeholder:"FILE" help:"Configuration file (YAML)."`
	Set    []string `sep:"none" placeholder:"KEY=VALUE" help:"Override a key of the file, mqtt.listen=127.0.0.1:1883 for example; may be repeated."`
}

// Run implements kong.
func (c *nodeCmd) Run(ctx context.Context) error {
	cfg, err := node.LoadConfig(c.Config, os.Environ(), c.Set)
	if err != nil {
		return err
	}
	level, err := cfg.Log.SlogLevel()
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	return node.Run(ctx, logger, version, cfg)
}

type versionCmd struct{}

// Run implements kong.
func (versionCmd) Run() error {
	fmt.Println("sluice", version)
	return nil
}
