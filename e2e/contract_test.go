package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/devcluster"
)

// What a user does first: publish with a foreign client on any node, read on any
// other, look at status, ledger and quarantine.

func TestForeignClientPublishesOnAnyNodeAndEveryNodeAnswers(t *testing.T) {
	if _, err := exec.LookPath("mosquitto_pub"); err != nil {
		t.Skip("mosquitto_pub is not installed: make test-deps installs it")
	}
	c := start(t)
	for i, n := range c.Nodes() {
		for _, version := range []string{"311", "5"} {
			for qos := range 3 {
				device := fmt.Sprintf("foreign-%d-%s-%d", i, version, qos)
				mosquitto(t, n, version, qos, "devices/"+device+"/telemetry",
					`{"device_id":"`+device+`","timestamp":"2026-01-23T15:24:46.123456","sensors":{"temperature":21.52,"door":true},"metadata":{"firmware_version":"1.2.3"}}`)
				for _, other := range c.Nodes() {
					awaitReadings(t, other, device, []string{
						"2026-01-23T15:24:46.123456Z door 1", "2026-01-23T15:24:46.123456Z temperature 21.52",
					})
				}
			}
		}
	}
}

func mosquitto(t *testing.T, n *devcluster.Node, version string, qos int, topic, payload string) {
	t.Helper()
	_, port, _ := strings.Cut(n.MQTT, ":")
	out, err := exec.CommandContext(t.Context(), "mosquitto_pub", "-V", version, "-p", port, "-q", fmt.Sprint(qos), "-t", topic, "-m", payload).CombinedOutput()
	if err != nil {
		t.Fatalf("mosquitto_pub -V %s -q %d on %s: %v\n%s", version, qos, n.ID, err, out)
	}
}

// awaitReadings waits for an answer: a publish of QoS 0 has no ack to wait for.
func awaitReadings(t *testing.T, n *devcluster.Node, device string, want []string) {
	t.Helper()
	var got []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		stored, err := readings(t.Context(), n, device)
		if err != nil {
			t.Fatalf("read %s on %s: %v", device, n.ID, err)
		}
		got = got[:0]
		for _, r := range stored {
			got = append(got, fmt.Sprintf("%s %s %v", r.Time.Format("2006-01-02T15:04:05.000000Z07:00"), r.Sensor, r.Value))
		}
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
	}
	t.Fatalf("%s on %s: got %q, want %q", device, n.ID, got, want)
}

func TestRedeliveryToAnotherNodeIsADuplicateNotASecondRow(t *testing.T) {
	c := start(t)
	line := `{"device_id":"again","timestamp":"2026-01-23T15:24:46.123456","sensors":{"temperature":21.52}}`
	for i, n := range c.Nodes() {
		counts := post(t, n, line)
		if want := (api.Counts{Received: 1, Applied: b2i(i == 0), Duplicate: b2i(i > 0)}); counts.Applied != want.Applied || counts.Duplicate != want.Duplicate {
			t.Errorf("publish %d on %s: %+v, want %+v", i, n.ID, counts, want)
		}
	}
	awaitReadings(t, c.Nodes()[1], "again", []string{"2026-01-23T15:24:46.123456Z temperature 21.52"})
	other := strings.ReplaceAll(line, "21.52", "21.53") // another value at the same time is a row of its own
	if counts := post(t, c.Nodes()[2], other); counts.Applied != 1 {
		t.Errorf("another value at the same time: %+v, want it applied", counts)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func post(t *testing.T, n *devcluster.Node, lines string) api.Counts {
	t.Helper()
	cl := clientOf(t, n)
	counts, err := cl.Publish(t.Context(), []byte(lines), "")
	if err != nil {
		t.Fatalf("post on %s: %v", n.ID, err)
	}
	return counts
}

func clientOf(t *testing.T, n *devcluster.Node) *client.Client {
	t.Helper()
	cl, err := n.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func TestQuarantineIsListedReplayedCorrectedAndDropped(t *testing.T) {
	c := start(t)
	bad := `{"device_id":"q1","timestamp":"2026-01-23T15:24:46Z","sensors":{"temperature":[1]}}`
	cl := clientOf(t, c.Nodes()[0])
	counts, err := cl.Publish(t.Context(), []byte(bad+"\n"+`{"device_id":"q1","sensors":{"ok":1}}`+"\n"+`nonsense`), "")
	if err != nil || counts.Quarantined != 2 || counts.Applied != 1 {
		t.Fatalf("%+v, %v; want 2 quarantined, 1 applied", counts, err)
	}
	list := quarantined(t, c.Nodes()[1])
	if len(list) != 2 {
		t.Fatalf("quarantine holds %d messages, want 2: %+v", len(list), list)
	}
	other := clientOf(t, c.Nodes()[2])
	for _, q := range list {
		if string(q.Payload) == bad {
			fixed := strings.ReplaceAll(bad, "[1]", "1")
			if counts, err := other.Replay(t.Context(), q.ID, []byte(fixed)); err != nil || counts.Applied != 1 {
				t.Errorf("replay corrected: %+v, %v", counts, err)
			}
		} else if err := other.Drop(t.Context(), q.ID); err != nil {
			t.Errorf("drop: %v", err)
		}
	}
	if left := quarantined(t, c.Nodes()[0]); len(left) != 0 {
		t.Errorf("quarantine still holds %+v", left)
	}
	l, err := cl.Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Totals; got.Received != 4 || got.Quarantined != 2 || got.Applied != 2 {
		t.Errorf("ledger %+v, want 4 received, 2 quarantined, 2 applied", got)
	}
}

func quarantined(t *testing.T, n *devcluster.Node) (out []api.Quarantined) {
	t.Helper()
	for q, err := range clientOf(t, n).Quarantine(t.Context(), client.ListQuery{}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, q)
	}
	return out
}

func TestStatusShowsZonesRolesAndBalancedLeaders(t *testing.T) {
	c := start(t)
	cl := clientOf(t, c.Nodes()[2])
	leaders := map[string]int{}
	var st api.Status
	for end := time.Now().Add(eventuallyMax); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		var err error
		if st, err = cl.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		clear(leaders)
		for _, s := range st.Shards {
			leaders[string(s.Leader)]++
		}
		if leaders["n0"] == 8 && leaders["n1"] == 8 && leaders["n2"] == 8 {
			break
		}
	}
	if leaders["n0"] != 8 || leaders["n1"] != 8 || leaders["n2"] != 8 {
		t.Errorf("leaders are not balanced: %v, want 8 of 24 on each node", leaders)
	}
	if !st.ZoneSafe || len(st.Nodes) != 3 || len(st.Shards) != 24 || len(st.Alarms) != 0 {
		t.Errorf("status: zone safe %v, %d nodes, %d shards, alarms %q", st.ZoneSafe, len(st.Nodes), len(st.Shards), st.Alarms)
	}
	for _, s := range st.Shards {
		zones := map[string]bool{}
		for _, r := range s.Replicas {
			zones[string(r.Zone)] = true
		}
		if len(zones) != 3 {
			t.Errorf("shard %d has replicas in %d zones, want 3", s.ID, len(zones))
		}
	}
}

func TestClusterContinuesOnTheSameData(t *testing.T) {
	dir := t.TempDir()
	var opt devcluster.Options
	first := start(t, func(o *devcluster.Options) { o.Dir, opt = dir, *o; opt.Dir = dir })
	post(t, first.Nodes()[0], `{"device_id":"kept","timestamp":"2026-01-23T15:24:46Z","sensors":{"temperature":1.5}}`)
	before, err := clientOf(t, first.Nodes()[0]).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := start(t, func(o *devcluster.Options) { o.Dir = dir })
	after, err := clientOf(t, again.Nodes()[1]).Status(t.Context())
	if err != nil || after.ClusterID != before.ClusterID {
		t.Errorf("cluster id %q (%v), want %q", after.ClusterID, err, before.ClusterID)
	}
	awaitReadings(t, again.Nodes()[2], "kept", []string{"2026-01-23T15:24:46.000000Z temperature 1.5"})
	if counts := post(t, again.Nodes()[1], `{"device_id":"kept","timestamp":"2026-01-23T15:24:46Z","sensors":{"temperature":1.5}}`); counts.Duplicate != 1 {
		t.Errorf("a repeat after the restart: %+v, want a duplicate", counts)
	}
}

func TestAnomalyIsListedAndPushed(t *testing.T) {
	c := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Nodes()[1].HTTP+"/api/v1/anomalies/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }() // an endless stream
	var lines bytes.Buffer
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 600 {
		v := 20 + float64(i*7919%100)/500
		if i >= 500 && i < 504 {
			v += 25
		}
		fmt.Fprintf(&lines, `{"device_id":"odd","timestamp":%q,"sensors":{"temperature":%.3f}}`+"\n", at.Add(time.Duration(i)*time.Minute).Format(time.RFC3339), v)
	}
	post(t, c.Nodes()[0], lines.String())
	var found []api.Anomaly
	for a, err := range clientOf(t, c.Nodes()[2]).Anomalies(ctx, client.ListQuery{Device: "odd"}) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, a)
	}
	if len(found) == 0 || found[len(found)-1].Sensor != "temperature" || found[len(found)-1].Value < 40 {
		t.Fatalf("anomalies of the odd device: %+v, want the jump of 25 degrees", found)
	}
	want := `"id":"` + found[len(found)-1].ID + `"`
	var got strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(got.String(), want) {
		k, err := res.Body.Read(buf)
		got.Write(buf[:k])
		if err == io.EOF || ctx.Err() != nil {
			t.Fatalf("the stream ended with %q, want an event with %s", got.String(), want)
		}
	}
	if !strings.Contains(got.String(), "event: opened") {
		t.Errorf("the stream has no opened event: %q", got.String())
	}
}
