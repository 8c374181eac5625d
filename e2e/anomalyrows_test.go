package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
)

// The cluster's word on anomalies, as the tables of a database have it, compared
// with that of the same detector over the same rows in a file, to the last bit.

const (
	pressRows   = 1400
	pressBroken = 700 // celsius is off
	pressWorse  = 712 // bar is, too, and celsius more
	pressWhole  = 740
	pressLimit  = 1200 // amps says what it cannot measure
)

// press is a machine with three sensors, one message a minute.
type press struct {
	device string
	rows   [][3]float64 // amps, bar, celsius
}

func newPress(device string) *press {
	noise := func(i, k int) float64 { return float64((i*7919+k*104729+i*i*31%1009)%1000) / 1000 }
	p := &press{device: device}
	for i := range pressRows {
		amps, bar, celsius := 5+noise(i, 1), 30+2*noise(i, 2), 20+2*noise(i, 3)
		if i >= pressBroken && i < pressWhole {
			celsius += 4
		}
		if i >= pressWorse && i < pressWhole {
			celsius, bar = celsius+80, bar*2
		}
		if i == pressLimit {
			amps = 3276.7
		}
		p.rows = append(p.rows, [3]float64{amps, bar, celsius})
	}
	return p
}

func (p *press) at(i int) string {
	return time.Date(2026, 1, 1, 0, i, 0, 0, time.UTC).Format(time.RFC3339)
}

func (p *press) post(t *testing.T, via *devcluster.Node, from, to int) {
	t.Helper()
	var b strings.Builder
	for i, r := range p.rows[from:to] {
		fmt.Fprintf(&b, `{"device_id":%q,"timestamp":%q,"sensors":{"amps":%v,"bar":%v,"celsius":%v}}`+"\n", p.device, p.at(from+i), r[0], r[1], r[2])
	}
	eventually(t, fmt.Sprintf("rows %d to %d are stored", from, to), func() bool { // the leader may have died in between
		n, err := clientOf(t, via).Publish(t.Context(), []byte(b.String()), "")
		return err == nil && n.Applied+n.Duplicate == to-from
	})
}

// file writes the first rows as a CSV file.
func (p *press) file(t *testing.T, rows int) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("device_id,time,amps,bar,celsius\n")
	for i, r := range p.rows[:rows] {
		fmt.Fprintf(&b, "%s,%s,%v,%v,%v\n", p.device, p.at(i), r[0], r[1], r[2])
	}
	name := filepath.Join(t.TempDir(), "press.csv")
	if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// detected is what sluice detect says of the first rows.
func (p *press) detected(t *testing.T, rows int) (list []api.Anomaly, scores string) {
	t.Helper()
	args := []string{"detect", p.file(t, rows), "--device", "device_id", "--range", "amps=0:100"}
	for line := range strings.Lines(sluice(t, append(slices.Clone(args), "--json", "--alerts")...)) {
		var a api.Anomaly
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	return list, sluice(t, append(args, "--scores")...)
}

// table is a connection to the database, as any user of it has.
type table struct {
	t *testing.T
	*pgx.Conn
}

func dialTable(t *testing.T, url string) *table {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &table{t, conn}
}

// texts are the rows of a query, a text each.
func (c *table) texts(sql string, args ...any) []string {
	c.t.Helper()
	rows, err := c.Query(c.t.Context(), sql, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// anomalies are the rows of a device, by their opening. Silence is left out: how
// long a device has been silent depends on how busy the machine is.
func (c *table) anomalies(device string) []string {
	c.t.Helper()
	return c.texts(`select concat_ws(' ', device_id, sensor, to_char(opened at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS'),
			coalesce(to_char(closed at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS'), 'open'), severity, cause, value, expected, low, high, '(' || shares || ')')
		from anomalies where device_id = $1 and cause <> 'missing data' and wave is null and not normal order by opened, id`, device)
}

// inTable writes an anomaly as a row of the table.
func inTable(a *api.Anomaly) string {
	const form = "2006-01-02T15:04:05"
	closed := "open"
	if a.Closed != nil {
		closed = time.UnixMicro(int64(*a.Closed)).UTC().Format(form)
	}
	out := []string{a.DeviceID, a.Sensor, time.UnixMicro(int64(a.Opened)).UTC().Format(form), closed}
	f := func(x api.Float) string { return strconv.FormatFloat(float64(x), 'g', -1, 64) }
	return strings.Join(append(out, f(a.Severity), a.Cause, f(a.Value), f(a.Expected), f(a.Low), f(a.High), "("+a.Shares+")"), " ")
}

// holds waits until the table has exactly what the file says of the first rows.
func (c *table) holds(what string, p *press, rows int) []api.Anomaly {
	c.t.Helper()
	list, _ := p.detected(c.t, rows)
	var want, got []string
	for i := range list {
		want = append(want, inTable(&list[i]))
	}
	for end := time.Now().Add(flushedMax); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if got = c.anomalies(p.device); slices.Equal(got, want) {
			return list
		}
	}
	c.t.Fatalf("%s: the table has not within %v what the file says:\n%s\nwant\n%s", what, flushedMax, strings.Join(got, "\n"), strings.Join(want, "\n"))
	return nil
}

// An alert opens, its leader is killed, it gets worse and closes under the next
// one; then the shard moves to another node, and another opens and closes there.
// The table has one row of each, and every score, as a file has them in which
// nothing happened.
func TestAnomalyRowsAreThoseOfAFileWhoeverDiesAndMoves(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{})
	url := server.Database(t)
	c := start(t, func(o *devcluster.Options) { o.Database, o.FlushInterval, o.Shards = url, 500*time.Millisecond, 3 })
	db, p := dialTable(t, url), newPress("press-1")
	leader, other := leaderOf(t, c, p.device)
	succeeds(t, other, "anomalies", "range", "amps", "--min=0", "--max=100")
	p.post(t, leader, 0, pressWorse)
	begun := db.holds("open", p, pressWorse)
	if n := len(begun); n == 0 || begun[n-1].Closed != nil {
		t.Fatalf("the file has %+v, want one that is open", begun)
	}
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	p.post(t, other, pressWorse, pressWhole)
	if list := db.holds("worse under the next leader", p, pressWhole); len(list) != len(begun) || list[len(list)-1].Severity <= begun[len(list)-1].Severity || list[len(list)-1].Shares == "" {
		t.Fatalf("the file has %+v, want the same, worse and of several sensors", list)
	}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	everybodyVotes(t, other)
	p.post(t, leader, pressWhole, pressLimit)
	if list := db.holds("closed", p, pressLimit); list[len(list)-1].Closed == nil {
		t.Fatalf("the file has %+v, want it closed", list)
	}
	p.post(t, moveAway(t, c, p.device), pressLimit, pressRows)
	list := db.holds("after the move", p, pressRows)
	if last := list[len(list)-1]; len(list) <= len(begun) || last.Severity != 100 || last.Sensor != "amps" || last.Closed == nil {
		t.Fatalf("the file has %+v, want the last out of its physical range and closed", list)
	}
	if n := db.texts(`select count(*)::text from anomalies where cause <> 'missing data'`); n[0] != strconv.Itoa(len(list)) {
		t.Errorf("%s anomalies in the table, want %d", n[0], len(list))
	}
	db.holdsScores(p)
}

// moveAway adds a node, which takes replicas over, and empties the one that leads
// the shard of a device. It returns another one.
func moveAway(t *testing.T, c *devcluster.Cluster, device string) (other *devcluster.Node) {
	t.Helper()
	if _, err := c.Add("d"); err != nil {
		t.Fatal(err)
	}
	first := c.Nodes()[0]
	placed(t, first, "the new node has replicas", func(st *api.Status, holds map[string]int) bool {
		return len(st.Nodes) == 4 && holds["n3"] > 0 && len(st.Moves) == 0
	})
	leader, other := leaderOf(t, c, device)
	succeeds(t, other, "drain", leader.ID)
	placed(t, other, "the node that led is empty", func(st *api.Status, holds map[string]int) bool {
		return holds[leader.ID] == 0 && len(st.Moves) == 0
	})
	return other
}

// holdsScores compares every reading of the table with what the file says.
func (c *table) holdsScores(p *press) {
	c.t.Helper()
	var got []string
	eventually(c.t, "every row is in the table", func() bool {
		got = c.texts(`select concat_ws(' ', to_char(time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS'), sensor, value, score)
			from telemetry where device_id = $1 order by time, sensor`, p.device)
		return len(got) == 3*pressRows
	})
	_, scores := p.detected(c.t, pressRows)
	news := 0
	for i, line := range strings.Split(strings.TrimSpace(scores), "\n")[1:] {
		f := strings.Split(line, ",") // time, device, sensor, value, score
		row := strings.Fields(got[i])
		score, err := strconv.ParseFloat(row[3], 32)
		if err != nil {
			c.t.Fatal(err)
		}
		row[3] = strconv.FormatFloat(score, 'g', 6, 32)
		want := []string{strings.TrimSuffix(f[0], ".000000Z"), f[2], f[3], f[4]}
		if !slices.Equal(row, want) {
			c.t.Fatalf("row %d of the table is %q, the file says %q", i, row, want)
		}
		if score > 0.3 {
			news++
		}
	}
	if news < 3 {
		c.t.Errorf("%d surprising scores, want those of the faults", news)
	}
}

// What an operator called normal raises no such alert on that device again, or a
// lesser one; another device with the same readings does raise it.
func TestFeedbackLowersAPatternForThatDeviceAlone(t *testing.T) {
	c := start(t, func(o *devcluster.Options) { o.Shards = 3 })
	n := c.Nodes()[0]
	feed := func(from, to int) {
		var b strings.Builder
		for _, device := range []string{"oven-1", "oven-2"} {
			for i := from; i < to; i++ {
				x := 20 + float64(i*7919%100)/50
				if i == 600 || i == 1200 {
					x += 20
				}
				b.WriteString(reading(device, i, x))
			}
		}
		post(t, n, b.String())
	}
	feed(0, 700)
	var before [2]api.Anomaly
	for i, device := range []string{"oven-1", "oven-2"} {
		list := anomaliesOf(t, n, device)
		if len(list) != 1 || list[0].Closed == nil || list[0].Normal {
			t.Fatalf("%s: %+v, want one anomaly that is closed", device, list)
		}
		before[i] = list[0]
	}
	succeeds(t, c.Nodes()[1], "anomalies", "normal", before[0].ID)
	feed(700, 1300)
	if list := anomaliesOf(t, n, "oven-2"); len(list) != 2 || list[0].Cause != before[1].Cause {
		t.Fatalf("oven-2: %+v, want another anomaly", list)
	}
	if list := anomaliesOf(t, c.Nodes()[2], "oven-1"); len(list) != 1 || !list[0].Normal {
		t.Errorf("oven-1: %+v, want the normal one alone", list)
	}
	var scores [2]float64
	fault := time.Date(2026, 1, 1, 0, 1200, 0, 0, time.UTC)
	for i, device := range []string{"oven-1", "oven-2"} {
		for r, err := range clientOf(t, n).Readings(t.Context(), client.ReadingsQuery{Device: device, From: fault, To: fault.Add(time.Second)}) {
			if err != nil {
				t.Fatal(err)
			}
			scores[i] = float64(r.Score)
		}
	}
	if scores[0] <= 0 || scores[0] >= scores[1] {
		t.Errorf("the same reading scores %v where it is normal, %v where it is not", scores[0], scores[1])
	}
}

// anomaliesOf lists a device's, newest first, without silence.
func anomaliesOf(t *testing.T, n *devcluster.Node, device string) (list []api.Anomaly) {
	t.Helper()
	for line := range strings.Lines(succeeds(t, n, "anomalies", "--device", device, "--json")) {
		var a api.Anomaly
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatal(err)
		}
		if a.Cause != "missing data" {
			list = append(list, a)
		}
	}
	return list
}
