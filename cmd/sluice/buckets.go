package main

import (
	"context"
	"encoding/csv"
	"io"
	"strconv"
	"strings"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
)

// printBuckets is print for a downsampled query.
func (c *queryCmd) printBuckets(ctx context.Context, cl *client.Client, q client.ReadingsQuery, w io.Writer) (more bool, err error) {
	p := bucketPrinters[c.Format](w, q.Agg)
	n := 0
	for b, err := range cl.Buckets(ctx, q) {
		if err != nil {
			return false, err
		}
		if c.Limit > 0 && n == c.Limit {
			more = true
			break
		}
		n++
		if err := p.bucket(&b); err != nil {
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

// bucketPrinter is one form of output.
type bucketPrinter interface {
	bucket(b *api.Bucket) error
	end() error
}

var bucketPrinters = map[string]func(io.Writer, []string) bucketPrinter{
	"table": func(w io.Writer, aggs []string) bucketPrinter {
		head := []string{"TIME", "SENSOR"}
		for _, a := range aggs {
			head = append(head, ">"+strings.ToUpper(a))
		}
		return &bucketTable{newTable(w, head...), aggs}
	},
	"csv": func(w io.Writer, aggs []string) bucketPrinter {
		return &bucketCSV{csvList{w: csv.NewWriter(w), head: append([]string{"time", "sensor"}, aggs...)}, aggs}
	},
	"json": func(w io.Writer, _ []string) bucketPrinter {
		return &bucketJSON{jsonList{w: w, name: "buckets"}}
	},
}

// meanDigits is how many digits of a mean are shown: those behind are what its sum
// was rounded to. JSON has them all.
const meanDigits = 12

// figure is a figure as people read it: a mean without the noise of its sum, the
// others, which are values that were measured, as they are.
func figure(agg string, f float64) float64 {
	if agg != "avg" {
		return f
	}
	short, err := strconv.ParseFloat(strconv.FormatFloat(f, 'g', meanDigits, 64), 64)
	if err != nil {
		return f // what FormatFloat writes can be read, unless it rounds to infinity
	}
	return short
}

type bucketTable struct {
	t    *table
	aggs []string
}

func (p *bucketTable) bucket(b *api.Bucket) error {
	row := []string{b.Time.String(), b.Sensor}
	for _, a := range p.aggs {
		f, _ := b.Figure(a)
		row = append(row, number(figure(a, f)))
	}
	p.t.row(row...)
	return nil
}

func (p *bucketTable) end() error { return p.t.flush() }

type bucketCSV struct {
	csvList
	aggs []string
}

func (p *bucketCSV) bucket(b *api.Bucket) error {
	row := []string{b.Time.String(), b.Sensor}
	for _, a := range p.aggs {
		f, _ := b.Figure(a)
		row = append(row, strconv.FormatFloat(figure(a, f), 'g', -1, 64))
	}
	return p.row(row)
}

type bucketJSON struct{ jsonList }

func (p *bucketJSON) bucket(b *api.Bucket) error { return p.item(b) }
