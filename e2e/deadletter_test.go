package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
)

// A row that a constraint of the user's refuses is listed with the reason, keeps
// nothing else out, and goes in when the constraint is gone.
func TestRefusedRowsByCommand(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{})
	url := server.Database(t)
	c := start(t, func(o *devcluster.Options) { o.Database, o.FlushInterval = url, 200*time.Millisecond })
	a, b := c.Nodes()[0], c.Nodes()[1]
	publish := func(lines string) {
		t.Helper()
		if counts, err := clientOf(t, a).Publish(t.Context(), []byte(lines), ""); err != nil || counts.Applied == 0 {
			t.Fatalf("%+v, %v", counts, err)
		}
		awaitFlushed(t, c)
	}
	publish(`{"device_id":"r1","timestamp":"2026-01-23T15:24:46Z","sensors":{"t":1}}`)
	server.Exec(t, url, "alter table telemetry add constraint plausible check (value < 1000)")
	publish(`{"device_id":"r1","timestamp":"2026-01-23T15:24:47Z","sensors":{"t":5000.5,"u":2}}` + "\n" + `{"device_id":"r1","timestamp":"2026-01-23T15:24:48Z","sensors":{"t":6000}}`)

	letters := deadLetters(t, b, "r1")
	if len(letters) != 2 || letters[0].Kind != "reading" || letters[0].SQLState != "23514" {
		t.Fatalf("dead letters %+v", letters)
	}
	wants(t, "list", succeeds(t, b, "deadletter", "list"), `"plausible"`, "23514")
	id := func(i int) string { return strconv.FormatInt(letters[i].ID, 10) }
	fails(t, b, "plausible", "deadletter", "replay", id(0))
	wants(t, "replay --all", succeeds(t, b, "deadletter", "replay", "--all"), "0 stored, 2 refused still")
	wants(t, "drop", succeeds(t, a, "deadletter", "drop", id(0)), id(0)+" dropped")
	fails(t, a, id(0), "deadletter", "drop", id(0))
	_, stderr, _ := try(t, "deadletter", "replay", id(0), "--api", "http://"+a.HTTP)
	if wants(t, "replay of what is gone", stderr, "no such dead letter"); strings.Contains(stderr, "unavailable") {
		t.Errorf("a letter that is gone may come back: %s", stderr)
	}
	server.Exec(t, url, "alter table telemetry drop constraint plausible")
	wants(t, "replay", succeeds(t, a, "deadletter", "replay", id(1)), id(1)+" stored")
	wants(t, "query", succeeds(t, b, "query", "r1"), "5000.5")
	fails(t, a, "lost nothing", "shards", "accept-loss", "3")
}

// deadLetters lists by command what was refused of a device.
func deadLetters(t *testing.T, n *devcluster.Node, device string) []api.DeadLetter {
	t.Helper()
	var letters []api.DeadLetter
	for _, line := range strings.Split(strings.TrimSpace(succeeds(t, n, "deadletter", "list", "--json", "--device", device)), "\n") {
		var l api.DeadLetter
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		letters = append(letters, l)
	}
	return letters
}

// refusedContent is what a letter of a reading holds.
type refusedContent struct {
	ID      string          `json:"message_id"`
	Key     string          `json:"message_key"`
	Message json.RawMessage `json:"message"`
}

// sameJSON compares two texts as JSON, numbers by their digits.
func sameJSON(t *testing.T, got, want []byte) bool {
	t.Helper()
	var a, b any
	for text, v := range map[*[]byte]*any{&got: &a, &want: &b} {
		d := json.NewDecoder(bytes.NewReader(*text))
		d.UseNumber()
		if err := d.Decode(v); err != nil {
			t.Fatalf("%s: %v", *text, err)
		}
	}
	return reflect.DeepEqual(a, b)
}

// A dead letter holds the message as it was published, over MQTT and HTTP, however
// many of its readings were refused; what was refused goes in once, when it may.
func TestDeadLettersHoldTheMessageThatWasPublished(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{})
	url := server.Database(t)
	c := start(t, func(o *devcluster.Options) { o.Database, o.FlushInterval = url, 200*time.Millisecond })
	a, b := c.Nodes()[0], c.Nodes()[1]
	ctx := t.Context()
	if _, err := clientOf(t, a).Publish(ctx, []byte(`{"device_id":"first","sensors":{"t":1}}`), ""); err != nil {
		t.Fatal(err)
	}
	awaitFlushed(t, c)
	server.Exec(t, url, "alter table telemetry add constraint plausible check (value < 1000)")

	small := `{"device_id":"p1","timestamp":"2026-01-23T15:24:46.123456Z","metadata":{"site":"north"},"sensors":{"t":5000.50,"u":21.50,"on":true}}`
	device := dialMQTT(t, a, mqttOptions{id: "p1", clean: true, brief: true})
	if _, err := device.Publish(ctx, &paho.Publish{Topic: "devices/p1/telemetry", QoS: 1, Payload: []byte(small)}); err != nil {
		t.Fatal(err)
	}
	const readings = 100
	sensors := make([]string, readings)
	for i := range sensors {
		sensors[i] = fmt.Sprintf(`"s%03d":%d.25`, i, 1000+i-20) // 80 of them are refused
	}
	large := `{"device_id":"p2","sensors":{` + strings.Join(sensors, ",") + `}}`
	if counts, err := clientOf(t, b).Publish(ctx, []byte(large), "order-66"); err != nil || counts.Applied != 1 {
		t.Fatalf("%+v, %v", counts, err)
	}
	awaitFlushed(t, c)

	content := func(l *api.DeadLetter) (r refusedContent) {
		t.Helper()
		if err := json.Unmarshal(l.Content, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	of1, of2 := deadLetters(t, b, "p1"), deadLetters(t, b, "p2")
	if len(of1) != 1 || len(of2) != readings-20 {
		t.Fatalf("%d and %d letters, want 1 and %d", len(of1), len(of2), readings-20)
	}
	if r := content(&of1[0]); !sameJSON(t, r.Message, []byte(small)) || r.Key != "" || !strings.HasPrefix(r.ID, fmt.Sprintf("%d-", of1[0].Shard)) {
		t.Errorf("letter of p1: %s", of1[0].Content)
	}
	ids := map[string]bool{}
	for i := range of2 {
		r := content(&of2[i])
		ids[r.ID] = true
		if len(r.Key) != 32 {
			t.Errorf("letter of p2: %s", of2[i].Content)
		}
	}
	if len(ids) != 1 {
		t.Errorf("the message has ids %v", ids)
	}
	for _, l := range []*api.DeadLetter{&of2[0], &of2[40], &of2[readings-21]} {
		var whole api.DeadLetter
		if err := json.Unmarshal([]byte(succeeds(t, a, "deadletter", "show", strconv.FormatInt(l.ID, 10))), &whole); err != nil {
			t.Fatal(err)
		}
		if r := content(&whole); !sameJSON(t, r.Message, []byte(large)) {
			t.Errorf("letter %d: %s", l.ID, whole.Content)
		}
	}
	fails(t, a, "999999", "deadletter", "show", "999999")

	server.Exec(t, url, "alter table telemetry drop constraint plausible")
	wants(t, "replay --all", succeeds(t, b, "deadletter", "replay", "--all"), fmt.Sprintf("%d stored, 0 refused still", readings-20+1))
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var rows, distinct, left int
	err = conn.QueryRow(ctx, `select count(*), count(distinct (device_id, time, sensor, value)),
		(select count(*) from dead_letters) + (select count(*) from dead_messages) from telemetry where device_id in ('p1', 'p2')`).Scan(&rows, &distinct, &left)
	if err != nil || rows != readings+3 || distinct != rows || left != 0 {
		t.Errorf("%d rows, %d different, %d letters and messages left, want %d, each once: %v", rows, distinct, left, readings+3, err)
	}
}

func TestEmbeddedStoreRefusesNoRows(t *testing.T) {
	c := start(t)
	fails(t, c.Nodes()[0], "files, which refuse none", "deadletter", "list")
}

// A database that fails over to a copy without its tail gets the rows back.
func TestDatabaseWithoutItsTailIsRefilled(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{})
	url := server.Database(t)
	c := start(t, func(o *devcluster.Options) { o.Database, o.FlushInterval = url, 200*time.Millisecond })
	fleet, stop := publish(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), eventuallyMax)
	defer cancel()
	wait := func(n int) {
		t.Helper()
		for from := acked(fleet); acked(fleet) < from+n && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		}
	}
	wait(1000)
	if err := server.Save(); err != nil {
		t.Fatal(err)
	}
	wait(2000)
	flushes(t, c) // which is what gets lost
	if err := server.FailOver(); err != nil {
		t.Fatal(err)
	}
	wait(1000)
	stop()
	judge(t, c, fleet)
	awaitFlushed(t, c)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	for end := time.Now().Add(flushedMax); time.Now().Before(end) && len(wrongInDatabase(t.Context(), conn, fleet)) > 0; {
		time.Sleep(200 * time.Millisecond) // idle shards look every half a minute
	}
	judgeDatabase(t, url, fleet)
	judge(t, c, fleet)
}
