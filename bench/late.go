package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// LateConfig of the scenario of devices that come back with a day of readings.
type LateConfig struct {
	Binary   string        // the sluice executable
	Dir      string        // for the cluster's data; "" is a temporary directory
	Database string        // postgres:// URL of an empty database
	Rate     float64       // live messages per second, throughout
	LateRate float64       // late messages per second while devices upload
	Rounds   int           // of both: live rows alone, and beside late ones
	Phase    time.Duration // how long live rows flow alone, and how long devices upload
	Shards   uint32
	Progress io.Writer // what is being done, may be nil
}

// Late is what a backlog of devices costs the live rows.
type Late struct {
	Rate   float64     `json:"live_per_second"`
	Rounds []LateRound `json:"rounds"`
	Alone  Span        `json:"alone"`  // of all rounds: from the acknowledgement to the row
	Beside Span        `json:"beside"` // of all rounds, beside late rows
	P50    float64     `json:"p50_ratio"`
	P99    float64     `json:"p99_ratio"`
	Rows   float64     `json:"late_rows_per_second"` // mean, from the first upload until all are in the database
}

// LateRound is one round.
type LateRound struct {
	Alone  Span          `json:"alone"`
	Beside Span          `json:"beside"`
	Rows   uint64        `json:"late_rows"`
	Took   time.Duration `json:"late_ns"` // until all were in the database
}

const (
	lateDay         = 24 * time.Hour
	lateConnections = 16
	lateWindow      = 16
	lateDevices     = 8  // per connection
	lateArray       = 32 // messages per publish
	// lateDeadline bounds how long late rows may take: longer, and they starve.
	lateDeadline = 15 * time.Minute
)

// RunLate measures live rows without and beside late ones, in turn.
func RunLate(ctx context.Context, cfg LateConfig) (out *Late, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	l := &lateRun{databaseRun: databaseRun{url: cfg.Database, progress: cfg.Progress}, cfg: cfg}
	if err := l.connect(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.db.Close(context.WithoutCancel(ctx))) }()
	c, stop, err := scratchCluster(ctx, cfg.Binary, cfg.Dir, cfg.Shards, "SLUICE_STORE_DATABASE="+cfg.Database)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	l.cluster = c
	return l.run(ctx)
}

type lateRun struct {
	databaseRun
	cfg   LateConfig
	probe atomic.Pointer[lagProbe] // of the phase under way
}

func (l *lateRun) run(ctx context.Context) (*Late, error) {
	flow, stop := context.WithCancel(ctx)
	var live sync.WaitGroup
	live.Go(func() { l.live(flow) })
	defer live.Wait()
	defer stop()
	if err := l.patiently(ctx, l.flows); err != nil {
		return nil, err
	}
	out := &Late{Rate: l.cfg.Rate}
	alone, beside := hdrhistogram.New(1, lagMicrosMax, 3), hdrhistogram.New(1, lagMicrosMax, 3)
	rows, took := 0.0, time.Duration(0)
	for n := range l.cfg.Rounds {
		var r LateRound
		l.say("round %d of %d: live rows alone, %v", n+1, l.cfg.Rounds, l.cfg.Phase)
		quiet, err := l.phase(ctx, func() error { return pauseFor(ctx, l.cfg.Phase) })
		if err != nil {
			return nil, err
		}
		l.say("round %d of %d: and late ones", n+1, l.cfg.Rounds)
		busy, err := l.phase(ctx, func() error { return l.late(ctx, n, &r) })
		if err != nil {
			return nil, err
		}
		alone.Merge(quiet)
		beside.Merge(busy)
		r.Alone, r.Beside = spanOf(quiet), spanOf(busy)
		rows, took = rows+float64(r.Rows), took+r.Took
		out.Rounds = append(out.Rounds, r)
	}
	out.Alone, out.Beside, out.Rows = spanOf(alone), spanOf(beside), rows/took.Seconds()
	out.P50, out.P99 = out.Beside.P50/max(out.Alone.P50, 0.001), out.Beside.P99/max(out.Alone.P99, 0.001)
	return out, nil
}

func pauseFor(ctx context.Context, d time.Duration) error {
	sleep(ctx, d)
	return ctx.Err()
}

// live publishes until ctx ends; connections that are cut are made again.
func (l *lateRun) live(ctx context.Context) {
	load := l.publishers(l.cfg.Rate, "live")
	load.Arrived = func(device string, at time.Time) {
		if p := l.probe.Load(); p != nil {
			p.acked(device, at)
		}
	}
	for ctx.Err() == nil {
		load.Duration = loadStep
		if _, err := Run(ctx, load); err != nil && ctx.Err() == nil {
			l.say("connections of live devices were cut, others are made")
			_ = pauseFor(ctx, time.Second) // its error is the end of the loop
		}
	}
}

// flows waits for the first rows, which come after the migrations.
func (l *lateRun) flows(ctx context.Context) error {
	if err := pauseFor(ctx, warmUp); err != nil {
		return err
	}
	var there bool
	err := l.db.QueryRow(ctx, "select exists (select from telemetry)").Scan(&there)
	if err == nil && !there {
		err = errors.New("live messages are acknowledged, but no row is in the database: look at the logs of the nodes")
	}
	return err
}

// phase samples live rows while something goes on.
func (l *lateRun) phase(ctx context.Context, during func() error) (*hdrhistogram.Histogram, error) {
	probe, err := newLagProbe(ctx, l.url, lagOften)
	if err != nil {
		return nil, err
	}
	l.probe.Store(probe)
	err = during()
	l.probe.Store(nil)
	if err == nil {
		err = probe.settle(ctx)
	}
	return probe.end(), err
}

// late lets devices upload a day of readings each and waits until these are in the
// database.
func (l *lateRun) late(ctx context.Context, round int, r *LateRound) error {
	before, err := l.lateRows(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	each := l.cfg.LateRate * l.cfg.Phase.Seconds() / lateConnections // messages of a connection
	step := time.Duration(float64(lateDay-time.Hour) / max(each, 1))
	res, err := Run(ctx, Load{
		Addrs: addrs(l.cluster), Connections: lateConnections, Window: lateWindow, Devices: lateDevices, Readings: lateArray,
		Rate: l.cfg.LateRate / lateArray, Duration: l.cfg.Phase, Prefix: fmt.Sprintf("late%d", round),
		At: func(seq uint64) time.Time { return start.Add(-lateDay + time.Duration(seq)*step) },
	})
	if err != nil {
		return fmt.Errorf("upload late readings: %w", err)
	}
	r.Rows = res.Acked * lateArray * readingsPerMessage
	l.say("round %d: %d late rows were uploaded in %v, all of them are waited for", round+1, r.Rows, time.Since(start).Round(time.Second))
	for {
		now, err := l.lateRows(ctx)
		switch {
		case err == nil && now-before >= float64(r.Rows):
			r.Took = time.Since(start)
			return nil
		case time.Since(start) > lateDeadline:
			return fmt.Errorf("late rows starve: %.0f of %d are in the database after %v (%w)", now-before, r.Rows, lateDeadline, err)
		}
		if err := pauseFor(ctx, drainLook); err != nil {
			return err
		}
	}
}

// lateRows is how many late rows the nodes have written.
func (l *lateRun) lateRows(ctx context.Context) (sum float64, err error) {
	for _, n := range l.cluster.Nodes() {
		v, err := scrape(ctx, n, "sluice_shard_flush_late_rows_total")
		if err != nil {
			return 0, err
		}
		sum += v[0]
	}
	return sum, nil
}

// Table writes the result for people.
func (o *Late) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%.0f live messages/s of %d readings; from PUBACK until the row is in the database\n\n", o.Rate, readingsPerMessage)
	fmt.Fprintf(&b, "%-44s %10s %10s %10s %8s\n", "", "p50", "p99", "max", "samples")
	for i := range o.Rounds {
		r := &o.Rounds[i]
		r.Alone.line(&b, fmt.Sprintf("round %d, alone", i+1))
		r.Beside.line(&b, fmt.Sprintf("round %d, beside %d late rows in %v", i+1, r.Rows, r.Took.Round(time.Second)))
	}
	o.Alone.line(&b, "all rounds, alone")
	o.Beside.line(&b, "all rounds, beside late rows")
	fmt.Fprintf(&b, "%-44s %9.2fx %9.2fx\n\n%.0f late rows/s, until all were in the database\n", "beside / alone", o.P50, o.P99, o.Rows)
	_, err := io.WriteString(w, b.String())
	return err
}
