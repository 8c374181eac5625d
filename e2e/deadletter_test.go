package e2e

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

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

	var letters []api.DeadLetter
	for _, line := range strings.Split(strings.TrimSpace(succeeds(t, b, "deadletter", "list", "--json", "--device", "r1")), "\n") {
		var l api.DeadLetter
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		letters = append(letters, l)
	}
	if len(letters) != 2 || letters[0].Kind != "reading" || letters[0].SQLState != "23514" {
		t.Fatalf("dead letters %+v", letters)
	}
	wants(t, "list", succeeds(t, b, "deadletter", "list"), `"plausible"`, "23514")
	id := func(i int) string { return strconv.FormatInt(letters[i].ID, 10) }
	fails(t, b, "plausible", "deadletter", "replay", id(0))
	wants(t, "replay --all", succeeds(t, b, "deadletter", "replay", "--all"), "0 stored, 2 refused still")
	wants(t, "drop", succeeds(t, a, "deadletter", "drop", id(0)), id(0)+" dropped")
	fails(t, a, id(0), "deadletter", "drop", id(0))
	server.Exec(t, url, "alter table telemetry drop constraint plausible")
	wants(t, "replay", succeeds(t, a, "deadletter", "replay", id(1)), id(1)+" stored")
	wants(t, "query", succeeds(t, b, "query", "r1"), "5000.5")
	fails(t, a, "lost nothing", "shards", "accept-loss", "3")
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
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
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
	time.Sleep(2 * time.Second) // most of it is flushed, which is what gets lost
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
