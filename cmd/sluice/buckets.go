package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
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
	"csv":  func(w io.Writer, aggs []string) bucketPrinter { return &bucketCSV{w: csv.NewWriter(w), aggs: aggs} },
	"json": func(w io.Writer, _ []string) bucketPrinter { return &bucketJSON{w: w} },
}

type bucketTable struct {
	t    *table
	aggs []string
}

func (p *bucketTable) bucket(b *api.Bucket) error {
	row := []string{b.Time.String(), b.Sensor}
	for _, a := range p.aggs {
		f, _ := b.Figure(a)
		row = append(row, number(f))
	}
	p.t.row(row...)
	return nil
}

func (p *bucketTable) end() error { return p.t.flush() }

type bucketCSV struct {
	w     *csv.Writer
	aggs  []string
	begun bool
}

func (p *bucketCSV) bucket(b *api.Bucket) error {
	if err := p.header(); err != nil {
		return err
	}
	row := []string{b.Time.String(), b.Sensor}
	for _, a := range p.aggs {
		f, _ := b.Figure(a)
		row = append(row, strconv.FormatFloat(f, 'g', -1, 64))
	}
	return p.w.Write(row)
}

func (p *bucketCSV) header() error {
	if p.begun {
		return nil
	}
	p.begun = true
	return p.w.Write(append([]string{"time", "sensor"}, p.aggs...))
}

func (p *bucketCSV) end() error {
	if err := p.header(); err != nil {
		return err
	}
	p.w.Flush()
	return p.w.Error()
}

// bucketJSON writes the form of the API, as one list.
type bucketJSON struct {
	w io.Writer
	n int
}

func (p *bucketJSON) bucket(b *api.Bucket) error {
	text, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	before := ",\n"
	if p.n == 0 {
		before = `{"buckets":[` + "\n"
	}
	p.n++
	_, err = fmt.Fprintf(p.w, "%s%s", before, text)
	return err
}

func (p *bucketJSON) end() error {
	after := "\n]}\n"
	if p.n == 0 {
		after = `{"buckets":[]}` + "\n"
	}
	_, err := io.WriteString(p.w, after)
	return err
}
