package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/backlog"
	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
)

// An outage of the database that fills the log: the backlog is shown, intake is
// refused before the disk is full, and nothing that was acknowledged is missing
// when the database is back.
func TestOutageFillsTheLogAndLosesNothing(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{})
	url := server.Database(t)
	const budget = 32 // MiB
	c := start(t, func(o *devcluster.Options) {
		o.Database, o.FlushInterval, o.LogMaxMiB, o.Shards = url, 200*time.Millisecond, budget, 6
	})
	cl := clientOf(t, c.Nodes()[0])
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	rnd := rand.New(rand.NewPCG(1, 2))
	acked, seq := 0, 0
	send := func() api.Counts {
		var b bytes.Buffer
		for range 400 { // text that does not compress: a log is filled soon
			seq++
			line, err := json.Marshal(map[string]any{
				"device_id": fmt.Sprintf("o%d", seq%40), "timestamp": time.Now().UTC().Add(time.Duration(seq) * time.Microsecond),
				"sensors": map[string]float64{"a": rnd.Float64(), "b": rnd.Float64(), "c": rnd.Float64(), "d": rnd.Float64()}, "metadata": map[string]string{"note": noise(rnd)},
			})
			if err != nil {
				t.Fatal(err)
			}
			b.Write(append(line, '\n'))
		}
		counts, err := cl.Publish(ctx, b.Bytes(), "")
		acked += counts.Applied
		if err != nil && counts.Refused == 0 && ctx.Err() != nil {
			t.Fatalf("publish: %v", err)
		}
		return counts
	}
	send()
	awaitFlushed(t, c)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	alarmed := false
	var st api.Status
	for refused := false; !refused; {
		if ctx.Err() != nil {
			t.Fatalf("intake is never refused: %+v", st.Nodes)
		}
		refused = send().Refused > 0
		var err error
		if st, err = cl.Status(ctx); err != nil {
			continue
		}
		if b := st.Nodes[0].Backlog; b != nil && b.Level == backlog.Alarm {
			alarmed = true
		}
	}
	wants(t, "status of a full log", succeeds(t, c.Nodes()[1], "status"), "of its disk budget: it refuses what is new", "backlog n0 ", "database: ")
	if b := st.Nodes[0].Backlog; !alarmed && b != nil && b.Level != backlog.Refuse {
		t.Errorf("no alarm before the refusal: %+v", b)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	awaitFlushed(t, c)
	resumes(t, c, cl, send)
	awaitFlushed(t, c)
	n := scanOne(t, url, "select count(*) from telemetry where device_id like 'o%'")
	if distinct := scanOne(t, url, "select count(distinct (device_id, time, sensor, value)) from telemetry where device_id like 'o%'"); n < int64(4*acked) || distinct != n {
		t.Errorf("%d rows in the database, %d different, %d acknowledged", n, distinct, 4*acked)
	}
}

// resumes waits until no node refuses any more, without any traffic, and publishes.
func resumes(t *testing.T, c *devcluster.Cluster, cl *client.Client, send func() api.Counts) {
	t.Helper()
	var st api.Status
	var err error
	for end := time.Now().Add(flushedMax); ; time.Sleep(200 * time.Millisecond) {
		refusing := 0
		if st, err = cl.Status(t.Context()); err == nil {
			for i := range st.Nodes {
				if b := st.Nodes[i].Backlog; b == nil || b.Level == backlog.Refuse {
					refusing++
				}
			}
			if refusing == 0 && len(st.Nodes) == len(c.Nodes()) {
				break
			}
		}
		if time.Now().After(end) {
			for i := range st.Nodes {
				t.Logf("%s: %+v", st.Nodes[i].ID, st.Nodes[i].Backlog)
			}
			t.Fatalf("nothing waits, and %d nodes refuse what is new (%v)", refusing, err)
		}
	}
	if counts := send(); counts.Applied == 0 {
		t.Errorf("nothing is taken after the outage: %+v", counts)
	}
}

func scanOne(t *testing.T, url, sql string) (n int64) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// noise is 2 KB of text.
func noise(rnd *rand.Rand) string {
	b := make([]byte, 2000)
	for i := range b {
		b[i] = byte(' ' + rnd.IntN(90))
	}
	return string(b)
}
