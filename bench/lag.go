package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// LagConfig of the scenario that finds what a cluster takes, and then measures how
// far its database is behind at half of that.
type LagConfig struct {
	Binary   string        // the sluice executable
	Dir      string        // for the cluster's data; "" is a temporary directory
	Database string        // postgres:// URL of an empty database
	Flat     time.Duration // how long it is loaded as fast as it acknowledges
	Steady   time.Duration // how long at half of that
	Shards   uint32
	Progress io.Writer // what is being done, may be nil
}

// Lag is how far the database is behind the acknowledgements.
type Lag struct {
	Acked    float64 `json:"acknowledged_per_second"` // as fast as the cluster acknowledges
	Stored   float64 `json:"stored_per_second"`       // messages that reached the database meanwhile
	Capacity float64 `json:"capacity_per_second"`     // what both sustain: the lower one
	Rate     float64 `json:"rate_per_second"`         // half of it
	Puback   Span    `json:"puback"`                  // at that rate, from the intended sending
	Database Span    `json:"database"`                // from the acknowledgement to the row
}

// Span is a distribution in milliseconds.
type Span struct {
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	Most    float64 `json:"max_ms"`
	Samples int64   `json:"samples"`
}

const (
	// lagOften is how far apart samples are where there are tails to be seen.
	lagOften = 23 * time.Millisecond // no divisor of the second that flushes are apart
	// lagWindow is what connections have in flight where they send as fast as they can.
	lagWindow = 64
)

// RunLag loads a fresh cluster on a database.
func RunLag(ctx context.Context, cfg LagConfig) (out *Lag, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	r := &databaseRun{url: cfg.Database, progress: cfg.Progress}
	if err := r.connect(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.db.Close(context.WithoutCancel(ctx))) }()
	c, stop, err := scratchCluster(ctx, cfg.Binary, cfg.Dir, cfg.Shards, "SLUICE_STORE_DATABASE="+cfg.Database)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	r.cluster, out = c, &Lag{}
	if err := r.capacity(ctx, cfg.Flat, out); err != nil {
		return nil, err
	}
	return out, r.lag(ctx, cfg.Steady, out)
}

// capacity keeps every connection's window full. What only the log takes is not
// counted: it has to go into the database some time.
func (o *databaseRun) capacity(ctx context.Context, d time.Duration, out *Lag) error {
	flat := o.publishers(0, "warm")
	flat.Window, flat.Present = lagWindow, false
	start := time.Now()
	flat.At = func(seq uint64) time.Time { return start.Add(time.Duration(seq) * time.Millisecond) }
	flat.Duration = warmUp
	if _, err := Run(ctx, flat); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	if err := o.drained(ctx, 0); err != nil {
		return err
	}
	o.say("as fast as the cluster acknowledges, %v", d)
	flat.Duration, flat.Prefix = d, "flat"
	start = time.Now()
	res, err := Run(ctx, flat)
	if err != nil {
		return err
	}
	var waiting uint64
	if err := o.patiently(ctx, func(ctx context.Context) (err error) { waiting, err = o.pending(ctx); return err }); err != nil {
		return err
	}
	took := time.Since(start).Seconds()
	out.Acked = res.Rate()
	out.Stored = (float64(res.Acked) - float64(waiting)) / took
	out.Capacity = min(out.Acked, out.Stored)
	o.say("%.0f messages/s acknowledged, %.0f stored; what waits is stored first", out.Acked, out.Stored)
	return o.drained(ctx, 0)
}

// lag offers half of the capacity.
func (o *databaseRun) lag(ctx context.Context, d time.Duration, out *Lag) error {
	out.Rate = out.Capacity / 2
	l := o.publishers(out.Rate, "half")
	l.Duration = warmUp
	if _, err := Run(ctx, l); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	o.say("%.0f messages/s, %v", out.Rate, d)
	probe, err := newLagProbe(ctx, o.url, lagOften)
	if err != nil {
		return err
	}
	l.Duration, l.Arrived = d, probe.acked
	res, err := Run(ctx, l)
	if err == nil {
		err = probe.settle(ctx)
	}
	hist := probe.end()
	if err != nil {
		return err
	}
	out.Puback, out.Database = spanOf(res.Latency), spanOf(hist)
	return nil
}

// Table writes the lag for people.
func (o *Lag) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "messages of %d readings per second: %.0f acknowledged as fast as they go, %.0f stored meanwhile; capacity %.0f\n\n", readingsPerMessage, o.Acked, o.Stored, o.Capacity)
	fmt.Fprintf(&b, "%-44s %10s %10s %10s %8s\n", fmt.Sprintf("at half of it, %.0f messages/s", o.Rate), "p50", "p99", "max", "samples")
	o.Puback.line(&b, "sent until PUBACK")
	o.Database.line(&b, "PUBACK until the row is in the database")
	_, err := io.WriteString(w, b.String())
	return err
}
