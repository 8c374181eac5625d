package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
)

type maintenanceCmd struct {
	apiFlag
	Device string        `arg:"" help:"Device id."`
	For    time.Duration `placeholder:"DURATION" help:"From now on: 2h, 90m."`
	To     string        `placeholder:"TIME" help:"Until then: RFC 3339 or a date."`
	Clear  bool          `help:"End a maintenance early."`
}

// Help is shown with --help.
func (maintenanceCmd) Help() string {
	return "A maintenance begins at once and ends by itself, after 366 days at most. Readings are stored, scored and learned from as ever; anomalies are not raised."
}

// Run implements kong.
func (c *maintenanceCmd) Run(ctx context.Context) error {
	until, err := c.until(time.Now())
	if err != nil {
		return err
	}
	return c.with(func(cl *client.Client) error {
		if c.Clear {
			if err := cl.EndMaintenance(ctx, c.Device); err != nil {
				return err
			}
			fmt.Printf("%s raises anomalies again\n", c.Device)
			return nil
		}
		if err := cl.Maintain(ctx, c.Device, until); err != nil {
			return err
		}
		fmt.Printf("%s raises no anomalies until %s\n", c.Device, until.UTC().Format(time.RFC3339))
		return nil
	})
}

func (c *maintenanceCmd) until(now time.Time) (time.Time, error) {
	given := 0
	for _, set := range []bool{c.For != 0, c.To != "", c.Clear} {
		if set {
			given++
		}
	}
	if given != 1 {
		return now, errors.New("use one of --for 2h, --to TIME and --clear")
	}
	until := now.Add(c.For)
	if c.To != "" {
		var err error
		if until, err = timeFlag("to", c.To, now); err != nil {
			return now, err
		}
	}
	if !c.Clear && !until.After(now) {
		return now, fmt.Errorf("the maintenance would end at %s, which is over: give a later time, or --clear to end one", until.UTC().Format(time.RFC3339))
	}
	return until, nil
}

type normalCmd struct {
	apiFlag
	ID string `arg:"" help:"Of the anomaly: sluice anomalies --json shows it."`
}

// Run implements kong.
func (c *normalCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		err := cl.Normal(ctx, c.ID)
		if errors.Is(err, api.ErrNotFound) {
			return fmt.Errorf("no anomaly has the id %q: sluice anomalies --json lists the ids (7-4711-0, for example); only the latest 10,000 of a shard can be judged", c.ID)
		}
		if err == nil {
			fmt.Printf("%s is closed, its pattern counts less from now on\n", c.ID)
		}
		return err
	})
}

type targetCmd struct {
	apiFlag
	Value *float64 `arg:"" optional:"" help:"False alarms of one device in 30 days, 0.001 to 10000; without it the present target is shown."`
}

// Run implements kong.
func (c *targetCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		if c.Value != nil {
			if err := cl.SetTarget(ctx, *c.Value); err != nil {
				return err
			}
		}
		s, err := cl.WatchSettings(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%v false alarms per device in 30 days\n", float64(s.AlarmsPerDeviceMonth))
		return nil
	})
}

type rangeCmd struct {
	apiFlag
	Sensor string   `arg:"" optional:"" help:"Name of a sensor, on every device; without it the ranges are listed."`
	Min    *float64 `help:"Least value that it can measure."`
	Max    *float64 `help:"Largest value that it can measure."`
	Clear  bool     `help:"Forget its range."`
	JSON   bool     `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *rangeCmd) Run(ctx context.Context) error {
	set := c.Min != nil || c.Max != nil
	switch {
	case set && (c.Min == nil || c.Max == nil):
		return errors.New("use --min and --max together: a range has two ends")
	case set && c.Clear:
		return errors.New("use --min and --max, or --clear")
	case (set || c.Clear) && c.Sensor == "":
		return errors.New("which sensor: sluice anomalies range temperature --min=-40 --max=125")
	}
	return c.with(func(cl *client.Client) error {
		var err error
		switch {
		case set:
			err = cl.SetRange(ctx, api.SensorRange{Sensor: c.Sensor, Min: api.Float(*c.Min), Max: api.Float(*c.Max)})
		case c.Clear:
			err = cl.ClearRange(ctx, c.Sensor)
		}
		if err != nil {
			return err
		}
		return c.list(ctx, cl)
	})
}

func (c *rangeCmd) list(ctx context.Context, cl *client.Client) error {
	s, err := cl.WatchSettings(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(os.Stdout, s.Ranges)
	}
	t := newTable(os.Stdout, "SENSOR", ">MIN", ">MAX")
	for _, r := range s.Ranges {
		t.row(r.Sensor, strconv.FormatFloat(float64(r.Min), 'g', -1, 64), strconv.FormatFloat(float64(r.Max), 'g', -1, 64))
	}
	return t.flush()
}
