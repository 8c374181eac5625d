package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/devcluster"
)

// ask gets a JSON answer of a node.
func ask[T any](t *testing.T, n *devcluster.Node, path string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s on %s: %v", path, n.ID, err)
	}
	defer res.Body.Close()
	var v T
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s on %s: %s, %v", path, n.ID, res.Status, err)
	}
	return v
}

// TestTokenOfAPubackIsGoodOnEveryNode publishes through one node and reads through
// all others at once, with the token that the PUBACK carries.
func TestTokenOfAPubackIsGoodOnEveryNode(t *testing.T) {
	c := start(t, func(o *devcluster.Options) { o.Shards = 6 })
	nc, err := net.Dial("tcp", c.Nodes()[0].MQTT)
	if err != nil {
		t.Fatal(err)
	}
	m := paho.NewClient(paho.ClientConfig{Conn: nc, ClientID: "gauge"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := m.Connect(ctx, &paho.Connect{ClientID: "gauge", CleanStart: true, KeepAlive: 30}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Disconnect(&paho.Disconnect{}) }()
	for i := range 30 {
		r, err := m.Publish(ctx, &paho.Publish{
			Topic: "devices/gauge/telemetry", QoS: 1, Payload: fmt.Appendf(nil, `{"timestamp":"2026-01-23T15:%02d:00Z","sensors":{"level":%d}}`, i, i),
			Properties: &paho.PublishProperties{User: paho.UserProperties{{Key: "sluice-write-token"}}},
		})
		if err != nil || r.ReasonCode != 0 {
			t.Fatalf("publish %d: %+v, %v", i, r, err)
		}
		token := r.Properties.User.Get("sluice-write-token")
		if token == "" {
			t.Fatalf("the PUBACK carries no token: %+v", r.Properties)
		}
		for _, n := range c.Nodes() {
			latest := ask[api.ReadingList](t, n, "/api/v1/devices/gauge/readings?order=desc&limit=1&after_write="+token).Readings
			if len(latest) != 1 || float64(latest[0].Value) != float64(i) {
				t.Fatalf("reading %d is not in the answer of %s: %+v", i, n.ID, latest)
			}
		}
	}
	hours := ask[api.BucketList](t, c.Nodes()[2], "/api/v1/devices/gauge/readings?step=1h&agg=count,max").Buckets
	if len(hours) != 1 || *hours[0].Count != 30 || float64(*hours[0].Max) != 29 {
		t.Errorf("the hour is %+v", hours)
	}
	list := ask[api.DeviceList](t, c.Nodes()[1], "/api/v1/devices?where=id%20like%20%22ga*%22%20and%20last_seen%20%3E%20-1h")
	if len(list.Devices) != 1 || list.Devices[0].ID != "gauge" {
		t.Errorf("selected are %+v", list.Devices)
	}
}

// TestCompactedFilesSurviveAKill kills a node while it flushes and compacts, and
// compares every node's answer before and afterwards.
func TestCompactedFilesSurviveAKill(t *testing.T) {
	c := start(t, func(o *devcluster.Options) { o.Shards, o.FlushInterval = 2, 200*time.Millisecond })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cl, err := c.Nodes()[1].Client()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	sent := uint64(0)
	compacted := func(n *devcluster.Node) bool { // some file stands for many log entries: its name has two numbers far apart
		files, err := filepath.Glob(filepath.Join(n.Data, "store", "shard-*", "*.parquet"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files) > 0 && uint64(len(files)) < sent/2
	}
	publish := func(until func() bool) {
		for k := 0; k < 40 || !until(); k++ {
			line := fmt.Sprintf(`{"device_id":"tank","timestamp":%q,"sensors":{"level":%d}}`, time.UnixMilli(1_769_180_400_000+int64(sent)*1000).UTC().Format(time.RFC3339), sent)
			if _, err := cl.Publish(ctx, []byte(line), ""); err != nil {
				t.Fatalf("publish %d: %v", sent, err)
			}
			sent++
			if k > 100 { // flushes need their time, not more messages
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
	n0 := c.Nodes()[0]
	publish(func() bool { return compacted(n0) })
	if err := n0.Kill(); err != nil {
		t.Fatal(err)
	}
	publish(func() bool { return true })
	if err := n0.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	publish(func() bool { return true })
	for _, n := range c.Nodes() {
		count := uint64(0)
		cl, err := n.Client()
		if err != nil {
			t.Fatal(err)
		}
		for b, err := range cl.Buckets(ctx, client.ReadingsQuery{Device: "tank", Step: time.Minute, Agg: []string{"count"}}) {
			if err != nil {
				t.Fatalf("read on %s: %v", n.ID, err)
			}
			count += *b.Count
		}
		cl.Close()
		if count != sent {
			t.Errorf("%s counts %d readings, %d were acknowledged", n.ID, count, sent)
		}
	}
}
