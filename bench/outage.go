package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// OutageConfig of the scenario of a database that is away.
type OutageConfig struct {
	Binary   string        // the sluice executable
	Dir      string        // for the cluster's data; "" is a temporary directory
	Database string        // postgres:// URL of an empty database
	For      time.Duration // how long it is away
	Steady   time.Duration // how long is measured before the outage and after it
	Rate     float64       // messages per second, throughout
	Shards   uint32
	Progress io.Writer // what is being done, may be nil
}

// Outage is what became of the messages, and what it cost.
type Outage struct {
	For     time.Duration `json:"outage_ns"`
	Rate    float64       `json:"offered_per_second"`
	Acked   uint64        `json:"acknowledged"`
	Refused uint64        `json:"unacknowledged"` // and stored or not: their connection was cut
	Rows    int64         `json:"rows"`           // in the database at the end
	Missing int64         `json:"rows_lost"`      // of what was acknowledged
	Twice   int64         `json:"rows_double"`    // of one device, time and sensor
	Phases  []OutagePhase `json:"phases"`
	Backlog struct {
		Bytes     int64   `json:"bytes"` // of log, all replicas
		Messages  uint64  `json:"messages"`
		HoursLeft float64 `json:"hours_left"` // of the node with the least; negative: it does not grow
	} `json:"backlog_at_the_end_of_the_outage"`
	Drain     time.Duration `json:"drain_ns"`
	DrainRows float64       `json:"drained_rows_per_second"` // of the backlog and of what came meanwhile
}

// OutagePhase is one stretch of the run.
type OutagePhase struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"duration_ns"`
	P50      float64       `json:"puback_p50_ms"`
	P99      float64       `json:"puback_p99_ms"`
	// Database is from sending until a row is there, of messages sampled twice per
	// second; 0 when none arrived.
	Database50 float64 `json:"database_p50_ms"`
	Database99 float64 `json:"database_p99_ms"`
	CopyRows   float64 `json:"rows_per_copy"` // 0: no COPY
	Memory     []Trend `json:"memory"`        // of every node
}

const (
	outageConnections = 48
	outageWindow      = 128
	drainStep         = 10 * time.Second
	drainDeadline     = 2 * time.Hour // a drain that takes longer has failed
)

// RunOutage runs a cluster on a database, takes that away and gives it back,
// under the same load throughout.
func RunOutage(ctx context.Context, cfg OutageConfig) (out *Outage, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	o := &outageRun{cfg: cfg, out: &Outage{For: cfg.For, Rate: cfg.Rate}, databaseRun: databaseRun{url: cfg.Database, progress: cfg.Progress}}
	nodesURL, err := o.relay()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.relayed.close()) }()
	if err = o.connect(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.db.Close(context.WithoutCancel(ctx))) }()
	c, stop, err := scratchCluster(ctx, cfg.Binary, cfg.Dir, cfg.Shards, "SLUICE_STORE_DATABASE="+nodesURL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	o.cluster = c
	if err := o.run(ctx); err != nil {
		return nil, err
	}
	return o.out, nil
}

// outageRun is the run under way.
type outageRun struct {
	databaseRun // not through the relay
	cfg         OutageConfig
	out         *Outage
	relayed     *cut
	acked       uint64 // of all loads
}

// relay puts the cut between the nodes and the database.
func (o *outageRun) relay() (string, error) {
	u, err := url.Parse(o.cfg.Database)
	if err != nil || u.Hostname() == "" || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return "", errors.New("the database is not postgres://USER@HOST:PORT/NAME: name an empty one")
	}
	port := u.Port()
	if port == "" {
		port = "5432"
	}
	if o.relayed, err = newCut(net.JoinHostPort(u.Hostname(), port)); err != nil {
		return "", err
	}
	u.Host = o.relayed.addr()
	return u.String(), nil
}

func (o *outageRun) run(ctx context.Context) error {
	o.say("the database is there, %v", o.cfg.Steady)
	if _, err := o.load(ctx, warmUp); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	if err := o.phase(ctx, "before", func(p *phaseRun) error { return p.load(ctx, o.cfg.Steady) }); err != nil {
		return err
	}
	o.say("the database is away, %v", o.cfg.For)
	o.relayed.set(true)
	if err := o.phase(ctx, "away", func(p *phaseRun) error { return p.load(ctx, o.cfg.For) }); err != nil {
		return err
	}
	if err := o.patiently(ctx, o.backlog); err != nil {
		return err
	}
	before, err := o.rows(ctx)
	if err != nil {
		return err
	}
	o.say("the database is back: %d messages wait", o.out.Backlog.Messages)
	start := time.Now()
	o.relayed.set(false)
	if err := o.phase(ctx, "drain", func(p *phaseRun) error { return o.drain(ctx, p) }); err != nil {
		return err
	}
	after, err := o.rows(ctx)
	if err != nil {
		return err
	}
	o.out.Drain = time.Since(start)
	o.out.DrainRows = float64(after-before) / o.out.Drain.Seconds()
	o.say("all is drained after %v", o.out.Drain.Round(time.Second))
	if err := o.phase(ctx, "after", func(p *phaseRun) error { return p.load(ctx, o.cfg.Steady) }); err != nil {
		return err
	}
	return o.judge(ctx)
}

// load publishes for a while and counts what was acknowledged.
func (o *outageRun) load(ctx context.Context, d time.Duration, watch ...func(string, time.Time)) (*Result, error) {
	l := Load{
		Addrs: addrs(o.cluster), Connections: outageConnections, Window: outageWindow, Rate: o.cfg.Rate, Duration: d, Prefix: "outage", Present: true,
	}
	if len(watch) > 0 {
		l.Sent = watch[0]
	}
	res, err := Run(ctx, l)
	if res != nil {
		o.acked += res.Acked
		o.out.Refused += res.Published - res.Acked
	}
	return res, err
}

// drain goes on until only what has just come waits: what two seconds bring.
func (o *outageRun) drain(ctx context.Context, p *phaseRun) error {
	for end := time.Now().Add(drainDeadline); ; {
		if err := p.load(ctx, drainStep); err != nil {
			return err
		}
		waiting, err := o.pending(ctx)
		if err == nil && float64(waiting) <= max(2*o.cfg.Rate, 1000) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d messages still wait %v after the outage (%w)", waiting, drainDeadline, err)
		}
	}
}

// backlog is what the status shows.
func (o *outageRun) backlog(ctx context.Context) error {
	cl, err := o.cluster.Nodes()[0].Client()
	if err != nil {
		return err
	}
	defer cl.Close()
	st, err := cl.Status(ctx)
	if err != nil {
		return fmt.Errorf("read the status: %w", err)
	}
	b := &o.out.Backlog
	b.Bytes, b.Messages, b.HoursLeft = 0, 0, -1
	for i := range st.Nodes {
		n := st.Nodes[i].Backlog
		if n == nil {
			continue
		}
		b.Bytes += n.Waiting
		b.Messages += n.Messages
		if n.HoursLeft >= 0 && (b.HoursLeft < 0 || n.HoursLeft < b.HoursLeft) {
			b.HoursLeft = n.HoursLeft
		}
	}
	return nil
}

func (o *outageRun) rows(ctx context.Context) (n int64, err error) {
	if err := o.db.QueryRow(ctx, "select count(*) from telemetry").Scan(&n); err != nil {
		return 0, fmt.Errorf("count rows: %w", err)
	}
	return n, nil
}

// flushDeadline bounds the wait for the last rows.
const flushDeadline = 2 * time.Minute

// judge holds what the database has against what was acknowledged.
func (o *outageRun) judge(ctx context.Context) error {
	for end := time.Now().Add(flushDeadline); ; time.Sleep(time.Second) {
		if n, err := o.pending(ctx); err == nil && n == 0 || time.Now().After(end) {
			break
		}
	}
	o.say("counting")
	const want = `select count(*), coalesce(sum(n - 1), 0)::bigint from (select count(*) as n from telemetry group by device_id, time, sensor) t`
	var distinct int64
	if err := o.db.QueryRow(ctx, want).Scan(&distinct, &o.out.Twice); err != nil {
		return fmt.Errorf("count rows: %w", err)
	}
	o.out.Acked, o.out.Rows = o.acked, distinct+o.out.Twice
	o.out.Missing = max(0, int64(o.acked)*readingsPerMessage-distinct)
	return nil
}

// phaseRun measures one stretch.
type phaseRun struct {
	run     *outageRun
	latency *hdrhistogram.Histogram
	lag     *lagProbe
}

// loadStep is how long connections last: what ends one of them early, such as a
// publish that a node on a busy machine does not commit in time, ends it for that
// long.
const loadStep = 20 * time.Second

// patience bounds how long a cluster on a busy machine may refuse connections and
// questions before the run is given up.
const patience = 5 * time.Minute

func (p *phaseRun) load(ctx context.Context, d time.Duration) error {
	answered := time.Now()
	for end := time.Now().Add(d); time.Now().Before(end); {
		res, err := p.run.load(ctx, min(loadStep, time.Until(end)), p.lag.sent)
		if ctx.Err() != nil || res == nil && time.Since(answered) > patience {
			return errors.Join(err, ctx.Err())
		}
		if res == nil {
			p.run.say("no load for a moment: %v", err)
			time.Sleep(time.Second)
			continue
		}
		answered = time.Now()
		p.latency.Merge(res.Latency)
		if err != nil {
			p.run.say("connections were cut, others are made (%d publishes of them are not acknowledged)", res.Published-res.Acked)
		}
	}
	return nil
}

// phase runs one stretch with everything that watches it.
func (o *outageRun) phase(ctx context.Context, name string, f func(*phaseRun) error) error {
	before, err := o.copied(ctx)
	if err != nil {
		return err
	}
	lag, err := newLagProbe(ctx, o.cfg.Database, lagSample)
	if err != nil {
		return err
	}
	p := &phaseRun{run: o, latency: hdrhistogram.New(1, latencyMaxMicros, 3), lag: lag}
	memory := watchMemory(o.cluster)
	start := time.Now()
	err = f(p)
	out := OutagePhase{
		Name: name, Duration: time.Since(start), Memory: memory(),
		P50: float64(p.latency.ValueAtQuantile(50)) / 1000, P99: float64(p.latency.ValueAtQuantile(99)) / 1000,
	}
	lags := lag.end()
	if lags.TotalCount() > 0 {
		out.Database50, out.Database99 = float64(lags.ValueAtQuantile(50))/1000, float64(lags.ValueAtQuantile(99))/1000
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	after, err := o.copied(ctx)
	if err != nil {
		return err
	}
	out.CopyRows = after.mean(before)
	o.out.Phases = append(o.out.Phases, out)
	return nil
}
