package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/sluice-iot/sluice/bench/faults"
	"github.com/sluice-iot/sluice/bench/faults/disk"
	"github.com/sluice-iot/sluice/bench/faults/zones"
)

type cli struct {
	Run   runCmd   `cmd:"" default:"withargs" help:"Run faults and print the table."`
	Judge judgeCmd `cmd:"" help:"Judge a kept history again."`

	Mutations mutationsCmd `cmd:"" help:"Show that every deliberate mistake is noticed."`
}

type runCmd struct {
	Binary string        `required:"" type:"existingfile" help:"The sluice executable."`
	Wrong  string        `placeholder:"FILE" help:"The same, built with -tags mutations, for faults of clocks; without it they are left out."`
	Only   []string      `help:"Faults whose id begins so: F1,F4."`
	Seed   uint64        `help:"Draws victims and moments; 0 takes the time."`
	Dir    string        `help:"Keeps the histories of failing runs; default: a directory below the temporary one."`
	Keep   bool          `help:"Keep the directories of passing runs too."`
	Routes bool          `default:"true" negatable:"" help:"Change subscriptions while the fault lasts, and judge who is given what afterwards (C12)."`
	For    time.Duration `help:"Draw faults from the seed for so long instead of running each once."`
}

type judgeCmd struct {
	Dir string `arg:"" type:"existingdir" help:"Folder that a failed run has printed."`
}

type mutationsCmd struct {
	Binary string   `required:"" type:"existingfile" help:"A sluice executable built with -tags mutations."`
	Only   []string `help:"Mutations by name."`
	Seed   uint64   `default:"1" help:"Draws victims and moments."`
	Dir    string   `required:"" help:"Directory for clusters and histories."`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c cli
	k := kong.Parse(&c, kong.Name("faults"), kong.Description("Faults against a cluster of real processes."), kong.BindTo(ctx, (*context.Context)(nil)))
	return k.Run()
}

// Run implements kong.
func (c *runCmd) Run(ctx context.Context) error {
	if c.Seed == 0 {
		c.Seed = uint64(time.Now().Unix())
	}
	if c.Dir == "" {
		dir, err := os.MkdirTemp("", "sluice-faults-")
		if err != nil {
			return fmt.Errorf("make directory for histories: %w", err)
		}
		c.Dir = dir
	}
	chosen := c.chosen()
	if len(chosen) == 0 {
		return fmt.Errorf("no fault begins with %s", strings.Join(c.Only, " or "))
	}
	fmt.Fprintf(os.Stderr, "seed %d, histories of failing runs in %s\n", c.Seed, c.Dir)
	cfg := faults.Config{Binary: c.Binary, Wrong: c.Wrong, JudgeLatency: true, JudgeRoutes: c.Routes, Dir: c.Dir, Load: faults.DefaultLoad, Progress: os.Stderr, Keep: c.Keep}
	var results []faults.Result
	var errs []error
	for f, seed := range faults.Draw(chosen, c.Seed, c.For) {
		cfg.Seed = seed
		res, err := faults.Do(ctx, cfg, f)
		switch {
		case errors.Is(err, disk.ErrUnavailable), errors.Is(err, zones.ErrUnavailable), errors.Is(err, faults.ErrNoClocks):
			fmt.Fprintf(os.Stderr, "%s not run: %v\n", f.ID, err)
			continue
		case err != nil:
			errs = append(errs, err)
			fmt.Fprintln(os.Stderr, err)
		default:
			results = append(results, res)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err := faults.Table(os.Stdout, results); err != nil {
		return err
	}
	if i := slices.IndexFunc(results, func(r faults.Result) bool { return !r.Passed() }); i >= 0 {
		errs = append(errs, fmt.Errorf("%s with seed %d was not survived", results[i].ID, results[i].Seed))
	}
	return errors.Join(errs...)
}

func (c *runCmd) chosen() (out []*faults.Fault) {
	for _, f := range faults.All() {
		if len(c.Only) == 0 || slices.ContainsFunc(c.Only, func(p string) bool { return strings.HasPrefix(f.ID, p) }) {
			out = append(out, f)
		}
	}
	return out
}

// Run implements kong.
func (c *judgeCmd) Run() error {
	res, err := faults.Judge(c.Dir)
	if err != nil {
		return err
	}
	if err := faults.Table(os.Stdout, []faults.Result{res}); err != nil {
		return err
	}
	if !res.Passed() {
		return errors.New("the history shows a violation")
	}
	return nil
}

// Run implements kong.
func (c *mutationsCmd) Run(ctx context.Context) error {
	var caught []faults.Caught
	missed := 0
	for _, m := range faults.Mutations() {
		if len(c.Only) > 0 && !slices.Contains(c.Only, m.Name) {
			continue
		}
		got, err := faults.Catch(ctx, faults.Config{Binary: c.Binary, Dir: c.Dir, Seed: c.Seed, Load: faults.DefaultLoad, Progress: os.Stderr}, m)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		if !got.Found {
			missed++
		}
		caught = append(caught, got)
	}
	if err := faults.MutationTable(os.Stdout, caught); err != nil {
		return err
	}
	if missed > 0 {
		return fmt.Errorf("%d of %d mistakes were not noticed", missed, len(caught))
	}
	return nil
}
