package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/simulate"
)

type simulateCmd struct {
	apiFlag
	Broker      []string      `placeholder:"HOST:PORT" help:"MQTT addresses of nodes; default: what --api says."`
	Devices     int           `default:"100" help:"Number of devices."`
	Interval    time.Duration `default:"1s" help:"Between two messages of a device."`
	Duration    time.Duration `default:"0s" help:"Ends after this time; 0: with Ctrl-C."`
	Seed        uint64        `default:"0" help:"Equal seeds make equal devices."`
	Faults      time.Duration `default:"1h" help:"Mean time between two faults of a device; 0: none."`
	Prefix      string        `default:"sim-" help:"Beginning of the device ids."`
	Connections int           `default:"1000" help:"MQTT connections at most; more devices share them."`
}

// Run implements kong.
func (c *simulateCmd) Run(ctx context.Context) error {
	if c.Duration < 0 || c.Faults < 0 {
		return errors.New("duration and faults must not be negative")
	}
	cfg := simulate.Config{
		Brokers: c.Broker, Devices: c.Devices, Interval: c.Interval, Seed: c.Seed, FaultEvery: c.Faults, Prefix: c.Prefix, ConnectionsMax: c.Connections,
	}
	if c.Faults == 0 {
		cfg.FaultEvery = -1
	}
	if len(cfg.Brokers) == 0 {
		err := c.with(func(cl *client.Client) error {
			st, err := cl.Status(ctx)
			if err == nil {
				cfg.Brokers, err = brokersOf(&st)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := simulate.New(logger, cfg)
	if err != nil {
		return err
	}
	if c.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Duration)
		defer cancel()
	}
	stop := watchFleet(s)
	err = s.Run(ctx)
	stop()
	if err != nil {
		return err
	}
	return fleetSummary(os.Stdout, s.Stats())
}

// watchFleet shows the fleet's figures until stop is called.
func watchFleet(s *simulate.Simulator) (stop func()) {
	b := newBar(os.Stderr)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(max(b.every(), time.Second))
		defer tick.Stop()
		for {
			select {
			case <-done:
				b.clear()
				return
			case now := <-tick.C:
				st := s.Stats()
				note := fmt.Sprintf("acknowledged, %s under way, p50 %v, p99 %v", count(st.Published-st.Acknowledged-st.Quarantined-st.Refused-st.Unanswered), tidy(st.P50), tidy(st.P99))
				if st.Skipped > 0 {
					note += fmt.Sprintf(", %s skipped", count(st.Skipped))
				}
				b.draw(now, 0, 0, st.Acknowledged, note)
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

// fleetSummary is an error when nothing was acknowledged.
func fleetSummary(w io.Writer, st simulate.Stats) error {
	fmt.Fprintf(w, "%s messages published over %s connections, %s acknowledged; latency p50 %v, p99 %v, max %v\n",
		count(st.Published), count(st.Connections), count(st.Acknowledged), tidy(st.P50), tidy(st.P99), tidy(st.Max))
	for _, n := range []struct {
		what string
		n    int64
	}{
		{"sent again after a connection was lost", st.Resent},
		{"skipped because too many waited", st.Skipped},
		{"in quarantine", st.Quarantined},
		{"refused", st.Refused},
		{"without an answer at the end", st.Unanswered},
	} {
		if n.n > 0 {
			fmt.Fprintf(w, "  %s: %s\n", n.what, count(n.n))
		}
	}
	if st.Acknowledged == 0 {
		return errors.New("no message was acknowledged: check --broker or --api, and that the cluster runs")
	}
	return nil
}

// tidy leaves three digits or so.
func tidy(d time.Duration) time.Duration {
	switch {
	case d > time.Second:
		return d.Round(10 * time.Millisecond)
	case d > time.Millisecond:
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}
