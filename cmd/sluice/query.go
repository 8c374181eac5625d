package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/telemetry"
)

type queryCmd struct {
	apiFlag
	Device string `arg:"" help:"Device id."`
	Sensor string `help:"Only this sensor."`
	From   string `placeholder:"TIME" help:"First time: RFC 3339, a date, milliseconds since 1970, or 2h for two hours ago."`
	To     string `placeholder:"TIME" help:"End, not included."`
	Limit  int    `default:"1000" help:"Readings, or buckets, at most; 0: all."`
	Order  string `default:"asc" enum:"asc,desc" help:"asc: oldest first; desc: latest first."`
	Step   string `placeholder:"LENGTH" help:"Buckets of this length instead of readings: 30s, 1m, 1h, 1d."`
	Agg    string `placeholder:"LIST" help:"Figures of a bucket: avg,min,max,last,count; all when left out."`
	Format string `default:"table" enum:"table,json,csv" help:"table, json or csv."`
}

// Run implements kong.
func (c *queryCmd) Run(ctx context.Context) error {
	q, err := c.question()
	if err != nil {
		return err
	}
	now := time.Now()
	if q.From, err = timeFlag("from", c.From, now); err != nil {
		return err
	}
	if q.To, err = timeFlag("to", c.To, now); err != nil {
		return err
	}
	if c.Limit < 0 {
		return errors.New("limit is negative: use 0 for all readings")
	}
	if c.Limit > 0 && c.Limit < api.ReadingsLimitMax {
		q.Page = min(c.Limit+1, 10_000) // one more tells whether there are more
	}
	out := bufio.NewWriter(os.Stdout)
	err = c.with(func(cl *client.Client) error {
		print := c.print
		if q.Step > 0 {
			print = c.printBuckets
		}
		more, err := print(ctx, cl, q, out)
		if err == nil && more {
			fmt.Fprintf(os.Stderr, "there is more: --limit 0 shows all, --from continues\n")
		}
		return err
	})
	if flushErr := out.Flush(); err == nil && flushErr != nil {
		err = fmt.Errorf("write output: %w", flushErr)
	}
	return err
}

// question is what does not depend on the present time.
func (c *queryCmd) question() (client.ReadingsQuery, error) {
	q := client.ReadingsQuery{Device: c.Device, Sensor: c.Sensor, Desc: c.Order == "desc"}
	if c.Step == "" {
		if c.Agg != "" {
			return q, errors.New("--agg needs a step: add --step 1m, for example")
		}
		return q, nil
	}
	var err error
	if q.Step, err = api.ParseStep(c.Step); err != nil {
		return q, fmt.Errorf("--step: %w", err)
	}
	if q.Desc {
		return q, errors.New("--order desc is for readings: buckets come in ascending order, leave it out")
	}
	q.Agg = api.Aggregates()
	if c.Agg != "" {
		q.Agg = strings.Split(c.Agg, ",")
	}
	return q, nil
}

func timeFlag(name, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := parseTime(s, now)
	if err != nil {
		return t, fmt.Errorf("%s: %w", name, err)
	}
	return t, nil
}

// print reports whether there is more than the limit.
func (c *queryCmd) print(ctx context.Context, cl *client.Client, q client.ReadingsQuery, w io.Writer) (more bool, err error) {
	p := readingPrinters[c.Format](w)
	n := 0
	for r, err := range cl.Readings(ctx, q) {
		if err != nil {
			return false, err
		}
		if c.Limit > 0 && n == c.Limit {
			more = true
			break
		}
		n++
		if err := p.reading(&r); err != nil {
			return false, err
		}
	}
	if n == 0 && c.Format == "table" {
		// Nothing in this time is an answer; no such device is an error.
		if _, err := cl.Device(ctx, c.Device); err != nil {
			return false, err
		}
	}
	return more, p.end()
}

// readingPrinter is one form of output.
type readingPrinter interface {
	reading(r *api.Reading) error
	end() error
}

var readingPrinters = map[string]func(io.Writer) readingPrinter{
	"table": func(w io.Writer) readingPrinter {
		return &tablePrinter{newTable(w, "TIME", "SENSOR", ">VALUE", ">SCORE", "QUALITY")}
	},
	"csv": func(w io.Writer) readingPrinter {
		return &csvPrinter{csvList{w: csv.NewWriter(w), head: []string{"time", "sensor", "value", "score", "quality"}}}
	},
	"json": func(w io.Writer) readingPrinter {
		return &jsonPrinter{jsonList{w: w, name: "readings"}}
	},
}

type tablePrinter struct{ t *table }

func (p *tablePrinter) reading(r *api.Reading) error {
	p.t.row(r.Time.String(), r.Sensor, number(float64(r.Value)), strconv.FormatFloat(float64(r.Score), 'f', 3, 32), quality(r.Quality))
	return nil
}

func (p *tablePrinter) end() error { return p.t.flush() }

// number is the shortest form that reads back to the same bits, without an
// exponent where a person would not write one.
func number(f float64) string {
	if s := strconv.FormatFloat(f, 'f', -1, 64); len(s) <= 20 {
		return s
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

// quality names the bits.
func quality(q telemetry.Quality) string {
	var names []string
	for _, b := range []struct {
		bit  telemetry.Quality
		name string
	}{
		{telemetry.QualityReceiptTime, "receipt-time"}, {telemetry.QualityFuture, "future"},
		{telemetry.QualityWarmup, "warm-up"}, {telemetry.QualityBool, "bool"},
	} {
		if q&b.bit != 0 {
			names = append(names, b.name)
		}
	}
	return strings.Join(names, ",")
}

type csvPrinter struct{ csvList }

func (p *csvPrinter) reading(r *api.Reading) error {
	return p.row([]string{r.Time.String(), r.Sensor, strconv.FormatFloat(float64(r.Value), 'g', -1, 64),
		strconv.FormatFloat(float64(r.Score), 'g', -1, 32), strconv.Itoa(int(r.Quality))})
}

type jsonPrinter struct{ jsonList }

func (p *jsonPrinter) reading(r *api.Reading) error { return p.item(r) }
