package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/devcluster"
)

// databaseRun is a cluster on a database, and another connection to that.
type databaseRun struct {
	url      string
	progress io.Writer
	cluster  *devcluster.Cluster
	db       *pgx.Conn
}

// connect reaches the database and makes sure that nothing is in it.
func (o *databaseRun) connect(ctx context.Context) error {
	db, err := pgx.Connect(ctx, o.url)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	var used bool
	err = db.QueryRow(ctx, "select to_regclass('telemetry') is not null").Scan(&used)
	if err == nil && used {
		err = errors.New("the database has a table telemetry already: use an empty one")
	}
	if err != nil {
		return errors.Join(err, db.Close(context.WithoutCancel(ctx)))
	}
	o.db = db
	return nil
}

func (o *databaseRun) say(format string, args ...any) {
	fmt.Fprintf(o.progress, format+" ...\n", args...)
}

func (o *databaseRun) pending(ctx context.Context) (uint64, error) {
	cl, err := o.cluster.Nodes()[0].Client()
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	l, err := cl.Ledger(ctx)
	return l.Totals.Pending, err
}

// patiently asks until there is an answer.
func (o *databaseRun) patiently(ctx context.Context, ask func(context.Context) error) error {
	for end := time.Now().Add(patience); ; {
		err := ask(ctx)
		if err == nil || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// drained waits until no more messages wait for the database than most.
func (o *databaseRun) drained(ctx context.Context, most uint64) error {
	for end := time.Now().Add(drainDeadline); ; {
		waiting, err := o.pending(ctx)
		switch {
		case err == nil && waiting <= most:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(end):
			return fmt.Errorf("%d messages still wait for the database after %v (%w)", waiting, drainDeadline, err)
		}
		time.Sleep(drainLook)
	}
}

// drainLook is how often it is looked whether a backlog has gone.
const drainLook = 250 * time.Millisecond

// publishers is a load of devices with the present time, at a rate.
func (o *databaseRun) publishers(rate float64, prefix string) Load {
	return Load{Addrs: addrs(o.cluster), Connections: outageConnections, Window: outageWindow, Rate: rate, Prefix: prefix, Present: true}
}
