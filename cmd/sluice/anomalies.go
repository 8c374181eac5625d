package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
)

type anomaliesCmd struct {
	List        anomaliesListCmd `cmd:"" default:"withargs" help:"List or follow anomalies."`
	Maintenance maintenanceCmd   `cmd:"" help:"Raise no anomalies of a device for a while, or end that early."`
	Normal      normalCmd        `cmd:"" help:"Say that an anomaly was normal: it closes, and its pattern counts less for that device."`
	Target      targetCmd        `cmd:"" help:"Show or set how many false alarms a device may raise in 30 days."`
	Range       rangeCmd         `cmd:"" help:"Show or set what sensors can measure: values outside are anomalies."`
}

type anomaliesListCmd struct {
	apiFlag
	Device string `help:"Only of this device."`
	Open   bool   `help:"Only those that are open."`
	From   string `placeholder:"TIME" help:"Opened at or after: RFC 3339, a date, or 2h for two hours ago."`
	To     string `placeholder:"TIME" help:"Opened before."`
	Limit  int    `default:"100" help:"At most, newest first; 0: all."`
	Follow bool   `short:"f" help:"Show what opens, gets worse and closes from now on, until Ctrl-C."`
	JSON   bool   `name:"json" help:"Print JSON, one anomaly a line."`
}

// Run implements kong.
func (c *anomaliesListCmd) Run(ctx context.Context) error {
	if c.Follow {
		return c.with(func(cl *client.Client) error { return c.follow(ctx, cl) })
	}
	q := client.ListQuery{Device: c.Device}
	if c.Open {
		q.Open = &c.Open
	}
	now := time.Now()
	var err error
	if q.From, err = timeFlag("from", c.From, now); err != nil {
		return err
	}
	if q.To, err = timeFlag("to", c.To, now); err != nil {
		return err
	}
	return c.with(func(cl *client.Client) error { return c.list(ctx, cl, q) })
}

func (c *anomaliesListCmd) list(ctx context.Context, cl *client.Client, q client.ListQuery) error {
	t := anomalyTable(os.Stdout)
	n := 0
	for a, err := range cl.Anomalies(ctx, q) {
		if err != nil {
			return err
		}
		if n++; c.Limit > 0 && n > c.Limit {
			fmt.Fprintln(os.Stderr, "there are more: --limit 0 shows all")
			break
		}
		if c.JSON {
			if err := printLine(os.Stdout, a); err != nil {
				return err
			}
			continue
		}
		t.row(anomalyRow(&a)...)
	}
	if c.JSON {
		return nil
	}
	return t.flush()
}

func anomalyTable(w io.Writer) *table {
	return newTable(w, "OPENED", "CLOSED", "DEVICE", "SENSOR", "CAUSE", ">SEVERITY", ">VALUE", ">EXPECTED", "BAND")
}

func anomalyRow(a *api.Anomaly) []string {
	closed := "open"
	if a.Closed != nil {
		closed = a.Closed.String()
	}
	return []string{a.Opened.String(), closed, a.DeviceID, a.Sensor, a.Cause, strconv.FormatFloat(float64(a.Severity), 'f', 0, 64),
		brief(a.Value), brief(a.Expected), brief(a.Low) + " to " + brief(a.High)}
}

// brief is a number for the eye.
func brief(f api.Float) string { return strconv.FormatFloat(float64(f), 'g', 5, 64) }

// printLine is one line of JSON.
func printLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", b)
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// follow prints events until ctx ends, which is its regular end.
func (c *anomaliesListCmd) follow(ctx context.Context, cl *client.Client) error {
	for e, err := range cl.Events(ctx, client.EventsQuery{Device: c.Device}) {
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if err := c.event(os.Stdout, &e); err != nil {
			return err
		}
	}
	return nil
}

// eventLine is an event in JSON.
type eventLine struct {
	Event   api.EventKind `json:"event"`
	Anomaly *api.Anomaly  `json:"anomaly,omitempty"`
}

func (c *anomaliesListCmd) event(w io.Writer, e *client.Event) error {
	gap := e.Kind == api.EventGap
	if c.JSON {
		line := eventLine{Event: e.Kind, Anomaly: &e.Anomaly}
		if gap {
			line.Anomaly = nil
		}
		return printLine(w, line)
	}
	var err error
	if gap {
		_, err = fmt.Fprintln(w, "events may be missing here: list them with sluice anomalies")
	} else {
		a := &e.Anomaly
		_, err = fmt.Fprintf(w, "%s  %-7s  %s %s  %s, severity %.0f: %s, expected %s to %s\n",
			a.Opened, e.Kind, a.DeviceID, a.Sensor, a.Cause, float64(a.Severity), brief(a.Value), brief(a.Low), brief(a.High))
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
