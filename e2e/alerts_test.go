package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/alerts/webhook"
	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/telemetry"
)

// What an operator hears of anomalies, and that it outlives the node that had it
// to say.

const hookSecret = "a secret of sixteen bytes"

// receiver is somebody's alerting system. It refuses with 500 while it is down.
type receiver struct {
	*httptest.Server
	t *testing.T

	mu      sync.Mutex
	down    bool
	refused map[string]int // attempts while it was down, by anomaly's device
	taken   map[string][]webhook.Event
	keys    map[string]int // deliveries by X-Sluice-Event
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{t: t, refused: map[string]int{}, taken: map[string][]webhook.Event{}, keys: map[string]int{}}
	r.Server = httptest.NewServer(http.HandlerFunc(r.serve))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) serve(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var e webhook.Event
	var a api.Anomaly
	if err == nil {
		err = json.Unmarshal(body, &e)
	}
	if err == nil {
		err = json.Unmarshal(e.Anomaly, &a)
	}
	if err != nil || req.Header.Get("X-Sluice-Signature") != webhook.Signature(hookSecret, req.Header.Get("X-Sluice-Timestamp"), body) {
		r.t.Errorf("signature %q does not fit %q, error %v", req.Header.Get("X-Sluice-Signature"), body, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		r.refused[a.DeviceID]++
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	key := req.Header.Get("X-Sluice-Event")
	if r.keys[key]++; r.keys[key] == 1 {
		r.taken[a.DeviceID] = append(r.taken[a.DeviceID], e)
	}
}

func (r *receiver) setDown(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

func (r *receiver) of(device string) (refused int, taken []webhook.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused[device], append([]webhook.Event(nil), r.taken[device]...)
}

// hooked is a cluster whose nodes tell the receiver.
func hooked(t *testing.T, r *receiver, environ ...string) *devcluster.Cluster {
	return start(t, func(o *devcluster.Options) {
		o.Environ = append(o.Environ, environ...)
		o.Environ = append(o.Environ, "SLUICE_ALERTS_WEBHOOK_URL="+r.URL, "SLUICE_ALERTS_WEBHOOK_SECRET="+hookSecret)
	})
}

// reading is one message of a thermometer, i minutes after the first.
func reading(device string, i int, celsius float64) string {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(i) * time.Minute)
	return fmt.Sprintf(`{"device_id":%q,"timestamp":%q,"sensors":{"celsius":%g}}`+"\n", device, at.Format(time.RFC3339), celsius)
}

// leaderOf is the node that leads the shard of a device.
func leaderOf(t *testing.T, c *devcluster.Cluster, device string) (leader, other *devcluster.Node) {
	t.Helper()
	eventually(t, "the shard of "+device+" has a leader", func() bool {
		st, err := status(t, c.Nodes()...)
		if err != nil {
			return false
		}
		id := telemetry.ShardOf(device, uint32(len(st.Shards)))
		for _, n := range c.Nodes() {
			if string(st.Shards[id].Leader) == n.ID {
				leader = n
			} else {
				other = n
			}
		}
		return leader != nil
	})
	return leader, other
}

// A receiver that fails while the node with the event dies gets the event from
// the next leader; subscribers of MQTT and the event stream have it as well.
func TestAnomalyEventsOutliveTheNodeThatHadThem(t *testing.T) {
	r := newReceiver(t)
	r.setDown(true)
	c := hooked(t, r)
	const device = "boiler-1"
	leader, other := leaderOf(t, c, device)
	subscriber := dialMQTT(t, other, mqttOptions{id: "operator", clean: true})
	subscriber.subscribe("anomalies/+", 1)
	stream := make(chan api.Anomaly, 16)
	go func() {
		for e, err := range clientOf(t, other).Events(t.Context(), client.EventsQuery{}) {
			if err != nil {
				return
			}
			stream <- e.Anomaly
		}
	}()
	eventually(t, "the stream is there", func() bool { return metric(t, other, "sluice_api_streams") == 1 })
	wants(t, "range", succeeds(t, other, "anomalies", "range", "celsius", "--min=-40", "--max=125"), "celsius", "-40", "125")
	post(t, other, reading(device, 0, 20)+reading(device, 1, 3276.7))
	await(t, "the receiver refuses the event", func() bool { n, _ := r.of(device); return n > 0 })
	await(t, "the subscriber has it", func() bool {
		return strings.Contains(strings.Join(subscriber.received(), "\n"), `"event":"opened"`)
	})
	select {
	case a := <-stream:
		if a.DeviceID != device || a.Cause != "out of physical range" {
			t.Errorf("the stream says %+v", a)
		}
	case <-time.After(patience):
		t.Error("nothing on the stream")
	}
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	r.setDown(false)
	await(t, "the next leader tells the receiver", func() bool { _, got := r.of(device); return len(got) > 0 })
	if _, got := r.of(device); got[0].Kind != "opened" || got[0].Grade != "critical" || got[0].Change == 0 {
		t.Errorf("the receiver got %+v", got[0])
	}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
}

// A receiver that never takes an event leaves a dead letter, and the event is not
// told again.
func TestEventsNobodyTakesAreDeadLetters(t *testing.T) {
	r := newReceiver(t)
	r.setDown(true)
	c := hooked(t, r, "SLUICE_ALERTS_WEBHOOK_ATTEMPTS=2")
	leader, other := leaderOf(t, c, "boiler-2")
	succeeds(t, other, "anomalies", "range", "celsius", "--min=-40", "--max=125")
	post(t, other, reading("boiler-2", 0, 999))
	await(t, "two attempts", func() bool { n, _ := r.of("boiler-2"); return n == 2 })
	await(t, "a dead letter", func() bool { return metric(t, leader, "sluice_webhook_dead_letters_total") == 1 })
	if got := metric(t, leader, "sluice_webhook_events_total"); got != 0 {
		t.Errorf("%v events were taken", got)
	}
}

// A maintenance silences a device, its end does not; what was normal closes.
func TestOperatorsWordsTakeEffect(t *testing.T) {
	c := start(t)
	n := c.Nodes()[0]
	succeeds(t, n, "anomalies", "range", "celsius", "--min=-40", "--max=125")
	post(t, n, reading("kiln-1", 0, 20)+reading("kiln-2", 0, 20))
	wants(t, "maintenance", succeeds(t, n, "anomalies", "maintenance", "kiln-1", "--for", "2h"), "kiln-1", "until")
	wants(t, "end of a maintenance", succeeds(t, n, "anomalies", "maintenance", "kiln-2", "--clear"), "kiln-2", "again")
	post(t, c.Nodes()[1], reading("kiln-1", 1, 999)+reading("kiln-2", 1, 999))
	list := succeeds(t, c.Nodes()[2], "anomalies", "--json")
	var a api.Anomaly
	if err := json.Unmarshal([]byte(list), &a); err != nil || a.DeviceID != "kiln-2" || a.Closed != nil {
		t.Fatalf("anomalies %s, error %v, want one of kiln-2 that is open", list, err)
	}
	succeeds(t, n, "anomalies", "normal", a.ID)
	if err := json.Unmarshal([]byte(succeeds(t, n, "anomalies", "--json")), &a); err != nil || a.Closed == nil || !a.Normal {
		t.Errorf("anomaly %+v, error %v, want it closed and normal", a, err)
	}
	fails(t, n, `no anomaly has the id "0-1-999": sluice anomalies --json lists the ids`, "anomalies", "normal", "0-1-999")
	wants(t, "target", succeeds(t, n, "anomalies", "target"), "1 false alarms")
	wants(t, "target", succeeds(t, n, "anomalies", "target", "0.2"), "0.2 false alarms")
	fails(t, n, "0.001", "anomalies", "target", "1e9")
}

// Scores go on where they were when the leader is killed and when it comes back:
// those stored equal, to the last bit, those of a detector that saw the same
// messages undisturbed.
func TestScoresGoOnThroughFailover(t *testing.T) {
	c := start(t)
	const device, messages = "mill-1", 900
	det := anomaly.New(anomaly.DefaultParams())
	var state anomaly.State
	state.SetSensors(1)
	var want []float64
	batch := func(from, to int, via *devcluster.Node) {
		var lines strings.Builder
		for i := from; i < to; i++ {
			x := 20 + float64(i*7919%100)/50
			if i%211 == 210 {
				x += 15
			}
			at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(i) * time.Minute)
			want = append(want, float64(det.Step(&state, at.UnixMicro(), x).Score))
			lines.WriteString(reading(device, i, x))
		}
		post(t, via, lines.String())
	}
	leader, other := leaderOf(t, c, device)
	batch(0, 300, leader)
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	batch(300, 600, other)
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	everybodyVotes(t, other)
	second, third := leaderOf(t, c, device)
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	batch(600, messages, third)
	surprising := 0
	var got []float64
	for r, err := range clientOf(t, third).Readings(t.Context(), client.ReadingsQuery{Device: device}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, float64(r.Score))
		if r.Score > 0.3 {
			surprising++
		}
	}
	if len(got) != messages || surprising < 3 {
		t.Fatalf("%d readings, %d of them surprising, want %d and the jumps", len(got), surprising, messages)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("reading %d scores %v, undisturbed %v", i, got[i], want[i])
		}
	}
}

// Two thousand devices of a model that break at once, over 24 shards on three
// nodes, are one alert: in the list, in the event stream and for the receiver.
func TestChangeOfAFleetIsOneAlert(t *testing.T) {
	r := newReceiver(t)
	c := hooked(t, r)
	n := c.Nodes()[0]
	succeeds(t, n, "anomalies", "range", "celsius", "--min=-40", "--max=125")
	const devices = 2000
	for minute, celsius := range []float64{20, 999} {
		var lines strings.Builder
		for i := range devices {
			lines.WriteString(strings.Replace(reading(fmt.Sprintf("fridge-%d", i), minute, celsius), `"sensors"`, `"metadata":{"model":"f7"},"sensors"`, 1))
		}
		post(t, c.Nodes()[minute], lines.String())
	}
	var list []api.Anomaly
	for a, err := range clientOf(t, c.Nodes()[2]).Anomalies(t.Context(), client.ListQuery{}) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	if len(list) != 1 || list[0].DeviceID != "model:f7" || !strings.Contains(list[0].Shares, " of 2000 devices of the model") {
		t.Fatalf("%d anomalies are listed, the first are %+v, want one of the model", len(list), list[:min(len(list), 3)])
	}
	await(t, "the receiver has the alert", func() bool { _, got := r.of("model:f7"); return len(got) > 0 })
	r.mu.Lock()
	defer r.mu.Unlock()
	opened := 0
	for device, events := range r.taken {
		for _, e := range events {
			if e.Kind == "opened" {
				opened++
			}
			if device != "model:f7" {
				t.Errorf("the receiver was told of %s: %+v", device, e)
			}
		}
	}
	if opened != 1 {
		t.Errorf("%d alerts opened at the receiver: %+v", opened, r.taken)
	}
}

// The node that has the alert of a model to deliver is killed before the receiver
// takes it: the next leader of the model's shard delivers it.
func TestAlertOfAModelOutlivesTheNodeThatHadIt(t *testing.T) {
	r := newReceiver(t)
	r.setDown(true)
	c := hooked(t, r, "SLUICE_ALERTS_WEBHOOK_ATTEMPTS=100")
	const model, devices = "model:f8", 2000
	teller, other := leaderOf(t, c, model)
	succeeds(t, other, "anomalies", "range", "celsius", "--min=-40", "--max=125")
	for minute, celsius := range []float64{20, 999} {
		var lines strings.Builder
		for i := range devices {
			lines.WriteString(strings.Replace(reading(fmt.Sprintf("oven-%d", i), minute, celsius), `"sensors"`, `"metadata":{"model":"f8"},"sensors"`, 1))
		}
		post(t, other, lines.String())
	}
	eventually(t, "the receiver refuses the alert", func() bool { n, _ := r.of(model); return n > 0 })
	if err := teller.Kill(); err != nil {
		t.Fatal(err)
	}
	r.setDown(false)
	eventually(t, "the receiver has it from the next leader", func() bool { _, got := r.of(model); return len(got) > 0 })
	_, got := r.of(model)
	var a api.Anomaly
	if err := json.Unmarshal(got[0].Anomaly, &a); err != nil || got[0].Kind != "opened" || !strings.Contains(a.Shares, " of 2000 devices of the model") {
		t.Errorf("the receiver got %+v of %+v, error %v", got[0], a, err)
	}
	if err := teller.Start(); err != nil {
		t.Fatal(err)
	}
}
