package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
)

// Rows reach the database once, whoever dies on the way: the server is killed
// and comes back, then a node is killed and comes back, under load throughout.

func TestDatabaseHoldsEveryAcknowledgedRowOnceAfterKillsOfServerAndNode(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{})
	url := server.Database(t)
	c := start(t, func(o *devcluster.Options) { o.Database, o.FlushInterval = url, 500*time.Millisecond })
	fleet, stop := publish(t, c)
	flushes(t, c)

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	goesOn(t, fleet) // intake does not stop with the database
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	flushes(t, c)
	victim := c.Nodes()[1]
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	goesOn(t, fleet)
	flushes(t, c)
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	everybodyVotes(t, victim)
	goesOn(t, fleet)
	stop()

	judge(t, c, fleet) // the union of database and log
	awaitFlushed(t, c)
	judgeDatabase(t, url, fleet)
	judge(t, c, fleet) // now all from the database
	ledgerAddsUp(t, c, fleet)
}

// flushedMax bounds the wait for the backlog of an outage of a few seconds.
const flushedMax = 4 * time.Minute

func awaitFlushed(t *testing.T, c *devcluster.Cluster) {
	t.Helper()
	cl, err := c.Nodes()[0].Client()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), flushedMax)
	defer cancel()
	for {
		l, err := cl.Ledger(ctx)
		if err == nil && l.Totals.Pending == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%d messages are still not flushed: %v", l.Totals.Pending, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// flushes waits until something goes to the store that has not been there before.
func flushes(t *testing.T, c *devcluster.Cluster) {
	t.Helper()
	flushed := func() (n uint64) {
		eventually(t, "the ledger is complete", func() bool {
			l, err := clientOf(t, c.Nodes()[0]).Ledger(t.Context())
			n = l.Totals.Flushed
			return err == nil
		})
		return n
	}
	before := flushed()
	eventually(t, "something is flushed", func() bool { return flushed() > before })
}

// wrongInDatabase is what the tables lack or have twice.
func wrongInDatabase(ctx context.Context, conn *pgx.Conn, fleet []*bench.Survivor) (wrong []error) {
	for _, s := range fleet {
		rows, err := conn.Query(ctx, `select time, sensor, value from telemetry where device_id = $1`, s.Device)
		if err != nil {
			return append(wrong, err)
		}
		stored, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (x bench.Stored, err error) {
			return x, r.Scan(&x.Time, &x.Sensor, &x.Value)
		})
		if err != nil {
			return append(wrong, err)
		}
		wrong = append(wrong, s.Judge(stored)...)
	}
	return wrong
}

// judgeDatabase reads the tables as any other user of the database would.
func judgeDatabase(t *testing.T, url string, fleet []*bench.Survivor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	for _, err := range wrongInDatabase(ctx, conn, fleet) {
		t.Errorf("database: %v", err)
	}
	var devices int
	if err := conn.QueryRow(ctx, `select count(*) from devices where device_id like 'survivor-%'`).Scan(&devices); err != nil || devices != len(fleet) {
		t.Errorf("the database knows %d devices, want %d (%v)", devices, len(fleet), err)
	}
}
