package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sluice-iot/sluice/alerts/webhook"
	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/backlog"
	"github.com/sluice-iot/sluice/broker"
	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/cluster/detector"
	"github.com/sluice-iot/sluice/cluster/gossip"
	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/cluster/mux"
	"github.com/sluice-iot/sluice/ingest"
	"github.com/sluice-iot/sluice/internal/obs"
	"github.com/sluice-iot/sluice/internal/serverid"
	"github.com/sluice-iot/sluice/internal/snapfile"
	"github.com/sluice-iot/sluice/pubsub"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/wal"
)

// node is everything one process runs. Fields are in the order they start;
// they stop in the opposite order.
type node struct {
	version  string
	cfg      Config
	sys      system
	logger   *slog.Logger
	registry *prometheus.Registry

	identity   *cluster.Identity  // locks the data directory
	meter      *backlog.Meter     // of the log's disk
	log        *wal.Log           // of every raft group
	stores     stores             // where rows go
	mux        *mux.Mux           // between nodes
	peers      *peers             // the mux as the others want it
	gossip     *gossip.Gossip     // who is there
	detector   *detector.Detector // who is gone
	meta       *meta.Meta         // what all agree on
	host       *shard.Host        // the replicas that live here
	router     *shard.Router      // the way to everybody else's
	fetcher    *segmentFetcher    // of rows that replicas here lack; nil with a database
	intake     *intake            // the way into the log
	pubsub     *pubsub.Hub        // from node to node, for subscribers
	sessions   lateSessions       // the same, as the shards see it
	hub        *api.Hub           // live anomaly events
	feed       *anomalyFeed
	webhook    *webhook.Sender               // nil when none is configured
	deliveries *deliveries                   // of the webhook
	gather     *gather                       // events that may be the beginning of a wave
	surges     *surges                       // waves of all shards
	broker     atomic.Pointer[broker.Broker] // MQTT; nil until the node serves

	damage   error                  // what ended the life before this one, nil for the first
	failed   chan error             // what ends this one
	asides   asides                 // what rotted in the embedded store
	rotten   atomic.Pointer[string] // the meta group's snapshot that has rotted, until another one is taken
	forbears forbearance            // from elections of the meta group meanwhile
	waiting  atomic.Pointer[string] // why the node is not part of the cluster yet, "" when it is

	serving  atomic.Bool // the broker takes publishes
	draining atomic.Bool
	drained  atomic.Bool
	resolver lateResolver
	running  sync.WaitGroup
}

// runLife runs a node until ctx ends, something fatal happens, or its data
// directory turns out to be damaged.
func runLife(ctx context.Context, logger *slog.Logger, version string, cfg Config, sys system, damage error) (err error) {
	n := &node{
		version: version, cfg: cfg, sys: sys, logger: logger.With("node", cfg.Node.ID), registry: prometheus.NewRegistry(),
		damage: damage, failed: make(chan error, 1),
	}
	if sys.found == nil {
		n.sys.found = newDamages()
	}
	if sys.born != nil {
		sys.born(n)
	}
	n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	n.sys.found.register(n.registry)
	ctx, cancel := context.WithCancelCause(ctx)
	n.running.Go(func() { // also while starting: waiting for the cluster may take for ever
		select {
		case err := <-n.failed:
			cancel(err)
		case <-ctx.Done():
		}
	})
	var closers []func() error
	defer func() {
		cancel(nil)
		for i := len(closers) - 1; i >= 0; i-- {
			err = errors.Join(err, closers[i]())
		}
		n.running.Wait()
	}()
	for _, start := range []func(context.Context) (func() error, error){
		n.serveDebug,    // first: a start that hangs can be looked into
		n.openData,      // the lock first: nothing may touch a directory another process uses
		n.openNetwork,   // peers can reach us, nobody is served yet
		n.openMeta,      // the shard table must be known before any shard is opened
		n.openShards,    // replicas vote and replicate
		n.serveHTTP,     // health and init can be asked; data answers 503 until the cluster exists
		n.joinAndIngest, // blocks until the cluster exists and this node is part of it
		n.serveMQTT,     // last: a device that connects can publish
	} {
		stop, err := start(ctx)
		if stop != nil {
			closers = append(closers, stop)
		}
		if err != nil {
			if ctx.Err() != nil {
				return fatal(ctx) // stopped while starting
			}
			return err
		}
	}
	n.logger.Info("node serves", "zone", cfg.Node.Zone, "mqtt", cfg.MQTT.Listen, "http", cfg.HTTP.Listen, "peer", n.identity.Peer())
	select {
	case <-ctx.Done():
		if err := fatal(ctx); err != nil {
			return err // without draining: this incarnation has no say any more
		}
		n.stopServing()
		return nil
	case <-n.log.Failed():
		// What the disk holds is not known any more: leave at once, without
		// draining, and let the log be read again by a new process.
		return fmt.Errorf("write-ahead log: %w", n.log.Err())
	case err := <-n.stores.failed:
		return fmt.Errorf("store: %w", err) // for the same reason
	}
}

// fatal is what ended ctx, nil for the operator.
func fatal(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (n *node) openData(context.Context) (func() error, error) {
	// Devices come last, but a port that is taken is better known at once.
	if l, err := n.sys.open(n.cfg.MQTT.Listen); err != nil {
		return nil, inUse("mqtt.listen", err)
	} else if err := l.Close(); err != nil {
		return nil, fmt.Errorf("probe mqtt.listen: %w", err)
	}
	dir := n.cfg.Node.Data
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("create data directory: %w: choose a directory this user can write (node.data)", err)
	}
	var err error
	if n.identity, err = cluster.LoadOrCreateIdentity(dir, n.cfg.Node.ID, n.cfg.Node.Zone); err != nil {
		return nil, err
	}
	if err := n.openLog(); err != nil {
		return n.identity.Close, err
	}
	n.stores, err = openStores(n.logger, n.registry, n.cfg, n.identity, n.rottenSegment)
	if err != nil {
		return func() error { return errors.Join(n.log.Close(), n.identity.Close()) }, err
	}
	return func() error { return errors.Join(n.stores.close(), n.log.Close(), n.identity.Close()) }, nil
}

func (n *node) openMeta(ctx context.Context) (func() error, error) {
	if err := n.checkMetaSnapshots(); err != nil {
		return nil, err
	}
	snaps, err := snapfile.Open(filepath.Join(n.cfg.Node.Data, "meta"), 2, obs.Hclog(n.logger, hclog.Warn))
	if err != nil {
		return nil, fmt.Errorf("open snapshots of the meta group: %w", err)
	}
	cfg := meta.DefaultConfig(n.identity.Peer())
	cfg.ClusterID = n.identity.ClusterID()
	group := n.log.Group(meta.Group)
	group.SetFloor(1<<64 - 1) // its state is in its snapshots: nothing else needs its log
	n.peers.OnElection(meta.Group, n.metaAbstains)
	n.meta, err = meta.Open(n.logger, n.registry, cfg, meta.Deps{
		Stores: group, Snapshots: snaps, Transport: n.peers.Group(meta.Group, serverid.First),
		Forwarder: n.peers, Poker: metaPoker{n}, Contacts: n.gossip.Peers, Alive: n.alive, SlowDisk: n.badDisk,
	})
	if err != nil {
		return nil, err
	}
	n.watchMetaSnapshots()
	n.mux.Handle(frameMeta, func(from string, _ uint32, body []byte, reply func([]byte, error)) {
		n.meta.HandleForward(from, body, reply)
	})
	ctx, cancel := context.WithCancel(ctx)
	var scrubbing sync.WaitGroup
	scrubbing.Go(func() { n.cfg.WAL.scrub().Due(ctx, n.scrubMeta) })
	return func() error {
		cancel()
		scrubbing.Wait()
		return n.meta.Close()
	}, nil
}

func (n *node) openShards(ctx context.Context) (func() error, error) {
	var err error
	if n.hub, err = api.NewHub(); err != nil {
		return nil, err
	}
	if err := n.openMeter(); err != nil {
		return nil, err
	}
	copies, err := n.openArchive()
	if err != nil {
		return nil, err
	}
	n.feed = newAnomalyFeed(n.logger, n.peers, n.gossip.Peers, n.hear, n.announce)
	n.gather, n.surges = newGather(), newSurges(n.tellSurge, nil)
	if err := n.openAlerts(); err != nil {
		return nil, err
	}
	n.feed.receive(n.surges.delivered)
	n.host, err = shard.OpenHost(n.logger, n.registry, shard.HostConfig{
		Self: n.identity.Peer(), Dir: filepath.Join(n.cfg.Node.Data, "shards"),
		Flush: shard.FlushConfig{Interval: n.cfg.Flush.Interval, RowsMax: n.cfg.Flush.RowsMax, Retain: n.cfg.Flush.Retain, RetainBytes: int64(n.cfg.Flush.RetainMiB) << 20}, FlushesMax: n.stores.flushesMax(),
		Limits: shard.Limits{SnapshotLogBytes: int64(n.cfg.WAL.SnapshotKiB) << 10, TrailingLogs: n.cfg.WAL.TrailingEntries}, Clock: n.sys.clock,
		Scrub: n.cfg.WAL.scrub(),
	}, shard.Deps{
		Log:       func(group uint32) shard.Log { return n.log.Group(group) },
		Transport: n.peers, Stores: n.stores.Stores, Detector: anomaly.New(anomaly.DefaultParams()), Emit: n.feed.emit, Confirms: n.webhook != nil,
		Draining: n.peerDraining, Ask: n.peers.Ask, Evicted: func(peer string) bool { return n.meta.State().Evicted[peer] },
		RottenRows: n.rottenRows,
		OnDamage:   func(err error) { n.sys.found.note(kindSnapshot, err.Error()) },
		SlowDisk:   n.log.Slow, Complete: n.complete, Drop: n.drop, Settled: n.settled, Sessions: &n.sessions,
	})
	if err != nil {
		return nil, err
	}
	n.router = shard.NewRouter(n.host, n.peers, directory{n.meta})
	n.intake = &intake{noRoom: n.noRoom}
	ctx, cancel := context.WithCancel(ctx)
	n.detector.Subscribe(func(e detector.Event) {
		if e.Down {
			n.mux.GiveUp(e.Peer) // blocks on their way to it go to its successors
			n.host.PeerDown(ctx, e.Peer)
			n.meta.LeaderDown(e.Peer)
		}
	})
	var watch sync.WaitGroup // over what uses the host
	watch.Go(func() { n.feed.run(ctx) })
	if n.webhook != nil {
		watch.Go(func() { n.webhook.Run(ctx) })
	}
	watch.Go(func() { n.host.Run(ctx, n.router) })
	n.peers.serveShards(ctx, n.host)
	n.serveRefused()
	n.serveBacklog()
	watch.Go(func() { n.watchBacklog(ctx) })
	if n.stores.files != nil {
		n.fetcher = &segmentFetcher{logger: n.logger, files: n.stores.files, mux: n.mux, host: n.host, dir: directory{n.meta}, inherited: !n.identity.Joined()}
		n.fetcher.serve()
		watch.Go(func() { n.fetcher.run(ctx) })
		watch.Go(func() { n.stores.maintain(ctx) })
	}
	if copies != nil {
		watch.Go(func() { copies(ctx) })
	}
	return func() error {
		cancel()
		watch.Wait()
		n.hub.Close()
		n.peers.interrupt()
		return n.host.Close()
	}, nil
}

func (n *node) serveHTTP(ctx context.Context) (func() error, error) {
	b := &backend{node: n, storeID: n.stores.name}
	srv, err := api.New(n.logger, n.registry, api.Config{Node: n.identity.Node(), Version: n.version}, api.Backend{
		Ingest: n.intake, Cluster: b, Reader: b, Attributes: b, Quarantine: b, Events: n.hub, Watch: b, Database: n.asDatabase(), Gatherer: n.registry,
	})
	if err != nil {
		return nil, err
	}
	l, err := n.sys.open(n.cfg.HTTP.Listen)
	if err != nil {
		return nil, inUse("http.listen", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	n.running.Go(func() { done <- srv.Serve(ctx, l) })
	return func() error {
		cancel()
		return <-done
	}, nil
}

// joinAndIngest makes this node a member and opens its way into the log.
func (n *node) joinAndIngest(ctx context.Context) (func() error, error) {
	n.logger.Info("waiting for the cluster", "peer", n.identity.Peer())
	s := n.self()
	self := meta.Node{ID: s.Node, Incarnation: n.identity.Incarnation(), Zone: s.Zone, Mux: s.Mux, MQTT: s.MQTT, HTTP: s.HTTP}
	if err := n.join(ctx, self); err != nil { // waits for the cluster to exist
		return nil, err
	}
	id := n.meta.State().ClusterID
	if err := n.identity.AdoptCluster(id); err != nil {
		return nil, err
	}
	if err := n.mux.SetClusterID(id); err != nil {
		return nil, fmt.Errorf("adopt cluster id: %w", err)
	}
	if err := n.gossip.Update(n.self()); err != nil {
		return nil, fmt.Errorf("tell the cluster id: %w", err)
	}
	if err := n.meta.Propose(ctx, meta.SetDraining{Node: self.ID, Draining: false}); err != nil {
		return nil, fmt.Errorf("end draining: %w", err)
	}
	// Our own state must show that, or watchDraining would drain us again.
	if err := n.meta.Sync(ctx); err != nil {
		return nil, fmt.Errorf("end draining: %w", err)
	}
	epoch, err := n.meta.NextEpoch(ctx)
	if err != nil {
		return nil, fmt.Errorf("number this start: %w", err)
	}
	if err := n.openPubsub(epoch); err != nil { // before the first replica can lead
		return nil, err
	}
	if err := n.host.Reconcile(replicasOf(n.meta.State(), n.identity.Peer())); err != nil {
		return n.closePubsub, err
	}
	var following sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	stop := func() error {
		cancel()
		following.Wait()
		return n.closePubsub()
	}
	following.Go(func() { n.follow(ctx) })
	following.Go(func() { n.newMover().run(ctx) })
	pl, err := ingest.New(n.logger, n.registry, ingest.Config{
		Origin: n.identity.Peer(), Epoch: epoch, Shards: n.meta.State().Shards, BytesOpenMax: 256 << 20, Linger: 2 * time.Millisecond,
		Target: n.cfg.MQTT.CommitTarget,
	}, n.router)
	if err != nil {
		return stop, err
	}
	n.intake.pipeline.Store(pl)
	return func() error {
		pl.Close()
		return stop()
	}, nil
}

func (n *node) serveMQTT(ctx context.Context) (func() error, error) {
	cfg, err := n.cfg.MQTT.broker(n.logger)
	if err != nil {
		return nil, err
	}
	cfg.OthersServe = n.othersServe
	cfg.ClusterID = n.identity.ClusterID() // serving begins after the cluster is joined
	var in broker.Ingest = n.intake
	if n.cfg.MQTT.CommitTarget > 0 {
		in = pacedIntake{n.intake}
	}
	b, err := broker.New(n.logger, n.registry, cfg, in, n.pubsub)
	if err != nil {
		return nil, err
	}
	n.joinPubsub(ctx, b)
	// The broker outlives ctx: stopServing drains it first.
	for i := range cfg.Endpoints {
		l, err := n.sys.open(cfg.Endpoints[i].Listen)
		if err == nil {
			err = b.Serve(context.WithoutCancel(ctx), l, &cfg.Endpoints[i])
		}
		if err != nil {
			return b.Close, inUse("the mqtt listener on "+cfg.Endpoints[i].Listen, err)
		}
	}
	n.broker.Store(b)
	n.serving.Store(true)
	n.running.Go(func() { n.watchDraining(ctx) })
	return b.Close, nil
}

// inUse explains the commonest reason why a listener does not open.
func inUse(key string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: another process has the port, stop it or change %s", err, key)
	}
	return fmt.Errorf("%s: %w", key, err)
}
