package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/bench/faults/disk"
	"github.com/sluice-iot/sluice/bench/faults/zones"
	"github.com/sluice-iot/sluice/devcluster"
)

// Config says how faults are run.
type Config struct {
	Binary   string // the sluice executable
	Wrong    string // the same, built with the tag mutations: its clock can be moved; "" leaves out what needs it
	Dir      string // histories of failing runs are kept below it
	Seed     uint64
	Load     Load
	Environ  []string  // added to the nodes' environment
	Progress io.Writer // a line per step; nil is silent
	Keep     bool      // keep the directory of a run that passed, too
	// JudgeLatency makes the latency of honest clients a check: not on a machine
	// that does something else as well.
	JudgeLatency bool
	// JudgeRoutes changes subscriptions while the fault lasts, and judges C12.
	JudgeRoutes bool
	// Patience is how long a cluster may take until it is ready again (default
	// 3 min, for a busy machine).
	Patience time.Duration
}

// Validate returns every problem at once.
func (c *Config) Validate() error {
	var errs []error
	if c.Binary == "" {
		errs = append(errs, errors.New("binary is empty: name the sluice executable"))
	}
	if c.Dir == "" {
		errs = append(errs, errors.New("dir is empty: name a directory for clusters and histories"))
	}
	if c.Load.Timed+c.Load.Untimed == 0 {
		errs = append(errs, errors.New("load has no MQTT client: use DefaultLoad"))
	}
	return errors.Join(errs...)
}

// Fault is one row of the table of what must be survived.
type Fault struct {
	ID, Title string
	Bound     time.Duration // of the time until 90 % of the rate is back (C7); 0: none stated
	Disks     bool          // needs power-loss disks
	Database  bool          // rows go to PostgreSQL
	Zones     bool          // needs a network namespace per node
	Clocks    bool          // needs nodes whose clocks can be wrong
	Environ   []string      // for its nodes
	// Metric is the beginning of the series that has to move (C10), as
	// docs/operations.md names it; with Above, the mean of a histogram in seconds
	// that has to be exceeded. "" is none.
	Metric string
	Above  float64
	Strike func(ctx context.Context, r *Run) error
}

// Run is a cluster under load while a fault strikes.
type Run struct {
	Cluster *devcluster.Cluster
	Disks   []*disk.Disk
	Zones   *zones.Net
	rng     *rand.Rand
	cfg     *Config
	fault   *Fault
	dir     string
	fleet   *fleet
	readers *readers
	ops     *registers
	orders  *commands
	routes  *routes
	endRead context.CancelFunc
	db      *database
	struck  time.Time // when the fault struck, for C7
	note    string    // what the fault wants the table to say
	watch   *watch
	members sync.Mutex         // over the list of nodes, which the watch reads
	gone    []*devcluster.Node // removed by the fault, for good
	first   []resources
	// replicasSeen is how the replicas of every shard were when they were equal.
	replicasSeen map[uint32][]replica
	broken       bool // the cluster has not come back: the judge need not wait for it
	discard      bool // the run passed: nothing of it is needed
}

const (
	nodesCount    = 3
	shardsCount   = 12
	warmUp        = 1500 * time.Millisecond
	baselineSpan  = 2 * time.Second
	readyMax      = 3 * time.Minute  // on a busy machine, see Config.Patience
	backMax       = 60 * time.Second // bound of C7 that no machine excuses
	rateWindow    = 500 * time.Millisecond
	rateFraction  = 0.9
	flushInterval = time.Second
	shutdownMax   = 2 * time.Minute
	visibleMax    = time.Minute // for a metric; most have moved before the fault is healed
)

// Do runs one fault and judges it. The error says that it could not be run; a
// fault that was not survived is in the Result.
func Do(ctx context.Context, cfg Config, f *Fault) (Result, error) {
	res := Result{ID: f.ID, Title: f.Title, Seed: cfg.Seed, Bound: f.Bound}
	if err := cfg.Validate(); err != nil {
		return res, err
	}
	r := &Run{cfg: &cfg, fault: f, rng: rand.New(rand.NewPCG(cfg.Seed, 1)), dir: filepath.Join(cfg.Dir, fmt.Sprintf("%s-%d", f.ID, cfg.Seed))}
	if err := os.RemoveAll(r.dir); err != nil {
		return res, fmt.Errorf("clear directory of the run: %w", err)
	}
	defer r.close()
	if err := r.start(ctx); err != nil {
		return res, fmt.Errorf("%s: %w", f.ID, err)
	}
	r.drive(ctx, &res)
	r.judge(ctx, &res)
	if err := r.keep(&res); err != nil {
		return res, err
	}
	return res, nil
}

// start brings up disks, database, cluster and clients.
func (r *Run) start(ctx context.Context) error {
	if r.fault.Disks {
		for i := range nodesCount {
			d, err := disk.Mount(filepath.Join(r.dir, "disks", "n"+strconv.Itoa(i)), filepath.Join(r.dir, "n"+strconv.Itoa(i)))
			if err != nil {
				return err
			}
			r.Disks = append(r.Disks, d)
		}
	}
	port, err := devcluster.FreePorts(2 * nodesCount)
	if err != nil {
		return err
	}
	opt := devcluster.Options{
		Binary: r.cfg.Binary, Dir: r.dir, Nodes: nodesCount, Zones: []string{"a", "b", "c"}, MQTTPort: port, HTTPPort: port + nodesCount,
		Shards: shardsCount, FlushInterval: flushInterval, Debug: true, Environ: append(append([]string(nil), r.cfg.Environ...), r.fault.Environ...),
	}
	if r.fault.Zones {
		if r.Zones, err = zones.New(nodesCount); err != nil {
			return err
		}
		for i := range nodesCount {
			opt.Hosts = append(opt.Hosts, r.Zones.Host(i))
		}
		opt.Prefix = r.Zones.Prefix
	}
	if r.fault.Clocks {
		if r.cfg.Wrong == "" {
			return ErrNoClocks
		}
		opt.Binary, opt.Prefix = r.cfg.Wrong, r.clockFile
		if err := os.MkdirAll(r.dir, 0o750); err != nil {
			return fmt.Errorf("make directory for clocks: %w", err)
		}
	}
	if r.fault.Database {
		if r.db, err = startDatabase(rand.New(rand.NewPCG(r.cfg.Seed, 3))); err != nil {
			return err
		}
		opt.Database = r.db.url
	}
	if r.Cluster, err = devcluster.Start(ctx, slog.New(slog.DiscardHandler), opt); err != nil {
		return fmt.Errorf("start cluster: %w", err)
	}
	if err := r.ready(ctx); err != nil {
		return err
	}
	var mqtt, urls []string
	for _, n := range r.Cluster.Nodes() {
		mqtt, urls = append(mqtt, n.MQTT), append(urls, "http://"+n.HTTP)
	}
	r.fleet = newFleet(r.cfg.Load, mqtt, urls)
	r.fleet.start(ctx)
	ctx, r.endRead = context.WithCancel(ctx)
	r.readers = startReaders(ctx, r.Cluster.Nodes(), r.fleet.mqtt)
	r.ops = startRegisters(ctx, r.Cluster.Nodes(), r.cfg.Seed)
	r.watch = startWatch(ctx, r.nodes)
	r.orders = startCommands(ctx, mqtt, r.cfg.Seed)
	return nil
}

// drive lets the load run, the fault strike and the cluster recover.
func (r *Run) drive(ctx context.Context, res *Result) {
	sleep(ctx, warmUp+baselineSpan)
	baseline := func() float64 {
		now := time.Now()
		return r.fleet.meter.rate(now.Add(-baselineSpan), now)
	}
	res.Baseline = baseline()
	for end := r.patience(readyMax); res.Baseline == 0 && time.Now().Before(end) && ctx.Err() == nil; res.Baseline = baseline() {
		sleep(ctx, meterSlot) // clients are still connecting
	}
	if res.Baseline == 0 {
		res.fail("C7", "nothing is acknowledged before the fault")
		return
	}
	first, err := r.resources(ctx)
	if err != nil {
		res.fail("C8", "%v", err)
	}
	r.first = first
	for end := r.patience(readyMax); !r.orders.subscribed() && time.Now().Before(end) && ctx.Err() == nil; {
		sleep(ctx, commandPause)
	}
	if r.cfg.JudgeRoutes && !r.startChurn(ctx, res) {
		return
	}
	r.orders.still.Store(false)
	r.struck = time.Now()
	r.watch.begin()
	r.say("strikes")
	if err := r.fault.Strike(ctx, r); err != nil {
		res.fail("fault", "%v", err)
	}
	r.say("healed, %d acknowledged", r.fleet.acked())
	for _, d := range r.Disks {
		d.Heal()
	}
	if r.Zones != nil {
		r.Zones.Heal()
	}
	if err := r.ready(ctx); err != nil {
		res.fail("C7", "%v", err)
		r.broken = true
		return
	}
	r.visible(ctx, res)
	res.Note = r.note
	r.recover(ctx, res)
	if r.routes != nil {
		r.orders.still.Store(true)
		r.routes.judge(ctx, r, res)
	}
	res.Slowest = r.fleet.probes.latency(r.struck, time.Now(), 1)
	sleep(ctx, time.Second)
}

// startChurn begins to change subscriptions once every device hears its commands, and
// every node knows of that.
func (r *Run) startChurn(ctx context.Context, res *Result) bool {
	values, err := r.indexes(ctx, func(values []float64) bool {
		return r.orders.subscribed() && slices.Min(values) == slices.Max(values)
	})
	if err != nil {
		res.fail("C11", "before the fault: devices subscribed %v, filters %v: %v", r.orders.subscribed(), values, err)
		return false
	}
	var mqtt []string
	for _, n := range r.Cluster.Nodes() {
		mqtt = append(mqtt, n.MQTT)
	}
	r.routes = startRoutes(ctx, mqtt, r.cfg.Seed, values[0])
	return true
}

// visible waits until the metric of the fault has been seen to move (C10).
func (r *Run) visible(ctx context.Context, res *Result) {
	if r.fault.Metric == "" {
		return
	}
	for end := time.Now().Add(visibleMax); !r.watch.saw(r.fault.Metric, r.fault.Above); sleep(ctx, scrapeEvery) {
		if time.Now().After(end) {
			res.fail("C10", "%s has not moved; what has: %v", r.fault.Metric, r.watch.tell("sluice_"))
			return
		}
	}
}

// nodes lists those that are, or should be, part of the cluster.
func (r *Run) nodes() []*devcluster.Node {
	r.members.Lock()
	defer r.members.Unlock()
	return slices.DeleteFunc(slices.Clone(r.Cluster.Nodes()), func(n *devcluster.Node) bool { return slices.Contains(r.gone, n) })
}

// recover waits until the rate is back.
func (r *Run) recover(ctx context.Context, res *Result) {
	for end := time.Now().Add(backMax); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, meterSlot) {
		if d, ok := r.fleet.meter.back(r.struck, rateFraction*res.Baseline, rateWindow); ok {
			res.Back = d
			return
		}
	}
	res.fail("C7", "the rate of acknowledgements is not back to %.0f/s after %v", rateFraction*res.Baseline, time.Since(r.struck).Round(time.Second))
}

// ready waits until every shard has a leader on every node that runs.
func (r *Run) ready(ctx context.Context) error {
	within := r.cfg.Patience
	if within == 0 {
		within = readyMax
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return r.Cluster.WaitReady(ctx)
}

func (r *Run) say(format string, args ...any) {
	if r.cfg.Progress != nil {
		fmt.Fprintf(r.cfg.Progress, "%s %-4s %s\n", time.Now().UTC().Format("15:04:05.000"), r.fault.ID, fmt.Sprintf(format, args...))
	}
}

// strikes marks the moment from which recovery is measured.
func (r *Run) strikes() { r.struck = time.Now() }

// close ends everything that start began.
func (r *Run) close() {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownMax)
	defer cancel()
	r.endReads()
	if r.fleet != nil {
		r.fleet.stop()
	}
	if r.orders != nil {
		r.orders.stop(ctx, time.Now())
	}
	if r.Cluster != nil {
		for _, n := range r.Cluster.Nodes() {
			_ = n.Signal(syscall.SIGCONT) // one that is stopped cannot end
		}
		r.killBroken()
		if err := r.Cluster.Stop(ctx); err != nil {
			r.say("stop cluster: %v", err)
		}
	}
	for _, d := range r.Disks {
		if err := d.Close(); err != nil {
			r.say("%v", err)
		}
	}
	if r.Zones != nil {
		if err := r.Zones.Close(); err != nil {
			r.say("%v", err)
		}
	}
	if r.db != nil {
		if err := r.db.close(); err != nil {
			r.say("%v", err)
		}
	}
	if r.discard {
		if err := os.RemoveAll(r.dir); err != nil {
			r.say("%v", err)
		}
	}
}

// endReads ends the readers and waits for them.
func (r *Run) endReads() {
	if r.endRead != nil {
		r.endRead()
		r.readers.done.Wait()
		r.ops.done.Wait()
		r.watch.done.Wait()
		if r.routes != nil {
			r.routes.stop()
		}
	}
}

// killBroken ends the nodes of a cluster that has not come back: in order they
// would wait for each other.
func (r *Run) killBroken() {
	if !r.broken {
		return
	}
	for _, n := range r.Cluster.Nodes() {
		if n.Running() {
			_ = n.Kill() // it is gone already, or the stop says so
		}
	}
}

// busiest is the node that leads most shards; ties go to the first.
func (r *Run) busiest(ctx context.Context) (int, error) {
	leads := map[string]int{}
	st, err := r.status(ctx)
	if err != nil {
		return 0, err
	}
	for _, s := range st.Shards {
		leads[string(s.Leader)]++
	}
	best := 0
	for i, n := range r.Cluster.Nodes() {
		if leads[n.ID] > leads[r.Cluster.Nodes()[best].ID] {
			best = i
		}
	}
	return best, nil
}

// status asks the first node that answers.
func (r *Run) status(ctx context.Context) (st api.Status, err error) {
	for _, n := range r.nodes() {
		if !n.Running() {
			continue
		}
		cl, cerr := n.Client()
		if cerr != nil {
			return st, cerr
		}
		one, cancel := context.WithTimeout(ctx, statusMax)
		st, err = cl.Status(one)
		cancel()
		cl.Close()
		if err == nil {
			return st, nil
		}
	}
	return st, errors.Join(errors.New("no node answers"), err)
}

// statusMax bounds the wait for one node's status.
const statusMax = 10 * time.Second

// kill ends nodes at one moment.
func (r *Run) kill(nodes ...int) error {
	var errs []error
	for _, i := range nodes {
		errs = append(errs, r.Cluster.Nodes()[i].Signal(syscall.SIGSTOP)) // so that all are gone in one moment
	}
	for _, i := range nodes {
		errs = append(errs, r.Cluster.Nodes()[i].Kill())
	}
	return errors.Join(errs...)
}

// powerLoss takes the power of nodes at one moment and leaves their disks in a
// state that could be; rng nil is the worst one.
func (r *Run) powerLoss(rng *rand.Rand, nodes ...int) error {
	for _, i := range nodes {
		r.Disks[i].Cut()
	}
	errs := []error{r.kill(nodes...)}
	for _, i := range nodes {
		l, err := r.Disks[i].Restore(rng)
		errs = append(errs, err)
		r.say("n%d has lost its power: %v", i, l)
	}
	return errors.Join(errs...)
}

func (r *Run) startNodes(nodes ...int) error {
	var errs []error
	for _, i := range nodes {
		errs = append(errs, r.Cluster.Nodes()[i].Start())
	}
	return errors.Join(errs...)
}

// upTo draws a duration.
func (r *Run) upTo(d time.Duration) time.Duration { return time.Duration(r.rng.Int64N(int64(d))) }

// ended waits until a node's process has ended by itself.
func (r *Run) ended(ctx context.Context, node int, within time.Duration) error {
	n := r.Cluster.Nodes()[node]
	for end := time.Now().Add(within); time.Now().Before(end); sleep(ctx, 10*time.Millisecond) {
		if !n.Running() {
			return nil
		}
	}
	return fmt.Errorf("%s still runs after %v", n.ID, within)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
