package shard

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/store/postgres"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
	"github.com/sluice-iot/sluice/telemetry"
)

// flushRound is a range of the log: blocks of 256 messages of four sensors.
const (
	flushBlocks   = 25
	flushMessages = 256
)

// BenchmarkFlushToDatabase measures rows per second from the log to committed,
// side by side on one server that fsyncs: our whole path (read the blocks, decode,
// sort, COPY, devices, watermark), of one shard and of two that share the one
// connection, a bare pgx.CopyFrom of the same rows, an INSERT
// of arrays (unnest), and an INSERT per row; medians.
func BenchmarkFlushToDatabase(b *testing.B) {
	s := pgtest.Start(b, pgtest.Options{Durable: true})
	url := s.Database(b)
	db, err := postgres.Open(quiet(), nil, postgres.Config{URL: url, Cluster: func() string { return "c1" }, Conns: 2})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	ctx := context.Background()
	f, batch := flushLog(b)
	first := telemetry.Batch{Shard: 3, To: 1, Term: 1}
	for err := db.Write(ctx, &first); err != nil; err = db.Write(ctx, &first) {
		time.Sleep(10 * time.Millisecond) // it is migrating
	}
	at := map[telemetry.ShardID]uint64{3: 1, 4: 0}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	rows := len(batch.Rows)
	var mu sync.Mutex
	flush := func(shard telemetry.ShardID) error {
		got, err := f.batch(0, math.MaxUint64, f.shard.fsm.pending.blocks, bothLanes)
		if err != nil {
			return err
		}
		mu.Lock()
		from := at[shard]
		at[shard]++
		mu.Unlock()
		got.Shard, got.Updates, got.From, got.To, got.Term = shard, batch.Updates, from, from+1, 1
		return db.Write(ctx, got)
	}
	columns := []string{"time", "device_id", "sensor", "value", "score", "received", "quality"}
	row := func(i int) []any {
		r := &batch.Rows[i]
		return []any{time.UnixMicro(r.Time), batch.Devices[r.Device], batch.Sensors[r.Sensor], r.Value, r.Score, time.UnixMicro(r.Received), int16(r.Quality)}
	}
	const few = 200
	insert := "insert into telemetry (" + strings.Join(columns, ", ") + ") values ($1, $2, $3, $4, $5, $6, $7)"
	ways := []struct {
		name string
		rows int
		put  func() error
		took []time.Duration
	}{
		{name: "log-to-committed", rows: rows, put: func() error { return flush(3) }},
		{name: "of-two-shards", rows: 2 * rows, put: func() error {
			other := make(chan error, 1)
			go func() { other <- flush(4) }()
			return errors.Join(flush(3), <-other)
		}},
		{name: "pgx.CopyFrom", rows: rows, put: func() error {
			_, err := conn.CopyFrom(ctx, pgx.Identifier{"telemetry"}, columns, pgx.CopyFromSlice(rows, func(i int) ([]any, error) { return row(i), nil }))
			return err
		}},
		{name: "unnest", rows: rows, put: func() error { return insertArrays(ctx, conn, batch) }},
		{name: "insert-per-row", rows: few, put: func() error {
			for i := range few {
				if _, err := conn.Exec(ctx, insert, row(i)...); err != nil {
					return err
				}
			}
			return nil
		}},
	}
	for b.Loop() { // in turn, so that a busy moment of the machine meets all of them
		for i := range ways {
			w := &ways[i]
			start := time.Now()
			if err := w.put(); err != nil {
				b.Fatal(err)
			}
			w.took = append(w.took, time.Since(start))
		}
	}
	for _, w := range ways {
		slices.Sort(w.took)
		b.ReportMetric(float64(w.rows)/w.took[len(w.took)/2].Seconds()/1e3, w.name+"-krows/s")
	}
	b.ReportMetric(0, "ns/op")
}

func insertArrays(ctx context.Context, conn *pgx.Conn, b *telemetry.Batch) error {
	n := len(b.Rows)
	times, received := make([]time.Time, n), make([]time.Time, n)
	devices, sensors := make([]string, n), make([]string, n)
	values, scores, quality := make([]float64, n), make([]float32, n), make([]int16, n)
	for i := range b.Rows {
		r := &b.Rows[i]
		times[i], received[i] = time.UnixMicro(r.Time), time.UnixMicro(r.Received)
		devices[i], sensors[i] = b.Devices[r.Device], b.Sensors[r.Sensor]
		values[i], scores[i], quality[i] = r.Value, r.Score, int16(r.Quality)
	}
	_, err := conn.Exec(ctx, `insert into telemetry (time, device_id, sensor, value, score, received, quality)
		select * from unnest($1::timestamptz[], $2::text[], $3::text[], $4::float8[], $5::real[], $6::timestamptz[], $7::smallint[])`,
		times, devices, sensors, values, scores, received, quality)
	return err
}

// flushLog is a log with one range to flush, and the batch that it makes.
func flushLog(b *testing.B) (*flusher, *telemetry.Batch) {
	r := newRig(b)
	for i := range flushBlocks {
		var ms []telemetry.Message
		for k := range flushMessages {
			ms = append(ms, message(fmt.Sprintf("d%03d", k), epoch2026+int64(i)*second, float64(i+k), 48.1, 1013.2+float64(k%7), 93.5))
		}
		r.block(ms...)
	}
	logs := raft.NewInmemStore()
	for i := uint64(1); i <= r.next; i++ {
		if err := logs.StoreLog(&raft.Log{Index: i, Term: 1, Type: raft.LogCommand, Data: r.log[i]}); err != nil {
			b.Fatal(err)
		}
	}
	for _, p := range r.pending.blocks {
		p.data = nil // as during a backlog: from the log
	}
	f := &flusher{shard: &Shard{id: 3, fsm: &fsm{machine: r.machine, logs: logs}}}
	batch, err := f.batch(0, math.MaxUint64, r.pending.blocks, bothLanes)
	if err != nil {
		b.Fatal(err)
	}
	batch.Updates, _ = r.changes()
	return f, batch
}
