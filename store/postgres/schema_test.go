package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestNodesMigrateAtOnce(t *testing.T) {
	url := server(t).Database(t)
	var wg sync.WaitGroup
	errs := make([]error, 5)
	for i := range errs {
		wg.Go(func() { errs[i] = Migrate(context.Background(), quiet(), Config{URL: url}) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if v := one[int32](t, url, "select version from sluice_schema_version"); v != schemaVersion {
		t.Fatalf("schema version %d, want %d", v, schemaVersion)
	}
}

func TestPartitionsFollowTheReadings(t *testing.T) {
	url := server(t).Database(t)
	db := open(t, config(url))
	const week = 7 * 24 * 3600 * 1_000_000
	b := &telemetry.Batch{Shard: 1, To: 1, Term: 1, Devices: []string{"d"}, Sensors: []string{"s"}}
	now := time.Now().UnixMicro()
	times := []int64{-1, 0, t0, t0 + 1, t0 + week, now, now + 400*24*3600*1_000_000, 9_246_182_399_999_999}
	for i, at := range times {
		b.Rows = append(b.Rows, telemetry.Row{Time: at, Received: at, Value: float64(i)})
	}
	write(t, db, b)
	write(t, db, &telemetry.Batch{Shard: 1, From: 1, To: 2, Term: 1, Devices: b.Devices, Sensors: b.Sensors, Rows: b.Rows[2:3]})
	if n := one[int64](t, url, "select count(*) from telemetry_default"); n != 2 {
		t.Errorf("%d rows in the default partition, want the two more than a year ahead", n)
	}
	if n := one[int64](t, url, "select count(*) from telemetry_20260119"); n != 3 {
		t.Errorf("%d rows in the week from Monday 2026-01-19, want 3", n)
	}
	if got, _ := read(t, db, 1, all("d")); len(got) != len(times)+1 {
		t.Errorf("%d points read of %d", len(got), len(times)+1)
	}
	plan := strings.Join(ask[string](t, url, "explain select * from telemetry where device_id = 'd' and time >= '2026-01-20' and time < '2026-01-21'"), "\n")
	if strings.Contains(plan, "telemetry_default") == strings.Contains(plan, "telemetry_20260119") && !strings.Contains(plan, "telemetry_20260119") ||
		strings.Contains(plan, "telemetry_20260126") {
		t.Errorf("a day's query looks into other weeks:\n%s", plan)
	}
}

// TestPartitionsAreBounded: senseless times fill the default partition, not the
// catalogue, and the present still gets partitions.
func TestPartitionsAreBounded(t *testing.T) {
	var p partitions
	p.count = partitionsMax - 10
	const chunk = int64(7 * 24 * 3600 * 1_000_000)
	now := t0
	b := &telemetry.Batch{}
	for i := range int64(1000) {
		b.Rows = append(b.Rows, telemetry.Row{Time: i * chunk})
	}
	got := p.missing(b, chunk, now)
	if len(got) != 10 {
		t.Errorf("%d partitions wanted, want 10", len(got))
	}
	for _, n := range got {
		p.made(gap{firstMonday + n*chunk, firstMonday + (n+1)*chunk})
		p.note(n)
	}
	b.Rows = []telemetry.Row{{Time: 5}, {Time: now - 3*chunk}, {Time: now + 60*chunk}}
	if got := p.missing(b, chunk, now); len(got) != 1 || got[0] != floorDiv(now-3*chunk-firstMonday, chunk) {
		t.Errorf("beyond the bound %v are wanted", got)
	}
}

// TestPartitionsOfAnotherLength: after Config.Chunk has changed, new partitions
// take what the old ones leave, and the default one takes nothing.
func TestPartitionsOfAnotherLength(t *testing.T) {
	url := server(t).Database(t)
	const hours = 3600 * 1_000_000
	monday := firstMonday + floorDiv(t0-firstMonday, 168*hours)*168*hours
	to := uint64(0)
	put := func(chunk time.Duration, days ...int64) {
		t.Helper()
		cfg := config(url)
		cfg.Chunk = chunk
		db := open(t, cfg)
		b := &telemetry.Batch{Shard: 1, From: to, To: to + 1, Term: 1, Devices: []string{"d"}, Sensors: []string{"s"}}
		for _, day := range days {
			b.Rows = append(b.Rows, telemetry.Row{Time: monday + day*24*hours + 5, Received: monday, Value: float64(to)})
		}
		write(t, db, b)
		if to++; one[int64](t, url, "select count(*) from telemetry_default") != 0 {
			t.Errorf("the default partition has rows with partitions of %v", chunk)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	put(day, 0, 2)
	put(7*day, 0, 1, 2, 3, 6, 7)
	put(30*day, -1, 8, 14, 20)
	put(day, 0, 5, 8, 30, 31)
	if n := one[int64](t, url, "select count(*) from telemetry"); n != 17 {
		t.Errorf("%d rows, want 17", n)
	}
}

// grants are the statements of doc.go, in its order.
func grants(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if s, ok := strings.CutPrefix(line, "//\tgrant "); ok {
			out = append(out, "grant "+s)
		}
	}
	if len(out) < 6 {
		t.Fatalf("only %q in doc.go", out)
	}
	manual, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range out {
		if statement, _, _ := strings.Cut(s, ";"); !strings.Contains(string(manual), "    "+statement+";") {
			t.Errorf("docs/operations.md lacks %q", statement)
		}
	}
	return out
}

// roles makes those of doc.go, where the server has not got them from another test.
func roles(t *testing.T, url string) {
	t.Helper()
	for _, role := range []string{"sluice_owner", "sluice_writer", "sluice_reader"} {
		server(t).Exec(t, url, fmt.Sprintf("do $$ begin create role %s login; exception when duplicate_object then null; end $$", role))
	}
}

// TestLeastPrivilege follows doc.go: an owner, a writer, a reader.
func TestLeastPrivilege(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	roles(t, url)
	s.Exec(t, url, "grant create on schema public to sluice_owner")
	as := func(role string) string { return strings.Replace(url, "postgres@", role+"@", 1) }
	cfg := config(as("sluice_writer"))
	cfg.ManualMigrations = true
	db := open(t, cfg)
	b := fleet(1, 0, 1, 3, 3, t0)
	b.Anomalies = []telemetry.Anomaly{{ID: "1-1-0", Device: "d"}}
	if err := db.Write(context.Background(), b); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "migrate as the owner") {
		t.Fatalf("write before the migration: %v", err)
	}
	if err := Migrate(context.Background(), quiet(), Config{URL: as("sluice_owner")}); err != nil {
		t.Fatal(err)
	}
	s.Exec(t, as("sluice_owner"), append(grants(t), "alter table telemetry add check (value < 1000)")...)
	eventually(t, "ready", func() bool { return db.Health() == nil })
	b.Rows[5].Value = 2000
	write(t, db, b)
	if n := one[int64](t, as("sluice_reader"), "select count(*) from telemetry"); n != int64(len(b.Rows))-1 {
		t.Errorf("the reader sees %d rows", n)
	}
	if n := one[int64](t, url, "select count(*) from telemetry_default"); n != 0 {
		t.Errorf("%d rows without a partition", n)
	}
	s.Exec(t, url, "revoke insert on telemetry from sluice_writer")
	if err := db.Write(context.Background(), fleet(1, 1, 2, 1, 1, t0)); err == nil || !strings.Contains(err.Error(), "grant") {
		t.Errorf("without the right to write: %v", err)
	}
	if db.Health() == nil {
		t.Error("healthy without the right to write")
	}
}

// TestDatabaseReplacedByAnEmptyOne: the schema is made again, and the watermark
// tells that rows are missing.
func TestDatabaseReplacedByAnEmptyOne(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	db := open(t, config(url))
	b := fleet(1, 0, 5, 3, 3, t0)
	write(t, db, b)
	s.Exec(t, url, "drop schema public cascade", "create schema public")
	eventually(t, "the loss is noticed", func() bool {
		w, err := live(context.Background(), db, 1)
		return err == nil && w == 0
	})
	eventually(t, "written again", func() bool { return settle(t, db, b, db.Write(context.Background(), b)) })
}

func TestSchemaOfItsOwn(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	s.Exec(t, url, "create schema plant_7")
	db := open(t, config(url+"&search_path=plant_7"))
	write(t, db, fleet(1, 0, 5, 3, 3, t0))
	if n := one[int64](t, url, "select count(*) from plant_7.telemetry"); n != 36 {
		t.Errorf("%d rows in the schema", n)
	}
	if n := one[int64](t, url, "select count(*) from pg_tables where schemaname = 'public'"); n != 0 {
		t.Errorf("%d tables in public", n)
	}
}

func TestServersThatCannotWork(t *testing.T) {
	s := server(t)
	s.Exec(t, s.URL("postgres"), "drop database if exists latin1", "create database latin1 encoding 'LATIN1' locale 'C' template template0")
	for url, want := range map[string]string{
		s.URL("latin1"):  "create it with encoding 'UTF8'",
		s.URL("nothing"): "does not exist",
		s.URL("postgres") + "&search_path=nowhere": "search_path names no schema",
		"postgres://127.0.0.1:1/x":                 "connection refused",
	} {
		db := open(t, config(url))
		err := db.Write(context.Background(), fleet(1, 0, 5, 3, 3, t0))
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	for _, url := range []string{"", "postgres://user@host:port/x", "postgres://h/db?sslmode=perhaps", "mysql://x y", "postgres://u:sesame@h:99999999/x"} {
		_, err := Open(quiet(), nil, config(url))
		if err == nil {
			t.Errorf("%q was accepted", url)
		} else if strings.Contains(err.Error(), "sesame") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	err := Config{URL: "postgres://h/x", Conns: 1000, StatementTimeout: -1, Chunk: time.Hour}.Validate()
	for _, want := range []string{"cluster id", "connections 1000", "statement timeout", "chunk 1h"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in %v", want, err)
		}
	}
}

func TestClusterIdMayComeLater(t *testing.T) {
	url := server(t).Database(t)
	var mu sync.Mutex
	id := ""
	cfg := config(url)
	cfg.Cluster = func() string { mu.Lock(); defer mu.Unlock(); return id }
	db := open(t, cfg)
	b := fleet(1, 0, 5, 3, 3, t0)
	if err := db.Write(context.Background(), b); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("without a cluster id: %v", err)
	}
	mu.Lock()
	id = "c2"
	mu.Unlock()
	write(t, db, b)
	if c := one[string](t, url, "select cluster from flush_watermarks"); c != "c2" {
		t.Fatalf("cluster %q", c)
	}
}

// TestNoticesAreSaidOnce: one line names what plain PostgreSQL lacks.
func TestNoticesAreSaidOnce(t *testing.T) {
	var log bytes.Buffer
	reg := prometheus.NewRegistry()
	db, err := Open(slog.New(slog.NewTextHandler(&log, nil)), reg, config(server(t).Database(t)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(3) {
		write(t, db, fleet(1, i, i+1, 3, 3, t0))
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "TimescaleDB is not installed"); n != 1 {
		t.Errorf("said %d times:\n%s", n, &log)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			values[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{"sluice_postgres_writes_total": 3, "sluice_postgres_written_rows_total": 108, "sluice_postgres_migrations_total": schemaVersion, "sluice_postgres_connections": 0} {
		if values[name] != want {
			t.Errorf("%s is %v, want %v", name, values[name], want)
		}
	}
}
