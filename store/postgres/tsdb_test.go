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

	"github.com/sluice-iot/sluice/store"
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

	jobs := func() []string {
		return ask[string](t, url, `select proc_name || ' ' || hypertable_name || ' ' || coalesce(config ->> 'drop_after', config ->> 'compress_after', config ->> 'end_offset')
			from timescaledb_information.jobs where job_id >= 1000 and proc_name <> 'policy_refresh_continuous_aggregate' order by 1`)
	}
	if got, want := jobs(), []string{"policy_compression telemetry 168:00:00", "policy_retention telemetry 2160:00:00"}; !slices.Equal(got, want) {
		t.Errorf("jobs %q, want %q", got, want)
	}
	id := one[int32](t, url, "select job_id from timescaledb_information.jobs where proc_name = 'policy_compression'")
	if n := one[int64](t, url, "select count(*) from timescaledb_information.jobs where proc_name = 'policy_refresh_continuous_aggregate'"); n != 2 {
		t.Errorf("%d refresh jobs, want 2", n)
	}
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
	cfg.Retention, cfg.CompressAfter, cfg.AggregateRetention = 0, 14*day, 400*day
	if err := Migrate(t.Context(), quiet(), cfg); err != nil {
		t.Fatal(err)
	}
	got := jobs()
	if len(got) != 3 || got[0] != "policy_compression telemetry 336:00:00" || !strings.Contains(got[1], "9600:00:00") || !strings.Contains(got[2], "9600:00:00") {
		t.Errorf("jobs after a change %q", got)
	}
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
