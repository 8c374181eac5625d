package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// Read implements shard.SharedStore: the points of one device in the order of
// store.Point.Compare, and the watermarks of the same snapshot.
func (db *DB) Read(ctx context.Context, shard telemetry.ShardID, q store.Query) (points []store.Point, at telemetry.Watermarks, err error) {
	start := time.Now()
	points, at, err = db.read(ctx, shard, q)
	if err != nil {
		db.m.readErrors.Inc()
		return nil, at, fmt.Errorf("read device %s: %w", q.Device, explain(err))
	}
	db.m.readSeconds.Observe(time.Since(start).Seconds())
	db.m.readPoints.Add(float64(len(points)))
	return points, at, nil
}

func (db *DB) read(ctx context.Context, shard telemetry.ShardID, q store.Query) (points []store.Point, at telemetry.Watermarks, err error) {
	cluster, err := db.cluster()
	if err != nil {
		return nil, at, err
	}
	ctx, cancel := db.join(ctx)
	defer cancel()
	c, err := db.acquire(ctx, db.reads)
	if err != nil {
		return nil, at, err
	}
	defer func() { db.release(c, db.reads, err) }()
	ctx, done := db.bounded(ctx)
	defer done()
	err = pgx.BeginTxFunc(ctx, c.Conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(pgx.Tx) error {
		var err error
		if at, err = db.readWatermarks(ctx, c, cluster, shard); err != nil {
			return err
		}
		points, err = selectPoints(ctx, c, q)
		return err
	})
	return points, at, err
}

// timeMin and timeMax stand for open ends: the years 1 and 10000, between which
// every reading lies and which TimescaleDB can convert.
const (
	timeMin = -62_135_596_800_000_000
	timeMax = 253_402_300_800_000_000
)

func clamp(us int64) time.Time { return time.UnixMicro(min(max(us, timeMin), timeMax)) }

// selection is the query in SQL. float8send gives the value's bits with the
// highest byte first: comparing them as bytes is comparing them as unsigned
// numbers, which is how points compare.
func selection(q store.Query) (sql string, args []any) {
	from, to, beyond, order := q.From, q.To, ">", ""
	if q.Desc {
		beyond, order = "<", " desc"
	}
	switch {
	case q.After != nil && q.Desc:
		to = min(to, q.After.Time+1)
	case q.After != nil:
		from = max(from, q.After.Time)
	}
	args = []any{pgx.QueryResultFormats{pgx.BinaryFormatCode}, q.Device, clamp(from), clamp(to), q.Limit}
	var b strings.Builder
	b.WriteString("select time, received, sensor, value, score, quality from telemetry where device_id = $1 and time >= $2 and time < $3")
	if q.Sensor != "" {
		args = append(args, q.Sensor)
		fmt.Fprintf(&b, " and sensor = $%d", len(args)-1)
	}
	if q.After != nil {
		args = append(args, clamp(q.After.Time), q.After.Sensor,
			binary.BigEndian.AppendUint64(nil, math.Float64bits(q.After.Value)))
		n := len(args) - 1
		fmt.Fprintf(&b, ` and (time, sensor collate "C", float8send(value)) %s ($%d::timestamptz, $%d::text, $%d::bytea)`, beyond, n-2, n-1, n)
	}
	fmt.Fprintf(&b, ` order by time%[1]s, sensor collate "C"%[1]s, float8send(value)%[1]s limit $4`, order)
	return b.String(), args
}

func selectPoints(ctx context.Context, c *conn, q store.Query) ([]store.Point, error) {
	if q.Limit <= 0 || q.From >= q.To {
		return nil, nil
	}
	sql, args := selection(q)
	rows, err := c.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var points []store.Point
	names := map[string]string{} // a device has few sensors, and each name once
	for rows.Next() {
		p, err := decodePoint(rows.FieldDescriptions()[0].Format, rows.RawValues(), names)
		if err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return points, rows.Err()
}

// decodePoint decodes the columns of selection in their binary format.
func decodePoint(format int16, v [][]byte, names map[string]string) (store.Point, error) {
	if format != pgx.BinaryFormatCode {
		return store.Point{}, errors.New("the server answers in text: remove default_query_exec_mode=simple_protocol from the URL")
	}
	for i, size := range [...]int{8, 8, -1, 8, 4, 2} {
		if v[i] == nil || size >= 0 && len(v[i]) != size {
			return store.Point{}, fmt.Errorf("column %d of telemetry has another type than the migrations gave it, or is null", i+1)
		}
	}
	be := binary.BigEndian
	sensor, ok := names[string(v[2])]
	if !ok {
		sensor = string(v[2])
		names[sensor] = sensor
	}
	return store.Point{
		Time: int64(be.Uint64(v[0])) + epoch, Received: int64(be.Uint64(v[1])) + epoch, Sensor: sensor,
		Value: math.Float64frombits(be.Uint64(v[3])), Score: math.Float32frombits(be.Uint32(v[4])),
		Quality: telemetry.Quality(be.Uint16(v[5])),
	}, nil
}
