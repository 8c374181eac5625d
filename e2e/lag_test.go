package e2e

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
)

// BenchmarkLagToTheDatabase is the time from the acknowledgement of a message to
// the moment when another connection to the database sees its row, while devices
// publish 2,000 messages per second; 200 probes, at the default flush interval.
func BenchmarkLagToTheDatabase(b *testing.B) {
	server := pgtest.Start(b, pgtest.Options{Durable: true})
	url := server.Database(b)
	port, err := devcluster.FreePorts(6)
	if err != nil {
		b.Fatal(err)
	}
	c, err := devcluster.Start(b.Context(), slog.New(slog.NewTextHandler(io.Discard, nil)), devcluster.Options{
		Binary: binary, Dir: b.TempDir(), Nodes: 3, Zones: []string{"a", "b", "c"}, MQTTPort: port, HTTPPort: port + 3, Shards: 24, Database: url,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Stop(context.Background()) }()
	ctx, stop := context.WithTimeout(b.Context(), 4*time.Minute)
	defer stop()
	if err := c.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	for i := range 20 {
		s := &bench.Survivor{Addrs: mqttAddrs(c), Device: fmt.Sprintf("load-%d", i), Window: 64, Pause: 10 * time.Millisecond}
		go s.Run(ctx, time.Second)
	}
	cl, err := c.Nodes()[1].Client()
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	probes(ctx, b, cl, conn, 5) // until the tables are there and statements prepared
	for b.Loop() {
		lag, query := probes(ctx, b, cl, conn, 200)
		at := func(d []time.Duration, q int) float64 { return float64(d[len(d)*q/100].Microseconds()) / 1e3 }
		b.ReportMetric(at(lag, 50), "database-p50-ms")
		b.ReportMetric(at(lag, 99), "database-p99-ms")
		b.ReportMetric(at(query, 50), "query-p50-ms")
		b.ReportMetric(at(query, 99), "query-p99-ms")
	}
	b.ReportMetric(0, "ns/op")
}

// probes publishes n messages one after the other and waits for each in an answer
// of the API, which has it at once, and in the database.
func probes(ctx context.Context, b *testing.B, cl *client.Client, conn *pgx.Conn, n int) (lag, query []time.Duration) {
	b.Helper()
	for i := range n {
		at := time.Now().UTC().Truncate(time.Microsecond)
		device := fmt.Sprintf("probe-%d", i%24)
		line := fmt.Sprintf(`{"device_id":%q,"timestamp":%q,"sensors":{"x":1}}`, device, at.Format(time.RFC3339Nano))
		if counts, err := cl.Publish(ctx, []byte(line), ""); err != nil || counts.Applied != 1 {
			b.Fatalf("%+v, %v", counts, err)
		}
		acked := time.Now()
		found := 0
		for _, err := range cl.Readings(ctx, client.ReadingsQuery{Device: device, From: at}) {
			if err != nil {
				b.Fatal(err)
			}
			found++
		}
		if found != 1 {
			b.Fatalf("%d readings right behind the acknowledgement", found)
		}
		query = append(query, time.Since(acked))
		for there := false; !there; time.Sleep(2 * time.Millisecond) {
			if err := conn.QueryRow(ctx, "select exists (select from telemetry where device_id = $1 and time = $2)", device, at).Scan(&there); err != nil && ctx.Err() != nil {
				b.Fatal(err)
			}
		}
		lag = append(lag, time.Since(acked))
	}
	slices.Sort(lag)
	slices.Sort(query)
	return lag, query
}
