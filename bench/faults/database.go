package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
)

// database is the PostgreSQL server that a run flushes to. Nodes reach it
// through a proxy that can cut connections in the middle of a COPY.
type database struct {
	server *pgtest.Server
	proxy  *proxy
	url    string // through the proxy
	direct string
}

func startDatabase(rng *rand.Rand) (*database, error) {
	s, err := pgtest.New(pgtest.Options{})
	if err != nil {
		return nil, err
	}
	d := &database{server: s}
	if d.proxy, err = startProxy(s.Addr(), rng); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	defer func() { _ = c.Close(ctx) }() // nothing is open on it
	if _, err := c.Exec(ctx, "create database faults"); err != nil {
		return nil, fmt.Errorf("create database: %w", err)
	}
	d.direct = s.URL("faults")
	d.url = fmt.Sprintf("postgres://postgres@%s/faults?sslmode=disable", d.proxy.addr())
	return d, nil
}

func (d *database) close() error {
	d.proxy.close()
	return d.server.Close()
}

// stored reads the rows of a device as any other user of the database would.
func (d *database) stored(ctx context.Context, devices []bench.History) (map[string][]bench.Stored, error) {
	c, err := pgx.Connect(ctx, d.direct)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	defer func() { _ = c.Close(ctx) }() // nothing is open on it
	out := map[string][]bench.Stored{}
	for _, h := range devices {
		rows, err := c.Query(ctx, `select time, sensor, value, score from telemetry where device_id = $1`, h.Device)
		if err != nil {
			return nil, fmt.Errorf("read rows: %w", err)
		}
		out[h.Device], err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (x bench.Stored, err error) {
			return x, r.Scan(&x.Time, &x.Sensor, &x.Value, &x.Score)
		})
		if err != nil {
			return nil, fmt.Errorf("read rows of %s: %w", h.Device, err)
		}
	}
	return out, nil
}
