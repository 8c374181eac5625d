package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/importer"
	"github.com/sluice-iot/sluice/internal/obs"
)

type importCmd struct {
	apiFlag `group:"Whereto:"`
	File    string   `arg:"" help:"CSV or NDJSON, plain or gzip; - is standard input."`
	Broker  []string `group:"Whereto:" placeholder:"HOST:PORT" help:"MQTT addresses of nodes; default: what --api says."`

	Format    string   `group:"Input:" default:"auto" enum:"auto,csv,ndjson" help:"auto, csv or ndjson (one message per line)."`
	Delimiter string   `group:"Input:" default:"auto" help:"Of CSV: a character, tab, space (runs of blanks) or auto."`
	NoHeader  bool     `group:"Input:" help:"The first line is data already."`
	Columns   []string `group:"Input:" placeholder:"NAME" help:"Names of the columns of a file without header; default c1,c2,..."`

	Device   string   `group:"Mapping:" placeholder:"COLUMN" help:"Column of the device id, or a template like engine-{unit}; default: device_id, device or id."`
	DeviceID string   `group:"Mapping:" name:"device-id" placeholder:"ID" help:"The device of the whole file."`
	Time     string   `group:"Mapping:" placeholder:"COLUMN" help:"Column of the time, or {date} {time}; none: time of receipt; default: timestamp, time, ts, unix_ts, datetime or date."`
	TimeUnit string   `group:"Mapping:" default:"auto" enum:"auto,s,ms,us,ns" help:"Unit of numbers since 1970; auto goes by magnitude."`
	Layout   string   `group:"Mapping:" name:"time-layout" placeholder:"LAYOUT" help:"Form of other times than RFC 3339, as Go writes it: 02.01.2006 15:04."`
	Base     string   `group:"Mapping:" name:"time-base" placeholder:"TIME" help:"For a column that counts cycles: the time of cycle 0."`
	Step     string   `group:"Mapping:" name:"time-step" placeholder:"DURATION" help:"And the time between two of them."`
	Sensors  []string `group:"Mapping:" placeholder:"COLUMN" help:"Columns with values; default: all others that hold numbers."`

	State       string `group:"Progress:" placeholder:"FILE" help:"Where the position is kept; default FILE.sluice-import, none for no resume."`
	Restart     bool   `group:"Progress:" help:"Begin at the first line, whatever the state file says."`
	Strict      bool   `group:"Progress:" help:"Fail in the end if any line is not stored as telemetry."`
	InFlight    int    `group:"Progress:" default:"512" help:"Publishes that may wait for their answer."`
	Connections int    `group:"Progress:" default:"0" help:"MQTT connections; 0: two per broker."`
	Batch       int    `group:"Progress:" default:"1" help:"Lines per publish."`
}

// Help is shown with --help.
func (importCmd) Help() string {
	return `Every line is published with QoS 1 and counts when it is acknowledged, which means
stored in a quorum of zones. An interrupted import goes on where it stopped when it is
run again. Lines that cannot be read are named on stderr and the rest goes on: the exit
code is 0 unless --strict is given, nothing at all could be stored, or it was interrupted.

  sluice import house.csv --device-id gas-meter --time unix_ts
  sluice import train.txt.gz --no-header --columns unit,cycle,s1,s2 --device engine-{unit} \
      --time cycle --time-base 2026-01-01T00:00:00Z --time-step 1m`
}

// Run implements kong.
func (c *importCmd) Run(ctx context.Context) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	if cfg.Cluster, cfg.Brokers, err = c.target(ctx); err != nil {
		return err
	}
	report := &lineReport{w: os.Stderr, what: "lines that are not stored as telemetry"}
	cfg.Bad = report.bad
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	im, err := importer.New(logger, cfg)
	if err != nil {
		return err
	}
	report.bar = newBar(os.Stderr)
	stop := watchImport(im, report.bar)
	sum, err := im.Run(ctx)
	stop()
	report.bar.clear()
	report.end()
	printSummary(os.Stdout, c.File, &sum, err)
	if err != nil {
		return importError(err, cfg.State)
	}
	return c.verdict(&sum)
}

// config is the part that asks nobody.
func (c *importCmd) config() (importer.Config, error) {
	cfg := importer.Config{
		Path: c.File, Stdin: os.Stdin, Format: c.Format, State: c.State, Restart: c.Restart,
		InFlight: c.InFlight, Connections: c.Connections, Batch: c.Batch,
		Mapping: importer.Mapping{
			Device: c.Device, DeviceID: c.DeviceID, Time: c.Time, TimeUnit: c.TimeUnit, TimeLayout: c.Layout,
			Sensors: c.Sensors, NoHeader: c.NoHeader, Columns: c.Columns, Delimiter: c.Delimiter,
		},
	}
	switch {
	case c.State == "none" || c.State == "" && c.File == "-":
		cfg.State = ""
	case c.State == "":
		cfg.State = c.File + ".sluice-import"
	}
	if c.Base != "" {
		t, err := parseTime(c.Base, time.Now())
		if err != nil {
			return cfg, fmt.Errorf("time-base: %w", err)
		}
		cfg.Mapping.TimeBase = t
	}
	if c.Step != "" {
		d, err := time.ParseDuration(c.Step)
		if err != nil || d <= 0 {
			return cfg, fmt.Errorf("time-step %q is not a positive duration: use 1s, 5m or the like", c.Step)
		}
		cfg.Mapping.TimeStep = d
	}
	if c.File != "-" {
		if _, err := os.Stat(c.File); err != nil {
			return cfg, fmt.Errorf("open input: %w", err)
		}
	}
	return cfg, cfg.Mapping.Validate()
}

// target finds the nodes.
func (c *importCmd) target(ctx context.Context) (cluster string, brokers []string, err error) {
	if len(c.Broker) > 0 {
		return "", c.Broker, nil
	}
	err = c.with(func(cl *client.Client) error {
		st, err := cl.Status(ctx)
		if err != nil {
			return err
		}
		cluster = st.ClusterID
		brokers, err = brokersOf(&st)
		return err
	})
	return cluster, brokers, err
}

// verdict decides the exit code of an import that reached the end.
func (c *importCmd) verdict(sum *importer.Summary) error {
	lost := sum.Bad + sum.Quarantined + sum.Refused
	switch {
	case lost > 0 && sum.Messages == 0:
		return errors.New("nothing was imported: see the lines above, and check the mapping of the columns")
	case lost > 0 && c.Strict:
		return fmt.Errorf("%d of %d lines are not stored as telemetry: correct and import them again, or go without --strict", lost, sum.Lines)
	}
	return nil
}

func importError(err error, state string) error {
	if !errors.Is(err, importer.ErrInterrupted) {
		return err
	}
	if state == "" {
		return fmt.Errorf("%w: there is no state file, run it again from the beginning", err)
	}
	return fmt.Errorf("%w: run the same command again to go on", err)
}

// badLinesShown bounds what a file with the wrong mapping prints.
const badLinesShown = 20

// lineReport prints the first bad lines and counts the others.
type lineReport struct {
	w    io.Writer
	bar  *bar
	seen int
	what string // the lines, in words
}

func (r *lineReport) bad(line int64, reason string) {
	r.seen++
	if r.seen > badLinesShown {
		return
	}
	if r.bar != nil {
		r.bar.clear()
	}
	fmt.Fprintf(r.w, "line %d: %s\n", line, strings.Join(strings.Fields(reason), " "))
}

func (r *lineReport) end() {
	if n := r.seen - badLinesShown; n > 0 {
		fmt.Fprintf(r.w, "and %d more %s\n", n, r.what)
	}
}

// watchImport draws until stop is called.
func watchImport(im *importer.Importer, b *bar) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(b.every())
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case now := <-tick.C:
				p := im.Progress()
				note := fmt.Sprintf("%s messages, %s readings", count(p.Messages), count(p.Readings))
				if p.Waiting != nil {
					note = "waiting for a node: " + obs.OneLine(p.Waiting.Error())
				}
				b.draw(now, p.Bytes, p.Size, p.Messages, note)
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

func printSummary(w io.Writer, file string, sum *importer.Summary, err error) {
	if sum.Already {
		fmt.Fprintf(w, "%s is imported already: %s lines, %s readings; import it again with --restart\n", file, count(sum.Lines), count(sum.Readings))
		return
	}
	if err != nil && sum.Lines == sum.Earlier.Lines {
		return
	}
	sent := sum.Messages - sum.Earlier.Messages
	fmt.Fprintf(w, "%s: %s lines, %s messages acknowledged, %s readings, in %v (%s messages/s)\n", file, count(sum.Lines), count(sum.Messages), count(sum.Readings),
		sum.Elapsed.Round(10*time.Millisecond), count(int64(float64(sent)/max(sum.Elapsed.Seconds(), 1e-3))))
	for _, n := range []struct {
		what string
		n    int64
		note string
	}{
		{"lines of earlier runs", sum.Earlier.Lines, ""},
		{"lines that could not be read", sum.Bad, ""},
		{"messages in quarantine", sum.Quarantined, ", see sluice quarantine list"},
		{"messages refused", sum.Refused, ""},
		{"publishes sent again after a connection was lost", sum.Resent, ""},
	} {
		if n.n > 0 {
			fmt.Fprintf(w, "  %s: %s%s\n", n.what, count(n.n), n.note)
		}
	}
	if len(sum.Ignored) > 0 {
		fmt.Fprintf(w, "  columns without numbers were left out: %s\n", strings.Join(sum.Ignored, ", "))
	}
}
