package api_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/store"
)

// minutes fills a device with two sensors, a reading of each every 20 s.
func minutes(n *node) (t0 int64) {
	t0 = time.Date(2026, 1, 23, 15, 0, 0, 0, time.UTC).UnixMicro()
	for i := range int64(30) {
		n.cluster.Insert("pump-7",
			store.Point{Time: t0 + i*20e6, Sensor: "temperature", Value: float64(i)},
			store.Point{Time: t0 + i*20e6 + 1, Sensor: "flow", Value: -1 - float64(i)})
	}
	return t0
}

func TestReadingsComeInBuckets(t *testing.T) {
	n := start(t, api.Config{})
	minutes(n)
	path := "/api/v1/devices/pump-7/readings?step=1m"
	list := decode[api.BucketList](t, n.get(path+"&sensor=temperature&agg=avg,min,max,last,count&limit=2"))
	if len(list.Buckets) != 2 || list.Next == "" {
		t.Fatalf("got %+v", list)
	}
	b := list.Buckets[1]
	if b.Time.String() != "2026-01-23T15:01:00.000000Z" || *b.Avg != 4 || *b.Min != 3 || *b.Max != 5 || *b.Last != 5 || *b.Count != 3 {
		t.Errorf("second bucket is %+v", b)
	}
	var all []string
	for cursor := ""; ; {
		page := decode[api.BucketList](t, n.get(path+"&agg=count&limit=3&cursor="+cursor))
		for _, b := range page.Buckets {
			if b.Avg != nil || b.Count == nil {
				t.Errorf("figures that were not asked for: %+v", b)
			}
			all = append(all, fmt.Sprint(b.Time, b.Sensor, *b.Count))
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	if len(all) != 20 || !strings.Contains(all[0], "flow") {
		t.Errorf("pages give %d buckets: %v", len(all), all)
	}
	csv := n.get(path + "&agg=max,count&format=csv&to=2026-01-23T15:01:00Z")
	const want = "time,sensor,max,count\n2026-01-23T15:00:00.000000Z,flow,-1,3\n2026-01-23T15:00:00.000000Z,temperature,2,3\n"
	if csv.status != 200 || csv.body != want {
		t.Errorf("CSV is %d\n%s", csv.status, csv.body)
	}
}

func TestClientWalksBuckets(t *testing.T) {
	n := start(t, api.Config{})
	t0 := minutes(n)
	c, err := client.New(client.Config{URL: n.url})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	count := uint64(0)
	for b, err := range c.Buckets(t.Context(), client.ReadingsQuery{Device: "pump-7", Step: 2 * time.Minute, Agg: []string{"count"}, Page: 3, From: time.UnixMicro(t0)}) {
		if err != nil {
			t.Fatal(err)
		}
		count += *b.Count
	}
	if count != 60 {
		t.Errorf("%d readings counted, want 60", count)
	}
}

func TestTheLatestComeFirstWhenAsked(t *testing.T) {
	n := start(t, api.Config{})
	minutes(n)
	path := "/api/v1/devices/pump-7/readings?sensor=temperature&limit=7"
	var up, down []api.Reading
	for _, order := range []string{"asc", "desc"} {
		for cursor := ""; ; {
			page := decode[api.ReadingList](t, n.get(path+"&order="+order+"&cursor="+cursor))
			if order == "asc" {
				up = append(up, page.Readings...)
			} else {
				down = append(down, page.Readings...)
			}
			if cursor = page.Next; cursor == "" {
				break
			}
			other := map[string]string{"asc": "desc", "desc": "asc"}[order]
			if r := n.get(path + "&order=" + other + "&cursor=" + cursor); r.status != 400 {
				t.Fatalf("cursor of order %s was taken for %s: %d", order, other, r.status)
			}
		}
	}
	if len(up) != 30 || len(down) != 30 {
		t.Fatalf("%d and %d readings", len(up), len(down))
	}
	for i := range up {
		if up[i] != down[len(down)-1-i] {
			t.Errorf("reading %d is %+v upwards and %+v downwards", i, up[i], down[len(down)-1-i])
		}
	}
}

func TestBadQuestionsForBucketsAreExplained(t *testing.T) {
	n := start(t, api.Config{})
	minutes(n)
	for query, want := range map[string]string{
		"step=0s":                    "1ms to 366d",
		"step=1":                     "use 30s, 1m, 1h or 1d",
		"step=400d":                  "1ms to 366d",
		"step=1m&agg=median":         "use avg, min, max, last, count",
		"step=1m&agg=avg,avg":        "agg avg is there twice",
		"agg=avg":                    "add step=1m",
		"step=1m&order=desc":         "leave it out",
		"order=down":                 "use asc or desc",
		"step=1m&cursor=AQEAAAAAAAA": "was not given for this list",
	} {
		if r := n.get("/api/v1/devices/pump-7/readings?" + query); r.status != 400 || !strings.Contains(r.body, want) {
			t.Errorf("%s gave %d %s, want %q", query, r.status, r.body, want)
		}
	}
}
