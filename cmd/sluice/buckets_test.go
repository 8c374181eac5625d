package main

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/sluice-iot/sluice/api"
)

func TestBucketsPrintInEveryFormat(t *testing.T) {
	avg, count := api.Float(21.5), uint64(6)
	b := api.Bucket{Time: 1_769_180_640_000_000, Sensor: "temperature", Avg: &avg, Count: &count}
	aggs := []string{"avg", "count"}
	for format, want := range map[string]string{
		"csv":  "time,sensor,avg,count\n2026-01-23T15:04:00.000000Z,temperature,21.5,6\n",
		"json": `{"buckets":[` + "\n" + `{"time":"2026-01-23T15:04:00.000000Z","sensor":"temperature","avg":21.5,"count":6}` + "\n]}\n",
	} {
		var out bytes.Buffer
		p := bucketPrinters[format](&out, aggs)
		if err := p.bucket(&b); err != nil {
			t.Fatal(err)
		}
		if err := p.end(); err != nil || out.String() != want {
			t.Errorf("%s is %q, %v, want %q", format, out.String(), err, want)
		}
		out.Reset()
		if err := bucketPrinters[format](&out, aggs).end(); err != nil || !strings.HasPrefix(out.String(), map[string]string{"csv": "time,sensor,avg,count\n", "json": `{"buckets":[]}`}[format]) {
			t.Errorf("nothing as %s is %q, %v", format, out.String(), err)
		}
	}
	var out bytes.Buffer
	p := bucketPrinters["table"](&out, aggs)
	if err := p.bucket(&b); err != nil {
		t.Fatal(err)
	}
	if err := p.end(); err != nil || !strings.Contains(out.String(), "AVG") || !strings.Contains(out.String(), "21.5      6") {
		t.Errorf("table is %q, %v", out.String(), err)
	}
}

// TestMeansHaveNoNoise: a mean of tenths prints as one, and a value that was
// measured keeps its digits.
func TestMeansHaveNoNoise(t *testing.T) {
	noisy := (0.1 + 0.2 + 0.3) / 2 // at run time 0.30000000000000004
	noisy += 1e-17
	for _, c := range []struct {
		agg  string
		in   float64
		want string
	}{
		{"avg", 20.120000000000001, "20.12"}, {"avg", math.Nextafter(noisy, 1), "0.3"}, {"avg", 64.0 / 3, "21.3333333333"},
		{"avg", math.MaxFloat64, "1.79769313486e+308"}, {"avg", -1e-9, "-0.000000001"}, {"max", 0.30000000000000004, "0.30000000000000004"},
	} {
		if got := number(figure(c.agg, c.in)); got != c.want {
			t.Errorf("%s of %v prints as %s, want %s", c.agg, c.in, got, c.want)
		}
	}
}

func TestQueryFlagsAreChecked(t *testing.T) {
	for _, c := range []struct {
		cmd  queryCmd
		want string
	}{
		{queryCmd{Agg: "avg"}, "--step 1m"},
		{queryCmd{Step: "soon"}, "30s, 1m, 1h or 1d"},
		{queryCmd{Step: "1m", Order: "desc"}, "leave it out"},
	} {
		if _, err := c.cmd.question(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.cmd, err)
		}
	}
	q, err := (&queryCmd{Device: "d", Step: "1d", Agg: "max,min"}).question()
	if err != nil || q.Step.Hours() != 24 || len(q.Agg) != 2 {
		t.Errorf("%+v, %v", q, err)
	}
}
