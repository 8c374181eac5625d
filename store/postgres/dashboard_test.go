package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/telemetry"
)

// dashboardFile is the example that is shipped.
const dashboardFile = "../../deploy/grafana/dashboards/sluice.json"

// query is one SQL text of the dashboard.
type dashboardQuery struct {
	name, sql string
	series    bool // wants the columns time, metric, value
}

// dashboardQueries finds every SQL text, wherever in the document it stands.
func dashboardQueries(t *testing.T) []dashboardQuery {
	t.Helper()
	raw, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	type target struct {
		RawSQL string `json:"rawSql"`
		Format string `json:"format"`
	}
	var d struct {
		Panels []struct {
			Title   string   `json:"title"`
			Targets []target `json:"targets"`
		} `json:"panels"`
		Annotations struct {
			List []struct {
				Name   string `json:"name"`
				Target target `json:"target"`
			} `json:"list"`
		} `json:"annotations"`
		Templating struct {
			List []struct {
				Name  string `json:"name"`
				Query string `json:"query"`
			} `json:"list"`
		} `json:"templating"`
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	var list []dashboardQuery
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			list = append(list, dashboardQuery{p.Title, q.RawSQL, q.Format == "time_series"})
		}
	}
	for _, a := range d.Annotations.List {
		list = append(list, dashboardQuery{name: "annotation " + a.Name, sql: a.Target.RawSQL})
	}
	for _, v := range d.Templating.List {
		list = append(list, dashboardQuery{name: "variable " + v.Name, sql: v.Query})
	}
	if n := strings.Count(string(raw), `"rawSql"`) + len(d.Templating.List); n != len(list) {
		t.Fatalf("the document has %d queries, %d were found", n, len(list))
	}
	return list
}

// expand does what Grafana does: its macros for PostgreSQL, then variables.
func expand(sql string, from, to time.Time) string {
	quoted := func(t time.Time) string { return "'" + t.UTC().Format(time.RFC3339) + "'" }
	sql = regexp.MustCompile(`\$__timeFilter\(([^)]*)\)`).ReplaceAllString(sql, "$1 BETWEEN "+quoted(from)+" AND "+quoted(to))
	sql = strings.ReplaceAll(strings.ReplaceAll(sql, "$__timeFrom()", quoted(from)), "$__timeTo()", quoted(to))
	sql = strings.ReplaceAll(sql, "$__interval", "'30s'")
	sql = regexp.MustCompile(`\$__timeGroup\((\w+), '30s'\)`).ReplaceAllString(sql, "floor(extract(epoch from $1)/30)*30")
	return strings.NewReplacer("$device", "sensor-00007", "$sensor", "'temperature','humidity'").Replace(sql)
}

// TestDashboardQueriesRun runs every query of the example dashboard for an hour, a
// week and a month over tables that hold rows, with the rights of a reader.
func TestDashboardQueriesRun(t *testing.T) {
	url := server(t).Database(t)
	fillDashboard(t, open(t, config(url)))
	roles(t, url)
	for _, grant := range grants(t) {
		if strings.HasSuffix(grant, "to sluice_reader;\n") {
			server(t).Exec(t, url, grant)
		}
	}
	runDashboard(t, strings.Replace(url, "postgres@", "sluice_reader@", 1))
}

// TestDashboardQueriesRunOnTimescale reads a hypertable and its continuous
// aggregates, before a refresh and after it.
func TestDashboardQueriesRunOnTimescale(t *testing.T) {
	url := timescale(t)
	cfg := config(url)
	cfg.Conns = 1
	db := open(t, cfg)
	fillDashboard(t, db)
	if !db.Hypertable() {
		t.Fatal("telemetry is no hypertable")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	runDashboard(t, url)
	for _, v := range aggregateViews {
		ask[string](t, url, "call refresh_continuous_aggregate('"+v.Name+"', null, '2026-03-01Z')")
	}
	runDashboard(t, url)
}

func fillDashboard(t *testing.T, db *DB) {
	t.Helper()
	b := fleet(5, 0, 40, 20, 30, t0)
	b.Updates = []telemetry.DeviceUpdate{{Device: "sensor-00007", FirstSeen: t0, LastSeen: t0 + 60e6, Attributes: []telemetry.Attribute{{Key: "model", Value: "x1"}}}}
	b.Anomalies = []telemetry.Anomaly{{ID: "5-1-0", Device: "sensor-00007", Sensor: "temperature", Opened: t0 + 5e6, Severity: 70, Cause: "spike"}}
	write(t, db, b)
}

func runDashboard(t *testing.T, url string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	empty := map[string]bool{"Silent devices": false, "Refused rows": true}
	for _, span := range []time.Duration{time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour} {
		from := time.UnixMicro(t0).Add(-span / 2)
		for _, q := range dashboardQueries(t) {
			sql := expand(q.sql, from, from.Add(span))
			if i := strings.Index(sql, "$"); i >= 0 {
				t.Errorf("%s: nothing is known to expand %.30q", q.name, sql[i:])
				continue
			}
			rows, err := conn.Query(t.Context(), sql)
			if err != nil {
				t.Errorf("%s over %v: %v", q.name, span, err)
				continue
			}
			n := 0
			for rows.Next() {
				n++
			}
			var columns []string
			for _, f := range rows.FieldDescriptions() {
				columns = append(columns, f.Name)
			}
			rows.Close()
			switch {
			case rows.Err() != nil:
				t.Errorf("%s over %v: %v\n%s", q.name, span, rows.Err(), sql)
			case n == 0 && !empty[q.name] && !strings.HasPrefix(q.name, "Changes"):
				t.Errorf("%s over %v finds nothing", q.name, span)
			case q.series && fmt.Sprint(columns) != "[time metric value]":
				t.Errorf("%s has the columns %v", q.name, columns)
			}
		}
	}
}
