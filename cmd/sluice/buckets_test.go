package main

import (
	"bytes"
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
