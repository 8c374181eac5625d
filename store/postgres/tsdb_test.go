package postgres

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// timescale starts TimescaleDB as WebAssembly and returns its URL. It has one
// session: a DB uses one connection, and is closed before anyone else asks.
func timescale(t *testing.T) string {
	t.Helper()
	const dir = "testdata/tsdb"
	if _, err := os.Stat(dir + "/node_modules"); err != nil {
		t.Skip("TimescaleDB as WebAssembly is not installed: run deploy/test-deps.sh")
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("Node.js is not installed: run deploy/test-deps.sh")
	}
	cmd := exec.CommandContext(t.Context(), node, "server.mjs")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close() // that ends it
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	port, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if err != nil || !ok {
		t.Fatalf("server.mjs says %q, %v", line, err)
	}
	return fmt.Sprintf("postgres://postgres:x@127.0.0.1:%s/postgres?sslmode=disable", port)
}

func TestTimescaleHoldsAHypertable(t *testing.T) {
	url := timescale(t)
	cfg := config(url)
	cfg.Conns = 1
	db := open(t, cfg)
	const week = 7 * 24 * 3600 * 1_000_000
	first, second := fleet(5, 0, 40, 20, 30, t0), fleet(5, 40, 90, 20, 30, t0+3*week)
	write(t, db, first)
	write(t, db, second)
	if w := mismatch(t, db.Write(t.Context(), second)); w.Have != 90 {
		t.Fatalf("repeated write: %+v", w)
	}
	got, w := read(t, db, 5, all("sensor-00007"))
	if want := points("sensor-00007", first, second); w != 90 || !samePoints(got, want) {
		t.Fatalf("watermark %d, %d points, want 90 and %d", w, len(got), len(want))
	}
	pageAfter := store.Query{Device: "sensor-00007", Sensor: "humidity", From: t0, To: t0 + 4*week, Limit: 10, After: &got[50]}
	if page, _ := read(t, db, 5, pageAfter); len(page) != 10 || page[0].Compare(&got[50]) <= 0 {
		t.Fatalf("page behind %+v begins at %+v", got[50], page)
	}
	if !db.Hypertable() {
		t.Fatal("telemetry is no hypertable")
	}
	if n := one[int64](t, url, "select count(*) from timescaledb_information.chunks where hypertable_name = 'telemetry'"); n != 2 {
		t.Errorf("%d chunks, want 2", n)
	}
	if n := one[int64](t, url, "select count(*) from devices"); n != 20 {
		t.Errorf("%d devices, want 20", n)
	}
	t.Run("refused rows", func(t *testing.T) { timescaleRefusesARow(t, url, db) })
}

// TestTimescaleKeepsAggregatesAndPolicies: what the configuration says becomes
// jobs; buckets are exact before a refresh, after it, and while late readings
// wait for the next one.
func TestTimescaleKeepsAggregatesAndPolicies(t *testing.T) {
	url := timescale(t)
	cfg := config(url)
	cfg.Conns, cfg.Retention, cfg.CompressAfter = 1, 90*day, 7*day
	db := open(t, cfg)
	first, second := hourly(5, 0, 40, t0), hourly(5, 40, 90, t0+2*hour+7_000_000)
	write(t, db, first)
	write(t, db, second)
	askAggregates(t, db, first, second)
	refresh := func() {
		for _, v := range aggregateViews {
			ask[string](t, url, "call refresh_continuous_aggregate('"+v.Name+"', null, '2026-03-01Z')")
		}
	}
	refresh()
	q := store.Aggregate{Device: "sensor-00007", From: t0 - hour, To: t0 + 10*hour, StepMicros: hour, Limit: 1000}
	aggregate(t, db, q, first, second)
	if s := db.newStretch(q); s.view != "telemetry_1h" {
		t.Fatalf("the hourly view is not used: %+v", s)
	}
	askAggregates(t, db, first, second)
	late := hourly(5, 90, 95, t0+hour+13_000_000)
	late.Rows = late.Rows[len(late.Rows)-2000:]
	write(t, db, late)
	askAggregates(t, db, first, second, late)
	refresh()
	askAggregates(t, db, first, second, late)

	if got, want := jobs(t, url), []string{
		"policy_compression telemetry 168:00:00", "policy_refresh_continuous_aggregate telemetry_1h 2136:00:00 02:00:00 00:30:00",
		"policy_refresh_continuous_aggregate telemetry_1m 2136:00:00 00:02:00 00:01:00", "policy_retention telemetry 2160:00:00",
	}; !slices.Equal(got, want) {
		t.Errorf("jobs %q, want %q", got, want)
	}
	id := one[int32](t, url, "select job_id from timescaledb_information.jobs where proc_name = 'policy_compression'")
	ask[string](t, url, "call run_job("+strconv.Itoa(int(id))+")")
	if n := one[int64](t, url, "select count(*) from timescaledb_information.chunks where hypertable_name = 'telemetry' and is_compressed"); n != 1 {
		t.Errorf("%d compressed chunks, want 1", n)
	}
	if got, _ := read(t, db, 5, all("sensor-00007")); !samePoints(got, points("sensor-00007", first, second, late)) {
		t.Error("readings differ after the compression")
	}
	later := hourly(5, 95, 99, t0+3*hour+17_000_000)
	write(t, db, later) // into the compressed chunk
	askAggregates(t, db, first, second, late, later)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	t.Run("changed", func(t *testing.T) { changePolicies(t, url, cfg) })
}

// jobs lists those of TimescaleDB with their intervals.
func jobs(t *testing.T, url string) []string {
	return ask[string](t, url, `select proc_name || ' ' || hypertable_name || ' ' || case proc_name
			when 'policy_retention' then config ->> 'drop_after' when 'policy_compression' then config ->> 'compress_after'
			else coalesce(config ->> 'start_offset', '-') || ' ' || (config ->> 'end_offset') || ' ' || schedule_interval end
		from timescaledb_information.jobs where job_id >= 1000 order by 1`)
}

// changePolicies: whatever the configuration says now is altered in place, and a
// job that is as it should be is left alone.
func changePolicies(t *testing.T, url string, cfg Config) {
	compression := func() int32 {
		return one[int32](t, url, "select job_id from timescaledb_information.jobs where proc_name = 'policy_compression'")
	}
	for _, c := range []struct {
		retention, aggregates, compress, refresh, chunk time.Duration
		jobs                                            []string
		chunks                                          string
	}{
		{0, 400 * day, 14 * day, 0, 7 * day, []string{
			"policy_compression telemetry 336:00:00", "policy_refresh_continuous_aggregate telemetry_1h 9576:00:00 02:00:00 00:30:00",
			"policy_refresh_continuous_aggregate telemetry_1m 9576:00:00 00:02:00 00:01:00",
			"policy_retention telemetry_1h 9600:00:00", "policy_retention telemetry_1m 9600:00:00",
		}, "7 days"},
		{30 * day, 400 * day, 14 * day, time.Hour, day, []string{
			"policy_compression telemetry 336:00:00", "policy_refresh_continuous_aggregate telemetry_1h 696:00:00 02:00:00 01:00:00",
			"policy_refresh_continuous_aggregate telemetry_1m 696:00:00 00:02:00 01:00:00",
			"policy_retention telemetry 720:00:00", "policy_retention telemetry_1h 9600:00:00", "policy_retention telemetry_1m 9600:00:00",
		}, "1 day"},
		{time.Hour, 0, 0, 0, day, []string{ // no shorter than the refresh of the hours allows
			"policy_refresh_continuous_aggregate telemetry_1h 04:30:00 02:00:00 00:30:00",
			"policy_refresh_continuous_aggregate telemetry_1m 04:30:00 00:02:00 00:01:00", "policy_retention telemetry 06:00:00",
		}, "1 day"},
		{0, 0, 0, 0, 0, []string{
			"policy_refresh_continuous_aggregate telemetry_1h - 02:00:00 00:30:00", "policy_refresh_continuous_aggregate telemetry_1m - 00:02:00 00:01:00",
		}, "7 days"},
	} {
		cfg.Retention, cfg.AggregateRetention, cfg.CompressAfter, cfg.RefreshEvery, cfg.Chunk = c.retention, c.aggregates, c.compress, c.refresh, c.chunk
		var before int32
		for again := range 2 {
			if err := Migrate(t.Context(), quiet(), cfg); err != nil {
				t.Fatal(err)
			}
			if c.compress == 0 {
				break
			}
			if id := compression(); again > 0 && id != before {
				t.Error("a job was made anew although nothing had changed")
			} else {
				before = id
			}
		}
		if got := jobs(t, url); !slices.Equal(got, c.jobs) {
			t.Errorf("jobs %q, want %q", got, c.jobs)
		}
		if got := one[string](t, url, "select time_interval::text from timescaledb_information.dimensions where hypertable_name = 'telemetry'"); got != c.chunks {
			t.Errorf("chunks of %s, want %s", got, c.chunks)
		}
	}
}

// TestTimescaleAnswersWhatOneRetentionHasLeft: buckets come from the aggregates
// where the readings are gone, and from the readings where the aggregates are.
func TestTimescaleAnswersWhatOneRetentionHasLeft(t *testing.T) {
	const week = 7 * 24 * hour
	url := timescale(t)
	cfg := config(url)
	cfg.Conns = 1
	db := open(t, cfg)
	begin := t0 - t0%hour
	old, middle, young := hourly(5, 0, 40, begin), hourly(5, 40, 90, begin+20*week), hourly(5, 90, 95, begin+40*week)
	for _, b := range []*telemetry.Batch{old, middle, young} {
		write(t, db, b)
	}
	refresh := func(from string) {
		for _, v := range aggregateViews {
			ask[string](t, url, "call refresh_continuous_aggregate('"+v.Name+"', "+from+", '2026-11-20Z')")
		}
	}
	askBoth := func(batches ...*telemetry.Batch) {
		t.Helper()
		for _, step := range []int64{5 * minute, hour, 24 * hour} {
			q := store.Aggregate{Device: "sensor-00007", From: begin - 24*hour, To: begin + 60*week, StepMicros: step, Limit: 10_000}
			if aggregate(t, db, q, batches...); db.newStretch(q).view == "" {
				t.Fatal("no view is used")
			}
		}
	}
	refresh("null")
	askBoth(old, middle, young)
	ask[string](t, url, "select drop_chunks('telemetry', timestamptz '2026-03-01Z')::text")
	askBoth(old, middle, young)
	refresh("'2026-03-01Z'")
	askBoth(old, middle, young)
	late := hourly(5, 95, 99, begin+20*week+13_000_000)
	write(t, db, late)
	askBoth(old, middle, young, late)
	refresh("'2026-03-01Z'")
	askBoth(old, middle, young, late)
	for _, v := range aggregateViews {
		ask[string](t, url, "select drop_chunks('"+v.Name+"', timestamptz '2026-10-01Z')::text")
	}
	askBoth(middle, young, late)
}

// TestTimescaleLeastPrivilege follows doc.go as TestLeastPrivilege does. The one
// session takes the role of whoever is at work.
func TestTimescaleLeastPrivilege(t *testing.T) {
	url := timescale(t)
	ask[int](t, url, "create extension if not exists timescaledb cascade")
	for _, role := range []string{"sluice_owner", "sluice_writer", "sluice_reader"} {
		ask[int](t, url, "create role "+role+" login")
	}
	ask[int](t, url, "grant create on schema public to sluice_owner")
	ask[int](t, url, "set role sluice_owner")
	cfg := config(url)
	cfg.Conns, cfg.Retention, cfg.CompressAfter = 1, 90*day, 7*day
	if err := Migrate(t.Context(), quiet(), cfg); err != nil {
		t.Fatal(err)
	}
	if got := jobs(t, url); len(got) != 4 {
		t.Errorf("jobs %q", got)
	}
	for _, grant := range grants(t) {
		if !strings.Contains(grant, "telemetry_partition") {
			ask[int](t, url, grant)
		}
	}
	refresh := func() { ask[string](t, url, "call refresh_continuous_aggregate('telemetry_1h', null, '2026-03-01Z')") }
	refresh()
	ask[int](t, url, "set role sluice_writer")
	cfg.ManualMigrations = true
	db := open(t, cfg)
	b := hourly(5, 0, 40, t0)
	b.Updates = []telemetry.DeviceUpdate{{Device: "sensor-00007", FirstSeen: t0, LastSeen: t0, Attributes: []telemetry.Attribute{{Key: "model", Value: "x1"}}}}
	b.Anomalies = []telemetry.Anomaly{{ID: "1-1-0", Device: "sensor-00007"}}
	write(t, db, b)
	askAggregates(t, db, b)
	if q := (store.Aggregate{Device: "sensor-00007", To: t0 + 9*hour, StepMicros: hour}); db.newStretch(q).view == "" {
		t.Error("the writer does not use the aggregates")
	}
	if _, err := db.DeadLetters(t.Context(), LetterQuery{Limit: 10}); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Retention = 30 * day
	if err := Migrate(t.Context(), quiet(), cfg); err == nil {
		t.Error("who does not own the tables is told that they are up to date")
	}
	ask[int](t, url, "set role sluice_reader")
	for _, table := range []string{"telemetry", "telemetry_1m", "telemetry_1h", "devices", "device_changes", "anomalies"} {
		if n := one[int64](t, url, "select count(*) from "+table); n == 0 {
			t.Errorf("the reader sees nothing in %s", table)
		}
	}
	ask[int](t, url, "set role sluice_owner")
	refresh()
	ask[int](t, url, "reset role")
}

// timescaleRefusesARow: bisection behind savepoints works in a hypertable, whose
// chunks check constraints by themselves.
func timescaleRefusesARow(t *testing.T, url string, db *DB) {
	stored := one[int64](t, url, "select count(*) from telemetry")
	ask[int](t, url, "alter table telemetry add constraint plausible check (value < 1000)")
	b := fleet(1, 0, 2, 50, 20, t0)
	b.Rows[777].Value, b.Rows[2500].Value = 5000, 6000
	write(t, db, b)
	if n := one[int64](t, url, "select count(*) from telemetry"); n != stored+int64(len(b.Rows))-2 {
		t.Errorf("%d rows stored of %d", n-stored, len(b.Rows))
	}
	if n := one[int64](t, url, "select count(*) from dead_letters where reason like '%plausible%' and sqlstate = '23514'"); n != 2 {
		t.Errorf("%d dead letters, want 2", n)
	}
}
